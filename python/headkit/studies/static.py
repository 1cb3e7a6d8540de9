"""Every static pruning method on one fine-tuned model: accuracy, KL, latency, agreement."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from headkit import _C
from headkit.agreements import agreement, stability
from headkit.demo.encoder import encode
from headkit.demo.timing import interleaved
from headkit.pruning import apply, prune
from headkit.scoring import as_objective, gated_model, score
from headkit.studies.comparison import accuracy_interval, compare, with_holm
from headkit.studies.fine_tuned import FineTuned, Show
from headkit.studies.methods import (
    COMPENSATED,
    MICHEL,
    RANDOM,
    Method,
    all_methods,
    method_of,
    tuned_methods,
)
from headkit.studies.outcome import Outcome, outcome_of
from headkit.studies.recipe import Recipe, fine_tune
from headkit.studies.results import Missing, Results
from headkit.studies.splits import Splits

OBJECTIVE = "cross_entropy"
CUT = ("mask", "units", "kept_heads", "parameters")
UNITS = ("neurons", "attention_sublayers", "feed_forward_sublayers", "hidden")
LEAST_DRAWS, LEAST_SEEDS = 5, 3
# Of the test sentences, a tensor [N] for each seed.
BySeed = list[torch.Tensor]


@dataclass(frozen=True)
class StaticStudy:
    """What is asked of the study.

    Attributes:
        model: as for ``open_subject``.
        seeds: of fine-tuning, at least three.
        keeps: shares that stay, without training.
        methods: labels of ``methods``; the random one is always among them.
        draws: random masks for each seed and share, at least five.
        tuned: labels of the methods that are trained on after pruning.
        tuned_keeps: their shares.
        recipe: of fine-tuning.
        again: of training on, in every arm, the dense one too.
        rounds: of the measurement of latency; 0 = none.
    """

    model: str = "minilm"
    seeds: tuple[int, ...] = (0, 1, 2)
    keeps: tuple[float, ...] = (0.75, 0.5, 0.33, 0.25)
    methods: tuple[str, ...] = field(default_factory=all_methods)
    draws: int = 5
    tuned: tuple[str, ...] = field(default_factory=tuned_methods)
    tuned_keeps: tuple[float, ...] = (0.5, 0.25)
    recipe: Recipe = field(default_factory=Recipe)
    again: Recipe = field(default_factory=lambda: Recipe(epochs=1, learning_rate=3e-5))
    rounds: int = 30

    def check(self) -> None:
        """Refuse what breaks the rules of the study.

        Raises:
            ValueError: for fewer than three seeds, fewer than five draws, no random arm, an unknown
                method or a share outside 0 to 1.
        """
        if len(set(self.seeds)) < max(LEAST_SEEDS, len(self.seeds)):
            raise ValueError(
                f"[static] expected at least {LEAST_SEEDS} different seeds; found "
                f"{list(self.seeds)}"
            )
        if self.draws < LEAST_DRAWS:
            raise ValueError(
                f"[static] expected at least {LEAST_DRAWS} random draws; found {self.draws}"
            )
        if RANDOM not in self.methods or MICHEL not in self.methods:
            raise ValueError(
                f"[static] expected {RANDOM} and {MICHEL} among the methods; found "
                f"{', '.join(self.methods) or 'none'}"
            )
        for label in (*self.methods, *self.tuned):
            method_of(label)
        for keep in (*self.keeps, *self.tuned_keeps):
            if not 0 < keep < 1:
                raise ValueError(f"[static] expected shares between 0 and 1; found {keep}")

    def to_json(self) -> dict[str, Any]:
        """All settings."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class Pruned:
    """What a method did to the model of one seed.

    Attributes:
        outcome: on the test part; None if the method refused.
        found: mask, parameters, seconds; or ``refused`` with the reason.
    """

    outcome: Outcome | None
    found: dict[str, Any]


