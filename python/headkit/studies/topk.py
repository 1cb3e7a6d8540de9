"""Remove the most important, the least important, or random heads: does importance say anything?

After Kapoor's experiment, without its defects: heads are scored on the fine-tuned model, by data
apart from the test; arms share one allocation rule, one start and one number of steps; random is
drawn several times; seeds and examples are resampled; the whole test file is read.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from headkit import _C
from headkit.pruning import apply
from headkit.scoring import score
from headkit.studies.arms import check_arms, removed_by, single_heads
from headkit.studies.comparison import accuracy_interval, compare, with_holm
from headkit.studies.fine_tuned import FineTuned, Show
from headkit.studies.outcome import Outcome, outcome_of
from headkit.studies.recipe import Recipe, fine_tune
from headkit.studies.results import Results
from headkit.studies.splits import Splits

REMOVING = ("top", "bottom", "random")
PAIRS = (
    *(("top", "bottom"), ("top", "random"), ("random", "bottom")),
    *(("dense", "top"), ("dense", "bottom"), ("dense", "random")),
)
LEAST_DRAWS, LEAST_SEEDS = 5, 2


@dataclass(frozen=True)
class TopK:
    """What is asked of the experiment.

    Attributes:
        model: as for ``open_subject``.
        ks: values of K; an arm removes K heads for each layer of the model.
        seeds: of fine-tuning, at least two.
        metric: a name in ``headkit.scorers()``.
        allocation: ``"global"``: K * layers heads wherever they are; ``"layer"``: K in each layer.
        draws: random masks for each seed and K without training, at least five.
        recipe: of fine-tuning.
        again: of fine-tuning after removal, in every arm; None = only without.
        single_head: whether one head for each layer is tried too.
    """

    model: str
    ks: tuple[int, ...] = (1, 2, 4, 6, 8, 10)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    metric: str = "gate_gradient"
    allocation: str = "global"
    draws: int = 5
    recipe: Recipe = field(default_factory=Recipe)
    again: Recipe | None = field(default_factory=lambda: Recipe(epochs=1, learning_rate=2e-5))
    single_head: bool = True

    def check(self) -> None:
        """Refuse what cannot end in a comparison.

        Raises:
            ValueError: for fewer than two seeds, fewer than five draws, no K or an unknown metric.
        """
        if len(set(self.seeds)) < max(LEAST_SEEDS, len(self.seeds)):
            raise ValueError(
                f"[topk] expected at least {LEAST_SEEDS} different seeds; found {list(self.seeds)}"
            )
        if self.draws < LEAST_DRAWS:
            raise ValueError(
                f"[topk] expected at least {LEAST_DRAWS} random draws; found {self.draws}"
            )
        if not self.ks or len(set(self.ks)) < len(self.ks) or min(self.ks) < 1:
            raise ValueError(f"[topk] expected different K above 0; found {list(self.ks)}")
        if self.metric not in _C.scorers() or self.metric == "random":
            known = ", ".join(name for name in _C.scorers() if name != "random")
            raise ValueError(f"[topk] expected a metric of {known}; found {self.metric!r}")

    def to_json(self) -> dict[str, Any]:
        """All settings."""
        return json.loads(json.dumps(asdict(self)))


class Subject(FineTuned):
    """The fine-tuned model of one seed, and what is left of it without some heads."""

    def __init__(self, asked: TopK, splits: Splits, results: Results, seed: int, show: Show):
        super().__init__(asked.model, asked.recipe, splits, results, seed, show)
        self.asked = asked

    def scores(self, metric: str, seed: int = 0) -> _C.HeadScores:
        """Scores of the fine-tuned model on calibration sentences."""

        def compute() -> str:
            model = self._fresh[0]
            batches = self._calibration().batches
            return score(model, batches, metric, "cross_entropy", seed=seed).to_json()

        return _C.HeadScores.from_json(
            self._get("scores", {"metric": metric, "score_seed": seed}, compute)
        )

    def mask(self, arm: str, k: int, draw: int = 0) -> _C.HeadMask:
        """What an arm leaves."""
        metric = "random" if arm == "random" else self.asked.metric
        order = self.scores(metric, 1000 * self.seed + draw if arm == "random" else 0)
        return removed_by(order, k, arm, self.asked.allocation)

    def outcome(self, mask: _C.HeadMask | None) -> Outcome:
        """The test set under a mask, removed for real, without training; None = dense."""

        def compute() -> Any:
            model, _ = self._fresh if mask is None else self.trained.load()
            if mask is not None:
                apply(model, mask)
            return outcome_of(model, self._test).to_json()

        asked = {"keep": None if mask is None else mask.keep.int().tolist()}
        return Outcome.from_json(self._get("outcomes", asked, compute), self.labels)

    def retrained(self, mask: _C.HeadMask | None, show: Show) -> tuple[Outcome, int]:
        """The test set after the model was trained on, from the same start; and the steps of that.

        Args:
            mask: what is removed before; None = dense.
            show: told of steps.
        """

        def compute() -> Any:
            model, tokenizer = self.trained.load()
            if mask is not None:
                apply(model, mask)
            steps = fine_tune(
                model,
                tokenizer,
                self.splits.train,
                self.asked.again,
                1000 + self.seed,
                show=lambda done, total: show(f"training on, seed {self.seed}", done, total),
            )
            return {"logits": outcome_of(model, self._test).to_json(), "steps": steps}

        asked = {
            "keep": None if mask is None else mask.keep.int().tolist(),
            "again": self.asked.again.to_json(),
        }
        found = self._get("retrained", asked, compute)
        return Outcome.from_json(found["logits"], self.labels), found["steps"]

    def alone(self, show: Show) -> list[list[float]]:
        """Calibration loss with one head of a layer alone, other layers dense, [layers, heads]."""

        def compute() -> Any:
            model, _ = self._fresh
            from headkit.huggingface import attached

            layout = attached(model, "topk").layout()
            calibration = self._calibration()
            losses = []
            for layer in range(layout.layers):
                losses.append([])
                for head in range(layout.heads):
                    keep = torch.ones(layout.layers, layout.heads)
                    keep[layer] = 0
                    keep[layer, head] = 1
                    losses[-1].append(outcome_of(model, calibration, keep).loss)
                    show(
                        f"one head a layer, seed {self.seed}",
                        layer * layout.heads + head + 1,
                        layout.layers * layout.heads,
                    )
            return losses

        return self._get("alone", {}, compute)


def run_topk(asked: TopK, splits: Splits, results: Results, show: Show) -> dict[str, Any]:
    """Run the experiment, or what is left of it.

    Args:
        asked: what is asked.
        splits: of the data.
        results: where everything is kept; a run that was cut off goes on from there.
        show: told (step, done, total).

    Returns:
        dict: rows, comparisons with p values, ends; JSON values.

    Raises:
        ValueError: for settings that cannot be, a model that did not learn its task, or arms that
            cannot be compared.
        RuntimeError: if no gate reaches the loss.
    """
    asked.check()
    subjects = [Subject(asked, splits, results, seed, show) for seed in asked.seeds]
    for subject in subjects:
        subject.check()
    scores = [subject.scores(asked.metric) for subject in subjects]
    layers, heads = scores[0].values.shape
    if max(asked.ks) > heads:
        raise ValueError(
            f"[topk] expected K from 1 to {heads}, the heads of a layer; found {max(asked.ks)}"
        )
    rows: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for training in (False, True) if asked.again is not None else (False,):
        found = _arms(asked, subjects, training, show)
        rows += found[0]
        comparisons += found[1]
    report = {
        "experiment": "topk",
        "asked": asked.to_json(),
        "layers": layers,
        "heads": heads,
        "data": splits.hashes(),
        "sentences": {name: len(getattr(splits, name)) for name in splits.hashes()},
        "dropped_from_train": splits.dropped,
        "scored_on": "calibration, cut from the training file, never trained on",
        "fine_tuning_steps": [subject.trained.steps for subject in subjects],
        "fingerprints": [subject.trained.fingerprint for subject in subjects],
        "scores": [each.values.tolist() for each in scores],
        "rows": rows,
        "comparisons": comparisons,
        "no_heads": _no_heads(subjects, layers, heads),
    }
    if asked.single_head:
        report["single_head"] = _single_head(asked, subjects, show)
    return report


def _arms(
    asked: TopK, subjects: Sequence[Subject], training: bool, show: Show
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    draws = 1 if training else asked.draws
    total = len(subjects) * (1 + len(asked.ks) * (2 + draws))
    name = "arms after training on" if training else "arms without training"
    done = 0
    dense: list[torch.Tensor] = []
    right: dict[tuple[str, int], list[torch.Tensor]] = {}
    drawn: dict[int, list[torch.Tensor]] = {k: [] for k in asked.ks}
    steps: dict[tuple[str, int], int] = {}

    def run(subject: Subject, mask: _C.HeadMask | None) -> tuple[torch.Tensor, int]:
        nonlocal done
        if training:
            outcome, extra = subject.retrained(mask, show)
        else:
            outcome, extra = subject.outcome(mask), 0
        done += 1
        show(name, done, total)
        return outcome.right, subject.trained.steps + extra

    for subject in subjects:
        answer, dense_steps = run(subject, None)
        dense.append(answer)
        for k in asked.ks:
            masks, counts = {}, {"dense": dense_steps}
            for arm in REMOVING:
                tried = []
                for draw in range(draws if arm == "random" else 1):
                    label = f"{arm} {draw}"
                    masks[label] = subject.mask(arm, k, draw)
                    answer, counts[label] = run(subject, masks[label])
                    tried.append(answer)
                right.setdefault((arm, k), []).append(
                    tried[0] if len(tried) == 1 else torch.stack(tried).double().mean(0)
                )
                if arm == "random":
                    drawn[k] += [each.double().mean() for each in tried]
            check_arms(masks, counts, asked.allocation)
            steps[("all", k)] = dense_steps

    rows = [{"arm": "dense", "k": 0, "trained": training, **accuracy_interval(dense)}]
    comparisons = []
    for k in asked.ks:
        for arm in REMOVING:
            row = {"arm": f"removes {arm}", "k": k, "trained": training}
            rows.append(row | accuracy_interval(right[arm, k]) | {"steps": steps["all", k]})
            if arm == "random":
                rows[-1]["draws"] = [float(each) for each in drawn[k]]
    for a, b in PAIRS:
        family = {}
        for k in asked.ks:
            first = dense if a == "dense" else right[a, k]
            family[k] = compare(first, right[b, k])
        with_holm(family)
        comparisons += [
            {"a": a, "b": b, "k": k, "trained": training, **each} for k, each in family.items()
        ]
    return rows, comparisons


def _no_heads(subjects: Sequence[Subject], layers: int, heads: int) -> dict[str, Any]:
    """The end point: without heads an encoder that reads one place answers one class."""
    empty = _C.HeadMask(torch.zeros(layers, heads, dtype=torch.bool))
    outcomes = [subject.outcome(empty) for subject in subjects]
    return {
        "accuracy": [each.accuracy for each in outcomes],
        "share_of_one_class": [each.one_class for each in outcomes],
    }


def _single_head(asked: TopK, subjects: Sequence[Subject], show: Show) -> dict[str, Any]:
    """One head in place of many, weights kept: in one layer, then in all, then trained on."""
    chosen = []
    for subject in subjects:
        losses = subject.alone(show)
        chosen.append([min(range(len(row)), key=row.__getitem__) for row in losses])
    layers, heads = len(chosen[0]), len(subjects[0].alone(show)[0])
    by_layer = []
    for layer in range(layers):
        right = []
        for subject, best in zip(subjects, chosen, strict=True):
            keep = torch.ones(layers, heads, dtype=torch.bool)
            keep[layer] = False
            keep[layer, best[layer]] = True
            right.append(subject.outcome(_C.HeadMask(keep)).right)
        dense = [subject.outcome(None).right for subject in subjects]
        by_layer.append(
            {"layer": layer, "heads": [best[layer] for best in chosen], **compare(dense, right)}
        )
    report: dict[str, Any] = {
        "chosen_on": "calibration loss, other layers dense",
        "one_layer": by_layer,
        "all_layers": [],
    }
    for training in (False, True) if asked.again is not None else (False,):
        found: dict[str, list[torch.Tensor]] = {"dense": [], "best": [], "random": []}
        for subject, best in zip(subjects, chosen, strict=True):
            values = subject.scores("random", 1000 * subject.seed).values
            arms = {
                "dense": None,
                "best": single_heads(best, heads),
                "random": single_heads(values.argmax(1).tolist(), heads),
            }
            for arm, mask in arms.items():
                outcome = subject.retrained(mask, show)[0] if training else subject.outcome(mask)
                found[arm].append(outcome.right)
        report["all_layers"].append(
            {
                "trained": training,
                **{arm: accuracy_interval(each) for arm, each in found.items()},
                "best_against_dense": compare(found["dense"], found["best"]),
                "best_against_random": compare(found["random"], found["best"]),
            }
        )
    return report
