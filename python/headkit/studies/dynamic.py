"""Dynamic against static pruning at equal measured time and FLOPs, on three tasks."""

import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from headkit import _C
from headkit.demo.timing import interleaved
from headkit.studies.dynamic_arms import Arm, Arms
from headkit.studies.dynamic_rungs import GREEDY, Choices
from headkit.studies.dynamic_task import (
    BATCH,
    DigitsTask,
    EmbeddingTask,
    FashionTask,
    SentenceTask,
    Task,
)
from headkit.studies.equal_cost import Point, against
from headkit.studies.fine_tuned import Show
from headkit.studies.kept_budget import kept
from headkit.studies.methods import VARIANTS
from headkit.studies.realised_risk import Knob, realised_risk
from headkit.studies.recipe import Recipe
from headkit.studies.results import Missing, Results
from headkit.studies.splits import Splits

TASKS = ("sst2", "embedding", "digits")
# Tasks of images need no sentences; that of clothes is run where it is asked for.
IMAGES: dict[str, type[DigitsTask]] = {"digits": DigitsTask, "fashion": FashionTask}
KNOWN = (*TASKS, "fashion")
COSTS = ("time", "flops")


@dataclass(frozen=True)
class DynamicStudy:
    """What is asked of the study.

    Attributes:
        tasks: of ``KNOWN``.
        model: as for ``open_subject``.
        seeds: of fine-tuning; the embedding task has one model.
        budgets: shares of the dense FLOPs, without training.
        trained_budgets: the same of arms whose rungs are trained; empty = none.
        draws: random rungs for each seed and budget.
        oracle: examples of the greedy oracle; 0 = none.
        oracle_step: heads that it closes at once.
        rounds: of the measurement of time; 0 = none.
        targets: of milliseconds that a controller keeps, as shares of dense; with ``rounds``.
        risks: mean shares of flipped labels that are promised.
        splits: random halves on which a promise is tried.
        recipe: of fine-tuning.
        choices: what arms choose from.
        digits: other sizes, recipe or parts of the tasks of images.
    """

    tasks: tuple[str, ...] = TASKS
    model: str = "minilm"
    seeds: tuple[int, ...] = (0, 1, 2)
    budgets: tuple[float, ...] = (0.75, 0.6, 0.5, 0.4, 0.3)
    trained_budgets: tuple[float, ...] = (0.5, 0.4, 0.6)
    draws: int = 3
    oracle: int = 64
    oracle_step: int = 6
    rounds: int = 5
    targets: tuple[float, ...] = (0.9, 0.75, 0.6)
    risks: tuple[float, ...] = (0.01, 0.02, 0.05)
    splits: int = 100
    recipe: Recipe = field(default_factory=Recipe)
    choices: Choices = field(default_factory=Choices)
    digits: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot end in a comparison.

        Raises:
            ValueError: for an unknown task, no seed, equal seeds, a budget outside 0 to 1, or a
                negative count.
        """
        unknown = [name for name in self.tasks if name not in KNOWN]
        if unknown or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"[dynamic] expected different tasks of {', '.join(KNOWN)}; found "
                f"{', '.join(self.tasks) or 'none'}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"[dynamic] expected different seeds; found {list(self.seeds)}")
        for name in ("budgets", "trained_budgets", "targets", "risks"):
            for share in getattr(self, name):
                if not 0 < share < 1:
                    raise ValueError(f"[dynamic] expected {name} between 0 and 1; found {share:g}")
        known = (GREEDY, *VARIANTS, *(name for name in _C.scorers() if name != "random"))
        for name in self.choices.metrics or ("none",):
            if name not in known:
                raise ValueError(f"[dynamic] expected orders of {', '.join(known)}; found {name!r}")
        if not self.budgets:
            raise ValueError("[dynamic] expected budgets; found none")
        if self.splits < 2:
            raise ValueError(f"[dynamic] expected splits >= 2; found {self.splits}")
        for name in ("draws", "oracle", "rounds"):
            if getattr(self, name) < 0:
                raise ValueError(f"[dynamic] expected {name} >= 0; found {getattr(self, name)}")
        if self.oracle_step < 1:
            raise ValueError(f"[dynamic] expected oracle_step >= 1; found {self.oracle_step}")

    def to_json(self) -> dict[str, Any]:
        """All settings."""
        settings = asdict(self) | {"digits": {name: str(v) for name, v in self.digits.items()}}
        return json.loads(json.dumps(settings))


class Subject:
    """One task and seed: its arms, and what could not be had."""

    def __init__(self, asked: DynamicStudy, task: Task):
        self.asked, self.task = asked, task
        self.arms = Arms(task, asked.choices)
        self.found: dict[str, Arm] = {}
        self.random: dict[float, list[Arm]] = {}
        self.refused: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.greedy: dict[str, Any] | None = None
        self.drift: dict[str, Any] | None = None
        self.knob: Knob | None = None
        self.kept: list[dict[str, Any]] = []

    def _try(self, name: str, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except Missing:
            return None
        except ValueError as error:
            self.refused[name] = str(error)
            return None

    def _add(self, name: str, compute: Callable[[], Arm]) -> None:
        arm = self._try(name, compute)
        if arm is not None:
            self.found[arm.name] = arm

    def without_training(self) -> None:
        """Arms of the model as it is; those that say most first."""
        arms, classifies = self.arms, self.task.classifies
        self._add("dense", arms.dense)
        for budget in self.asked.budgets:
            self._add(f"static at {budget:g}", lambda b=budget: arms.static(b))
        ways = [arms.reactivation, arms.linear_gate, arms.layer_gate, arms.escalation_oracle]
        for way in ([arms.escalation] if classifies else []) + ways:
            for budget in self.asked.budgets:
                self._add(f"{way.__name__} at {budget:g}", lambda w=way, b=budget: w(b))

    def with_training(self) -> None:
        """Arms whose rungs are trained."""
        arms = self.arms
        for budget in self.asked.trained_budgets:
            for way in (
                arms.static,
                *((arms.escalation,) if self.task.classifies else ()),
                arms.reactivation,
            ):
                self._add(
                    f"{way.__name__} trained at {budget:g}",
                    lambda w=way, b=budget: w(b, trained=True),
                )
        if self.asked.trained_budgets:
            self.drift = self._try("drift", arms.drift)
        if self.task.classifies:
            trained = bool(self.asked.trained_budgets)
            self.knob = self._try("promise", lambda: arms.knob(trained=trained))

    def beside(self) -> None:
        """What the arms are measured against: random rungs, stages left out, the greedy oracle."""
        arms = self.arms
        middle = min(self.asked.budgets, key=lambda budget: abs(budget - 0.5))
        self._add("nothing added", lambda: arms.static(middle, compensate=False))
        for units in ("heads", "neurons"):
            self._add(f"only {units}", lambda u=units: arms.only(u, middle))
        for budget in self.asked.budgets:
            draws = [
                self._try(f"random at {budget:g}", lambda b=budget, d=draw: arms.random(b, d))
                for draw in range(self.asked.draws)
            ]
            if draws and None not in draws:
                self.random[budget] = draws
        if self.asked.oracle:
            self.greedy = self._try(
                "greedy oracle",
                lambda: arms.greedy_oracle(middle, self.asked.oracle, self.asked.oracle_step),
            )

    def timed(self) -> None:
        """Seconds of the test data, all arms side by side."""
        deployed = {n: arm for n, arm in self.found.items() if arm.kind in ("static", "dynamic")}
        if not self.asked.rounds or not deployed:
            return
        asked = {
            "arms": {name: arm.chosen for name, arm in deployed.items()},
            "rounds": self.asked.rounds,
            "threads": torch.get_num_threads(),
            "batch": BATCH,
        }
        found = self._try(
            "time", lambda: self.task.get("dynamic_seconds", asked, lambda: self._measure(deployed))
        )
        self.seconds = found or self.seconds

    def _measure(self, deployed: dict[str, Arm]) -> dict[str, float]:
        task, part = self.task, self.task.part("test")
        plain, attached = task.plain(), self.arms.opened().module
        ways: dict[str, Callable[[Any], Any]] = {
            "transformers": lambda batch: task.forward(plain, batch),
            "dense": lambda batch: task.forward(attached, batch),
            **{name: self.arms.runner(arm) for name, arm in deployed.items()},
        }
        seconds = dict.fromkeys(ways, 0.0)
        for done, batch in enumerate(part.batches):
            times, _ = interleaved(ways, [batch], self.asked.rounds)
            for name, ms in times.items():
                seconds[name] += ms / 1000
            task.tell("measuring time", done + 1, len(part.batches))
        return seconds

    def controlled(self) -> None:
        """Escalation of sentences at about half the FLOPs, under targets of time."""
        names = [
            f"escalation {how}at {b:g}" for how in ("trained ", "") for b in self.asked.budgets
        ]
        arm = next((self.found[name] for name in names if name in self.found), None)
        if not self.asked.rounds or arm is None or not isinstance(self.task, SentenceTask):
            return
        for share in self.asked.targets:
            found = self._try(
                f"a target of {share:g}", lambda s=share, a=arm: self.arms.kept_budget(a, s)
            )
            if found is not None:
                self.kept.append(found)

    def cost(self, name: str, kind: str) -> float | None:
        """Seconds, or FLOPs as a share of dense, of an arm."""
        if kind == "time":
            return self.seconds.get(name)
        part, arm = self.task.part("test"), self.found[name]
        weight = self.arms.dense_flops(part)
        return float((arm.flops * weight).sum() / weight.sum())

    def quality(self, arm: Arm, measure: str) -> torch.Tensor:
        """Agreement with dense, or minus the divergence from it, of each example."""
        dense = self.found["dense"].outputs
        if measure == "agreement":
            return self.task.agreement(arm.outputs, dense)
        return -self.task.divergence(arm.outputs, dense)


def subjects_of(
    asked: DynamicStudy, splits: Splits | None, results: Results, show: Show
) -> Iterator[list[Subject]]:
    """The subjects of each task, by seed."""
    for name in asked.tasks:
        if name in IMAGES:
            tasks: list[Task] = [
                IMAGES[name](results, seed, show, **asked.digits) for seed in asked.seeds
            ]
        elif splits is None:
            raise ValueError(f"[dynamic] expected sentences for the task {name}; found none")
        elif name == "embedding":
            tasks = [EmbeddingTask(asked.model, splits, results, show)]
        else:
            tasks = [
                SentenceTask(asked.model, asked.recipe, splits, results, seed, show)
                for seed in asked.seeds
            ]
        yield [Subject(asked, task) for task in tasks]


def run_dynamic(
    asked: DynamicStudy, splits: Splits | None, results: Results, show: Show
) -> dict[str, Any]:
    """Run the study, or what is left of it.

    Every seed's arms without training come first, then training, time, and what is beside it.

    Args:
        asked: what is asked.
        splits: of the sentences; None with the digits task alone.
        results: where everything is kept; a run that was cut off goes on from there. Frozen ones
            give a report of what is there.
        show: told (step, done, total).

    Returns:
        dict: by task, rows, comparisons, distributions; JSON values.

    Raises:
        ValueError: for settings that cannot be, a model that did not learn its task, or frozen
            results without any arm.
    """
    asked.check()
    every = list(subjects_of(asked, splits, results, show))
    there: list[list[Subject]] = []
    for subjects in every:
        kept = [each for each in subjects if _learnt(each)]
        there.append(kept)
    stages = ("without_training", "with_training", "timed", "controlled", "beside")
    for stage in stages:
        for subjects in there:
            for subject in subjects:
                getattr(subject, stage)()
    told = {}
    for name, subjects in zip(asked.tasks, there, strict=True):
        whole = [each for each in subjects if "dense" in each.found]
        if whole:
            told[name] = _task_report(whole)
    if not told:
        raise ValueError("[dynamic] expected results of at least one task; found none yet")
    return {
        "experiment": "dynamic",
        "asked": asked.to_json(),
        "machine": {"cpu": platform.processor(), "threads": torch.get_num_threads()},
        "tasks": told,
    }


def _learnt(subject: Subject) -> bool:
    try:
        subject.task.check()
        return subject.task.configuration is not None
    except Missing:
        return False


def _task_report(subjects: Sequence[Subject]) -> dict[str, Any]:
    names = dict.fromkeys(name for subject in subjects for name in subject.found)
    task = subjects[0].task
    return {
        "classifies": task.classifies,
        "seeds": [subject.task.seed for subject in subjects],
        "examples": len(task.part("test").labels),
        "rows": [_row(subjects, name) for name in names] + _random_rows(subjects),
        "comparisons": _comparisons(subjects),
        "inputs": _inputs(subjects),
        "oracle": _oracle(subjects),
        "drift": _drift(subjects),
        "promises": _promises(subjects),
        "kept": [
            {"seed": each.task.seed, **found, **kept(found)}
            for each in subjects
            for found in each.kept
        ],
        "reference_seconds": _mean(
            [each.seconds["transformers"] for each in subjects if "transformers" in each.seconds]
        ),
        "refused": sorted({(name, why) for s in subjects for name, why in s.refused.items()}),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _interval(values: Sequence[torch.Tensor]) -> dict[str, float]:
    table = torch.stack([each.double() for each in values])
    found = _C.bootstrap_mean(table, over="both" if len(table) > 1 else "examples")
    return {"mean": found.mean, "lower": found.lower, "upper": found.upper}


def _quality_row(subjects: Sequence[Subject], arms: Sequence[Sequence[Arm]]) -> dict[str, Any]:
    """Quality of an arm by seed; of several draws the mean of each example."""

    def mean(measure: Callable[[Subject, Arm], torch.Tensor]) -> dict[str, float]:
        return _interval(
            [
                torch.stack([measure(subject, arm).double() for arm in draws]).mean(0)
                for subject, draws in zip(subjects, arms, strict=True)
            ]
        )

    row: dict[str, Any] = {
        "agreement": mean(lambda subject, arm: subject.quality(arm, "agreement")),
        "divergence": mean(lambda subject, arm: -subject.quality(arm, "divergence")),
        "accuracy": None,
        "heads": _mean([float(arm.heads.mean()) for draws in arms for arm in draws]),
    }
    if subjects[0].task.classifies:
        row["accuracy"] = mean(
            lambda subject, arm: arm.outputs.argmax(1) == subject.task.part("test").labels
        )
    return row


def _row(subjects: Sequence[Subject], name: str) -> dict[str, Any]:
    having = [subject for subject in subjects if name in subject.found]
    arm = having[0].found[name]
    seconds = [subject.seconds[name] for subject in having if name in subject.seconds]
    relative = [
        subject.seconds[name] / subject.seconds["transformers"]
        for subject in having
        if name in subject.seconds
    ]
    return {
        "arm": name, "way": arm.way, "budget": arm.budget, "trained": arm.trained,
        "kind": arm.kind, "seeds": len(having),
        "flops": _mean([subject.cost(name, "flops") for subject in having]),
        "seconds": _mean(seconds), "time": _mean(relative),
        **_quality_row(having, [[subject.found[name]] for subject in having]),
        "chosen": [
            {k: v for k, v in subject.found[name].chosen.items() if k not in ("probe", "policy")}
            for subject in having
        ],
    }  # fmt: skip


def _random_rows(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    rows = []
    for budget in dict.fromkeys(budget for subject in subjects for budget in subject.random):
        having = [subject for subject in subjects if budget in subject.random]
        draws = [subject.random[budget] for subject in having]
        flops = [float(arm.flops.mean()) for each in draws for arm in each]
        rows.append(
            {
                "arm": f"random at {budget:g}", "way": "random", "budget": budget,
                "trained": False, "kind": "bound", "seeds": len(having), "flops": _mean(flops),
                "seconds": None, "time": None, **_quality_row(having, draws), "chosen": [],
            }
        )  # fmt: skip
    return rows


def _comparisons(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Every dynamic arm minus the static curve with the same training, at the arm's cost."""
    found = []
    names = dict.fromkeys(
        name for subject in subjects for name, arm in subject.found.items()
        if arm.kind == "dynamic" or arm.way == "escalation, oracle"
    )  # fmt: skip
    for name in names:
        having = [subject for subject in subjects if name in subject.found]
        arm = having[0].found[name]
        for cost in COSTS:
            sides = [(subject, _curve(subject, arm.trained, cost)) for subject in having]
            sides = [
                (subject, curve)
                for subject, curve in sides
                if len(curve) > 1 and subject.cost(name, cost) is not None
            ]
            if not sides:
                continue
            entry: dict[str, Any] = {"arm": name, "cost": cost, "trained": arm.trained}
            for measure in ("agreement", "divergence"):
                curves = [
                    [
                        Point(subject.cost(other, cost), subject.quality(one, measure))
                        for other, one in curve.items()
                    ]
                    for subject, curve in sides
                ]
                points = [
                    Point(subject.cost(name, cost), subject.quality(subject.found[name], measure))
                    for subject, _ in sides
                ]
                entry[measure] = against(curves, points)
            entry["at"] = _mean([subject.cost(name, cost) for subject, _ in sides])
            found.append(entry)
    return found