class StudySubject(FineTuned):
    """The fine-tuned model of one seed, and what methods made of it."""

    def __init__(self, asked: StaticStudy, splits: Splits, results: Results, seed: int, show: Show):
        super().__init__(asked.model, asked.recipe, splits, results, seed, show)
        self.asked = asked

    def dense(self) -> Outcome:
        """The model with all its heads."""
        found = self._get(
            "dense",
            {},
            lambda: {
                "logits": outcome_of(self._fresh[0], self._test).to_json(),
                "parameters": _parameters(self._fresh[0]),
            },
        )
        return Outcome.from_json(found["logits"], self.labels)

    def scores(self, metric: str) -> _C.HeadScores:
        """Scores of every head; ValueError where the metric refuses the model or the loss."""
        return _C.HeadScores.from_json(json.dumps(self._scored(metric)["scores"]))

    def scoring_seconds(self, metric: str) -> float:
        """Processor seconds that ``scores`` took."""
        return float(self._scored(metric)["seconds"])

    def _scored(self, metric: str) -> dict[str, Any]:
        method = method_of(metric)

        def compute() -> dict[str, Any]:
            started = time.process_time()
            try:
                found = score(
                    self._fresh[0],
                    self._calibration(method.sentences).batches,
                    method.name,
                    OBJECTIVE,
                    seed=self.seed,
                    **method.settings,
                    progress=lambda done, total: self.show(
                        f"seed {self.seed}, scoring: {metric}", done, total
                    ),
                )
            except (ValueError, RuntimeError) as error:
                return {"refused": str(error)}
            seconds = time.process_time() - started
            return {"scores": json.loads(found.to_json()), "seconds": seconds}

        asked = {
            "metric": method.name,
            "sentences": method.sentences,
            "settings": method.settings,
        }
        found = self._get("scores", asked, compute)
        if "refused" in found:
            raise ValueError(found["refused"])
        return found

    def removal(self, method: Method) -> dict[str, Any]:
        """Heads in the order in which a search removes them, down to the smallest share."""
        least = min(*self.asked.keeps, *self.asked.tuned_keeps)

        def compute() -> dict[str, Any]:
            started = time.process_time()
            found = _C.prune(
                gated_model(self._fresh[0], "static"),
                self._calibration(method.sentences).batches,
                method.name,
                as_objective(OBJECTIVE),
                keep=least,
                per_layer=False,
                min_per_layer=0,
                rounding="nearest",
                compensate=method.compensate,
                settings=json.dumps(method.settings),
                progress=lambda done, total: self.show(
                    f"seed {self.seed}, {method.label}", done, total
                ),
            )
            return {
                "order": found.details["order"],
                "seconds": time.process_time() - started,
            }

        return self._get("removal", {"method": method.to_json(), "keep": least}, compute)

    def pruned(self, label: str, keep: float, draw: int = 0, *, tuned: bool = False) -> Pruned:
        """The test part after pruning, and after training on where that is asked for."""
        method = method_of(label)
        asked = {"method": method.to_json(), "keep": keep, "draw": draw}
        if tuned:
            asked["again"] = self.asked.again.to_json()

        def compute() -> dict[str, Any]:
            self.show(f"seed {self.seed}, {label} at {keep:g}", 0, -1)
            try:
                model, tokenizer, about = self._prune(method, keep, draw)
            except (ValueError, RuntimeError) as error:
                return {"refused": str(error)}
            if tuned:
                about["steps"] = self._train_on(model, tokenizer)
            return about | {"logits": outcome_of(model, self._test).to_json()}

        found = self._get("tuned" if tuned else "pruned", asked, compute)
        if "refused" in found:
            return Pruned(None, found)
        return Pruned(Outcome.from_json(found.pop("logits"), self.labels), found)

    def dense_trained_on(self) -> tuple[Outcome, int]:
        """The dense model after as many steps more as the pruned ones get."""

        def compute() -> dict[str, Any]:
            model, tokenizer = self.trained.load()
            steps = self._train_on(model, tokenizer)
            return {"logits": outcome_of(model, self._test).to_json(), "steps": steps}

        found = self._get("tuned", {"dense": True, "again": self.asked.again.to_json()}, compute)
        return Outcome.from_json(found["logits"], self.labels), found["steps"]

    def cut_model(self, found: dict[str, Any]) -> torch.nn.Module:
        """A copy of the model without the units that went: as fast as the pruned one."""
        model, _ = self.trained.load()
        gates = {name: torch.tensor(open_).float() for name, open_ in found["units"].items()}
        mask = _C.HeadMask(torch.tensor(found["mask"]))
        apply(model, _C.StaticPruning(mask, _C.GateSet(**gates)))
        check_cut(model, found["kept_heads"], found["parameters"])
        return model

    def _removal_scores(self, method: Method) -> _C.HeadScores:
        """Scores whose ranking is the order of removal, last first."""
        order = self.removal(method)["order"]
        heads = gated_model(self._fresh[0], "static").heads().keep
        values = torch.where(heads, float(len(order)), -1.0).double()
        for place, (layer, head) in enumerate(order):
            values[layer, head] = place
        return _C.HeadScores(values, metric=method.name)

    def _train_on(self, model: torch.nn.Module, tokenizer: Any) -> int:
        return fine_tune(
            model,
            tokenizer,
            self.splits.train,
            self.asked.again,
            1000 + self.seed,
            show=lambda done, steps: self.show(f"seed {self.seed}, training on", done, steps),
        )

    def _prune(
        self, method: Method, keep: float, draw: int
    ) -> tuple[torch.nn.Module, Any, dict[str, Any]]:
        model, tokenizer = self.trained.load()
        calibration = self._calibration(method.sentences).batches
        started = time.process_time()
        if method.name == RANDOM:
            options: dict[str, Any] = {"seed": 1000 * self.seed + draw}
        elif method.one_shot:
            options = {"scores": self.scores(method.label.removesuffix(COMPENSATED))}
        elif method.by_removal:
            options = {"scores": self._removal_scores(method)}
        else:
            options = method.settings
        found = prune(
            model,
            keep,
            method.name,
            calibration,
            objective=OBJECTIVE,
            compensate=method.compensate,
            **options,
        )
        seconds = time.process_time() - started
        if method.by_removal:
            seconds += self.removal(method)["seconds"]
        apply(model, found)
        whole = isinstance(found, _C.StaticPruning)
        mask = found.heads if whole else found
        about = {
            "mask": mask.keep.int().tolist(),
            "units": _open_units(found.gates) if whole else {},
            "kept_heads": mask.count,
            "parameters": _parameters(model),
            "seconds": seconds,
        }
        return model, tokenizer, about


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _open_units(gates: _C.GateSet) -> dict[str, Any]:
    """What stays beside heads, as 0 and 1: neurons, whole blocks, dimensions of the stream."""
    found = {name: getattr(gates, name) for name in UNITS}
    return {name: (gate != 0).int().tolist() for name, gate in found.items() if gate is not None}


