"""What ``fit`` does for each policy."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import headkit
from headkit import _C
from headkit.cli.job import Job, Show, rounded
from headkit.cli.tasks import Batch, Example

POLICIES = ("linear-gate", "layer-gate", "escalation", "reactivation")
LADDERS = ("escalation", "reactivation")
# One example in so many is kept from fitting, and as many again from that for --risk.
KEPT = 4
# With so many times the examples that a promise takes, it is made for three ranges of length.
PER_BUCKET = 6


@dataclass(frozen=True)
class Wanted:
    """The options of ``fit``.

    Attributes:
        policy: a name in POLICIES.
        mean_heads, flops: the budget; at most one.
        risk: share of labels that may change; None = nothing is promised.
        train: steps of training.
        compensate: mean outputs for what is closed.
        seed: of the split and of training.
    """

    policy: str
    mean_heads: float | None
    flops: float | None
    risk: float | None
    train: int
    compensate: bool
    seed: int

    def check(self) -> None:
        """Refuse what no model can do.

        Raises:
            ValueError: with what was expected.
        """
        if self.policy not in POLICIES:
            raise ValueError(
                f"[fit] expected --policy among {', '.join(POLICIES)}; found {self.policy!r}"
            )
        if self.mean_heads is not None and self.flops is not None:
            raise ValueError("[fit] expected --mean-heads or --flops; found both")
        if self.flops is not None and not 0 < self.flops <= 1:
            raise ValueError(f"[fit] expected --flops above 0, at most 1; found {self.flops:g}")
        if self.risk is not None and not 0 < self.risk < 1:
            raise ValueError(f"[fit] expected --risk above 0, below 1; found {self.risk:g}")

    @property
    def climbs(self) -> bool:
        """Whether the policy is a ladder."""
        return self.policy in LADDERS

    @property
    def plain(self) -> bool:
        """Whether a linear gate is all that is wanted, at a number of heads."""
        return (
            self.policy == "linear-gate"
            and self.flops is None
            and self.risk is None
            and not self.train
        )


@dataclass(frozen=True)
class Parts:
    """The examples, by what they are for."""

    train: list[Batch]
    held_out: list[Batch]
    calibration: list[Batch]


def split(job: Job, wanted: Wanted) -> Parts:
    """Cut the examples, drawn by the seed.

    Raises:
        ValueError: if there are too few.
    """
    examples = list(job.examples)
    if len(examples) < 2 * KEPT:
        raise ValueError(f"[fit] expected at least {2 * KEPT} examples; found {len(examples)}")
    random.Random(wanted.seed).shuffle(examples)
    cut = len(examples) // KEPT
    calibration: list[Example] = []
    if wanted.risk is not None:
        needed = headkit.conformal_samples_needed(wanted.risk)
        if cut < needed:
            raise ValueError(
                f"[fit] expected at least {KEPT * needed} examples for --risk {wanted.risk:g}, a "
                f"quarter of which is kept for the promise; found {len(examples)}"
            )
        calibration, examples = examples[:cut], examples[cut:]
    held_out, train = examples[:cut], examples[cut:]
    batches = job.task.batches
    return Parts(
        batches(job.opened, train),
        batches(job.opened, held_out),
        batches(job.opened, calibration) if calibration else [],
    )


def fit_policy(
    job: Job, wanted: Wanted, headed: _C.GatedModel, parts: Parts, show: Show
) -> tuple[_C.GatePolicy, dict[str, Any]]:
    """Fit a policy, and say what was found.

    Args:
        headed: the model whose output the loss reads.

    Raises:
        ValueError: if task, model and policy do not fit, or the budget cannot be met.
    """
    present = headed.heads().count
    if wanted.mean_heads is not None and not 0 < wanted.mean_heads <= present:
        raise ValueError(
            f"[fit] expected --mean-heads above 0, at most {present}; found {wanted.mean_heads:g}"
        )
    if wanted.plain:
        return _linear_gate(job, wanted, headed, parts, present, show)
    return _hybrid(job, wanted, headed, parts, present, show)


def _hybrid(
    job: Job, wanted: Wanted, headed: _C.GatedModel, parts: Parts, present: int, show: Show
) -> tuple[_C.GatePolicy, dict[str, Any]]:
    neurons = False
    if wanted.climbs:
        if headed is not job.opened.gated or job.task.GENERATES:
            raise ValueError(
                f"[fit] expected a model with a classifier for --policy {wanted.policy}; found "
                f"{type(job.opened.model).__name__}"
            )
        neurons = wanted.mean_heads is None and _attach_feed_forward(job)
        if wanted.train:
            for parameter in job.opened.model.parameters():
                parameter.requires_grad_(True)
    if wanted.flops is not None:
        budget = headkit.Budget(flops=wanted.flops)
    elif wanted.mean_heads is None and neurons:
        budget = headkit.Budget(flops=0.5)
    else:
        budget = headkit.Budget(
            mean_heads=present / 2 if wanted.mean_heads is None else wanted.mean_heads
        )
    pruner = headkit.HybridPruner(
        budget,
        risk=wanted.risk,
        mechanism=wanted.policy.replace("-", "_"),
        neurons="fisher" if neurons else "none",
        compensate=wanted.compensate,
        train=wanted.train,
        seed=wanted.seed,
    )
    pruner.fit(
        headed,
        _tensors(parts.train),
        _tensors(parts.held_out),
        objective=job.task.OBJECTIVE,
        progress=lambda n, of: show("fitting", n, of),
    )
    found = {
        "lambda": rounded(pruner.lambda_),
        "arms": {
            name: {key: None if value is None else rounded(value) for key, value in arm.items()}
            for name, arm in pruner.report.arms.items()
        },
        "stages": [f"{stage['stage']}: {stage['found']}" for stage in pruner.report.stages],
        "fitted_examples": pruner.report.fitted_examples,
        "calibration_examples": pruner.report.held_out_examples,
    }
    if wanted.risk is not None:
        count = sum(len(batch.places) for batch in parts.calibration)
        needed = headkit.conformal_samples_needed(wanted.risk)
        pruner.calibrate(
            headed,
            _tensors(parts.calibration),
            length_buckets=3 if count >= PER_BUCKET * needed else 1,
            progress=lambda n, of: show("calibrating", n, of),
        )
        found["lambda"] = rounded(pruner.lambda_)
        found["promise"] = {
            "risk": wanted.risk,
            "lambda": rounded(pruner.calibration.lambda_),
            "examples": count,
            "budget_unmet": pruner.budget_unmet,
        }
    return pruner.policy, found


def _linear_gate(
    job: Job, wanted: Wanted, headed: _C.GatedModel, parts: Parts, present: int, show: Show
) -> tuple[_C.GatePolicy, dict[str, Any]]:
    gated, tensors = job.opened.gated, _tensors(parts.train)
    dropped = None
    if wanted.compensate:
        dropped = headkit.mean_head_outputs(
            gated, tensors, progress=lambda n, of: show("mean outputs", n, of)
        )
    gate, report = headkit.fit_linear_gate(
        headed,
        tensors,
        _tensors(parts.held_out),
        mean_heads=present / 2 if wanted.mean_heads is None else wanted.mean_heads,
        objective=job.task.OBJECTIVE,
        dropped_output=dropped,
        progress=lambda n, of: show("fitting the gate", n, of),
    )
    if wanted.compensate:
        # What a head gives where the gate closes it is not what it gives on the whole.
        dropped = _C.mean_head_outputs(
            gated,
            tensors,
            decide=lambda state: gate.decide(state.hidden, state.attention_mask),
        )
        gate = gate.with_dropped_output(dropped)
    return gate, {
        "contested": report.contested,
        "input_variance": rounded(report.input_variance),
        "fitted_examples": report.fitted_examples,
        "calibration_examples": report.calibration_examples,
    }


def _tensors(batches: Sequence[Batch]) -> list[dict[str, Any]]:
    return [batch.tensors for batch in batches]


def _attach_feed_forward(job: Job) -> bool:
    try:
        headkit.attach(job.opened.model, feed_forward=True)
    except ValueError:
        return False
    return True