def _curve(subject: Subject, trained: bool, cost: str) -> dict[str, Arm]:
    """Static arms of the same training, and the dense model at the upper end."""
    return {
        name: arm
        for name, arm in subject.found.items()
        if ((arm.way == "static" and arm.trained == trained) or arm.kind == "dense")
        and subject.cost(name, cost) is not None
    }


def _inputs(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """How much each input runs, and what that goes with."""
    found = []
    names = dict.fromkeys(
        n for subject in subjects for n, arm in subject.found.items() if arm.kind == "dynamic"
    )
    for name in names:
        having = [subject for subject in subjects if name in subject.found]
        heads = torch.cat([subject.found[name].heads for subject in having])
        flops = torch.cat([subject.found[name].flops for subject in having])
        ends = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
        entry: dict[str, Any] = {
            "arm": name,
            "heads": heads.quantile(ends).tolist(),
            "flops": flops.quantile(ends).tolist(),
            "different": len(set(heads.tolist())),
            "cheapest": float((flops < flops.min() + 0.02).double().mean()),
        }
        pairs: dict[str, list[float]] = {"length": [], "confidence": []}
        for subject in having:
            part, arm = subject.task.part("test"), subject.found[name]
            pairs["length"].append(_rank(arm.heads, part.tokens))
            if subject.task.classifies:
                sure = _C.output_confidence(subject.found["dense"].outputs)
                pairs["confidence"].append(_rank(arm.heads, sure))
        for what, values in pairs.items():
            known = [value for value in values if not math.isnan(value)]
            entry[what] = _mean(known)
        labels = torch.cat([subject.task.part("test").labels for subject in having])
        entry["by_class"] = [
            float(flops[labels == label].mean()) for label in labels.unique().tolist()
        ]
        found.append(entry)
    return found


def _rank(a: torch.Tensor, b: torch.Tensor) -> float:
    return _C.spearman(a.double().tolist(), b.double().tolist())


def _oracle(subjects: Sequence[Subject]) -> dict[str, Any] | None:
    found = [subject.greedy for subject in subjects if subject.greedy is not None]
    if not found:
        return None
    sides = [
        [torch.tensor(each[name], dtype=torch.float64) for each in found]
        for name in ("static", "oracle")
    ]
    over = "both" if len(found) > 1 else "examples"
    saved = _C.paired_bootstrap(*(torch.stack(side) for side in sides), over=over)
    return {
        "heads": found[0]["heads"],
        "examples": len(found[0]["places"]),
        "static": _mean([float(each.mean()) for each in sides[0]]),
        "oracle": _mean([float(each.mean()) for each in sides[1]]),
        "difference": saved.mean,
        "lower": saved.lower,
        "upper": saved.upper,
    }


def _drift(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """The trained ladder's top rung against the original, and its policies against that rung."""
    having = [subject for subject in subjects if subject.drift is not None]
    if not having:
        return []
    tops = [subject.drift["outputs"] for subject in having]
    rows = [{"arm": "top rung", "against": "original"}]
    rows[0] |= _agrees(having, tops, [subject.found["dense"].outputs for subject in having])
    names = dict.fromkeys(
        name for name, arm in having[0].found.items() if arm.trained and arm.kind == "dynamic"
    )
    for name in names:
        if all(name in subject.found for subject in having):
            row: dict[str, Any] = {"arm": name, "against": "top rung"}
            outputs = [subject.found[name].outputs for subject in having]
            rows.append(row | _agrees(having, outputs, tops))
    return rows


def _agrees(
    subjects: Sequence[Subject], outputs: Sequence[torch.Tensor], others: Sequence[torch.Tensor]
) -> dict[str, Any]:
    sides = list(zip(subjects, outputs, others, strict=True))
    return {
        "agreement": _interval([s.task.agreement(a, b) for s, a, b in sides]),
        "divergence": _interval([s.task.divergence(a, b) for s, a, b in sides]),
    }


def _promises(subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Risks promised and realised, each seed by its own halves of the test data."""
    having = [subject for subject in subjects if subject.knob is not None]
    rows = []
    for risk in subjects[0].asked.risks if having else ():
        try:
            found = [
                realised_risk(each.knob, risk, each.asked.splits, each.task.seed) for each in having
            ]
        except ValueError as error:
            rows.append({"promised": risk, "refused": str(error)})
            continue
        errors = [each.simulation_error for each in found]
        rows.append(
            {
                "promised": risk, "splits": having[0].asked.splits, "seeds": len(found),
                "trained": bool(having[0].asked.trained_budgets),
                "realised": _mean([each.mean for each in found]),
                "simulation_error": math.hypot(*errors) / len(errors),
                "largest": max(each.largest for each in found),
                "flops": _mean([each.flops for each in found]),
            }
        )  # fmt: skip
    return rows