def check_cut(model: torch.nn.Module, heads: int, parameters: int) -> None:
    """Refuse to time a model that is only masked: a mask is no speed-up.

    Args:
        model: attached.
        heads: that should be left.
        parameters: that should be left.

    Raises:
        ValueError: if the model has other heads or more parameters.
    """
    left, found = gated_model(model, "latency").heads().count, _parameters(model)
    if left != heads or found > parameters:
        raise ValueError(
            f"[latency] expected a model that is cut to {heads} heads and {parameters} parameters; "
            f"found {left} heads and {found} parameters"
        )


def run_static(asked: StaticStudy, splits: Splits, results: Results, show: Show) -> dict[str, Any]:
    """Run the study, or what is left of it.

    What says most for its time comes first, so that a report of a part can be made at any time:
    one-shot methods, training on, then methods that search or train gates.

    Args:
        asked: what is asked.
        splits: of the data.
        results: where everything is kept; a run that was cut off goes on from there. Frozen ones
            give a report of what is there, and leave out the rest.
        show: told (step, done, total).

    Returns:
        dict: rows, comparisons, agreement, stability, latency; JSON values.

    Raises:
        ValueError: for settings against the rules, or a model that did not learn its task.
    """
    asked.check()
    subjects = []
    for seed in asked.seeds:
        subject = StudySubject(asked, splits, results, seed, show)
        if _there(lambda subject=subject: subject.check()) is not None:
            subjects.append(subject)
    if not subjects:
        raise ValueError("[static] expected at least one fine-tuned model; found none yet")
    dense = [subject.dense() for subject in subjects]
    report: dict[str, Any] = {
        "experiment": "static",
        "asked": asked.to_json(),
        "seeds": [subject.seed for subject in subjects],
        "data": splits.hashes(),
        "sentences": {name: len(getattr(splits, name)) for name in splits.hashes()},
        "dropped_from_train": splits.dropped,
        "validation": [subject.check() for subject in subjects],
        "dense": _row("dense", 1.0, dense, dense),
        "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads()},
    }
    scores = _all_scores(asked, subjects)
    _fill_in_order(asked, subjects)
    report["scores"] = {
        name: [each.values.tolist() for each in runs] for name, runs in scores.items()
    }
    report["rows"], report["refused"] = _all_rows(asked, subjects, dense)
    report["agreement"] = _agreement(scores)
    report["stability"] = _stability(asked, subjects)
    report["latency"] = _latency(asked, subjects[0], results)
    report["tuned"] = _tuned(asked, subjects)
    return report


def _fill_in_order(asked: StaticStudy, subjects: Sequence[StudySubject]) -> None:
    """Have every result computed; what is told of them follows another order."""

    def without_training(labels: list[str]) -> None:
        for label in labels:
            draws = asked.draws if method_of(label).name == RANDOM else 1
            for keep in asked.keeps:
                _pruned(subjects, label, keep, draws)

    without_training([label for label in asked.methods if method_of(label).one_shot])
    _tuned(asked, subjects)
    without_training([label for label in asked.methods if not method_of(label).one_shot])


def _there(compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except Missing:
        return None


def _row(
    label: str, keep: float, outcomes: Sequence[Outcome], dense: Sequence[Outcome]
) -> dict[str, Any]:
    pairs = list(zip(outcomes, dense, strict=True))
    kl = torch.stack([each.kl_from(whole) for each, whole in pairs])
    over = "both" if len(kl) > 1 else "examples"
    interval = _C.bootstrap_mean(kl, over=over)
    return {
        "method": label,
        "keep": keep,
        **accuracy_interval([each.right for each in outcomes]),
        "kl": interval.mean,
        "kl_lower": interval.lower,
        "kl_upper": interval.upper,
        "flips": sum(each.flips_from(whole) for each, whole in pairs) / len(pairs),
    }


def _all_scores(
    asked: StaticStudy, subjects: Sequence[StudySubject]
) -> dict[str, list[_C.HeadScores]]:
    found: dict[str, list[_C.HeadScores]] = {}
    for label in asked.methods:
        method = method_of(label)
        if not method.one_shot or method.compensate:
            continue
        try:
            runs = [_there(lambda s=subject, label=label: s.scores(label)) for subject in subjects]
        except ValueError:
            continue
        if None not in runs:
            found[label] = runs
    return found


def _all_rows(
    asked: StaticStudy, subjects: Sequence[StudySubject], dense: Sequence[Outcome]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, refused = [], []
    for keep in asked.keeps:
        right: dict[str, BySeed] = {}
        kl: dict[str, BySeed] = {}
        here: dict[str, dict[str, Any]] = {}
        for label in (RANDOM, MICHEL, *asked.methods):
            if label in here:
                continue
            draws = asked.draws if method_of(label).name == RANDOM else 1
            found = _pruned(subjects, label, keep, draws)
            if found is None:
                continue
            reasons = [one.found["refused"] for runs in found for one in runs if not one.outcome]
            if reasons:
                refused.append({"method": label, "keep": keep, "reason": reasons[0]})
                continue
            answers = [torch.stack([one.outcome.right for one in runs]) for runs in found]
            right[label] = [each[0] if draws == 1 else each.double().mean(0) for each in answers]
            kl[label] = [
                torch.stack([one.outcome.kl_from(of) for one in runs]).mean(0)
                for runs, of in zip(found, dense, strict=True)
            ]
            by_draw = [
                _row(label, keep, [runs[draw].outcome for runs in found], dense)
                for draw in range(draws)
            ]
            row = {**by_draw[0], **accuracy_interval(right[label])}
            for name in ("kl", "kl_lower", "kl_upper", "flips"):
                row[name] = sum(each[name] for each in by_draw) / draws
            for name in ("kept_heads", "parameters", "seconds"):
                values = [one.found[name] for runs in found for one in runs]
                row[name] = sum(values) / len(values)
            if method_of(label).one_shot:
                scoring = [subject.scoring_seconds(label) for subject in subjects]
                row["seconds"] += sum(scoring) / len(scoring)
            row["budget"] = method_of(label).budget
            if draws > 1:
                row["draws"] = [float(one.mean()) for each in answers for one in each.double()]
            here[label] = row
        _compare_all(here, *(_of_heads(each) for each in (right, kl)))
        rows += here.values()
    return rows, refused


def _pruned(
    subjects: Sequence[StudySubject], label: str, keep: float, draws: int
) -> list[list[Pruned]] | None:
    return _there(
        lambda: [
            [subject.pruned(label, keep, draw) for draw in range(draws)] for subject in subjects
        ]
    )


def _of_heads(found: dict[str, BySeed]) -> dict[str, BySeed]:
    """Those of methods whose share is one of heads."""
    return {label: each for label, each in found.items() if method_of(label).budget == "heads"}


def _compare_all(
    rows: dict[str, dict[str, Any]], right: dict[str, BySeed], kl: dict[str, BySeed]
) -> None:
    """Add to rows of one share how much better they are than random and than Michel's."""
    for against in (RANDOM, MICHEL):
        if against not in right:
            continue
        family = {
            label: compare(right[against], right[label]) for label in right if label != against
        }
        with_holm(family)
        for label, each in family.items():
            below = compare(kl[label], kl[against])
            each["kl_below"] = {name: below[name] for name in ("difference", "lower", "upper")}
            rows[label][f"against_{against}"] = each


def _agreement(scores: dict[str, list[_C.HeadScores]]) -> dict[str, Any] | None:
    if len(scores) < 2:
        return None
    # Values alone: that methods see different numbers of sentences is said beside.
    values = {name: [each.values for each in runs] for name, runs in scores.items()}
    return json.loads(agreement(values).to_json())


def _stability(asked: StaticStudy, subjects: Sequence[StudySubject]) -> list[dict[str, Any]]:
    found = []
    for keep in asked.keeps:
        for label in asked.methods:
            if method_of(label).compensate or len(subjects) < 2:
                continue
            runs = _pruned(subjects, label, keep, 1)
            if runs is None or any(one.outcome is None for (one,) in runs):
                continue
            masks = [torch.tensor(one.found["mask"]) for (one,) in runs]
            if all(bool(mask.all()) for mask in masks):
                continue
            index = json.loads(stability(masks).to_json())
            del index["frequency"]
            found.append({"method": label, "keep": keep, **index})
    return found


def _latency(asked: StaticStudy, subject: StudySubject, results: Results) -> list[dict[str, Any]]:
    """Milliseconds of dense and pruned models side by side, the heads cut out."""
    if asked.rounds == 0:
        return []
    found = []
    for keep in asked.keeps:
        runs = {label: _pruned([subject], label, keep, 1) for label in asked.methods}
        cut = {
            label: {name: one[0][0].found[name] for name in CUT}
            for label, one in runs.items()
            if one is not None and one[0][0].outcome is not None
        }
        for size in (1, 32):

            def compute(cut=cut, keep=keep, size=size) -> dict[str, Any]:
                return _measure(asked, subject, cut, keep, size)

            asked_now = {
                "cut": cut,
                "keep": keep,
                "batch": size,
                "rounds": asked.rounds,
                "model": subject.trained.configuration,
            }
            ms = _there(lambda: results.get("latency", asked_now, compute))  # noqa: B023
            if ms is not None:
                found.append({"keep": keep, "batch": size, "ms": ms})
    return found


def _measure(
    asked: StaticStudy, subject: StudySubject, cut: dict[str, Any], keep: float, size: int
) -> dict[str, float]:
    dense, tokenizer = subject.trained.load()
    models = {"dense": dense} | {label: subject.cut_model(found) for label, found in cut.items()}
    picked = subject.splits.test[: 8 * size]
    batches = []
    for first in range(0, len(picked), size):
        batch = encode(tokenizer, picked[first : first + size])
        del batch["labels"]
        batches.append(batch)
    ways = {
        name: (lambda batch, model=model: model(**batch).logits) for name, model in models.items()
    }
    times, _ = interleaved(
        ways,
        batches,
        asked.rounds,
        lambda done, total: subject.show(f"latency at {keep:g}, batch {size}", done, total),
    )
    return times


def _tuned(asked: StaticStudy, subjects: Sequence[StudySubject]) -> dict[str, Any] | None:
    """Rows after training on; every arm, the dense one too, had the same number of steps."""
    dense = _there(lambda: [subject.dense_trained_on() for subject in subjects])
    if dense is None:
        return None
    reference = [outcome for outcome, _ in dense]
    rows = [_row("dense", 1.0, reference, reference)]
    steps = {"dense": {count for _, count in dense}}
    for keep in asked.tuned_keeps:
        for label in asked.tuned:
            runs = _there(
                lambda label=label, keep=keep: [
                    subject.pruned(label, keep, tuned=True) for subject in subjects
                ]
            )
            if runs is None or any(run.outcome is None for run in runs):
                continue
            steps[f"{label} at {keep:g}"] = {run.found["steps"] for run in runs}
            outcomes = [run.outcome for run in runs]
            right = [each.right for each in outcomes]
            against = compare([each.right for each in reference], right)
            row = _row(label, keep, outcomes, reference)
            rows.append(row | {"against_dense": against})
    if any(counts != steps["dense"] for counts in steps.values()):
        raise ValueError(f"[static] expected the same number of steps in all arms; found {steps}")
    return {"rows": rows, "steps": sorted(steps["dense"])}
