"""A budget in milliseconds, kept by a controller on the machine at hand."""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from headkit import _C
from headkit.calibrating import calibrate
from headkit.studies.dynamic_task import BATCH, Batch, Opened

SETTLED = 50
RISK = 0.05


def kept_budget(
    opened: Opened,
    policy: _C.AdjustablePolicy,
    calibration: Sequence[Batch],
    arriving: Sequence[Batch],
    share: float,
    batches: int = 200,
) -> dict[str, Any]:
    """Run a policy on sentences under a target of time, and keep what each batch of them cost.

    Args:
        opened: the model of the policy.
        policy: its lambda is turned, never below what the promise allows.
        calibration: labelled batches for the promise of at most ``RISK`` changed labels.
        arriving: other batches of at most 16 examples, run in turn.
        share: the target, as a share of what the dense model takes for an example of ``arriving``.
        batches: that are run.

    Returns:
        dict: ``target`` and ``dense`` in milliseconds of an example, ``floor``, and by batch
        ``milliseconds`` and ``lambdas``; JSON values.
    """
    gated = opened.gated
    calibrated = calibrate(gated, policy, list(calibration), risk=RISK, length_buckets=1)
    dense = _dense_milliseconds(gated, arriving)
    lengths = sorted(batch["input_ids"].shape[1] for batch in arriving)
    latency = _C.LatencyModel.measure(
        gated, arriving[0], tokens=sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]}),
        batches=[BATCH], blocks=True,
    )  # fmt: skip
    controller = _C.BudgetController.for_calibration(
        calibrated, share * dense, "milliseconds", latency=latency, layout=gated.layout(),
        tokens=_tokens(arriving), batch=BATCH,
    )  # fmt: skip
    runner = _C.PolicyRunner(_C.CalibratedPolicy(policy, calibrated), controller=controller)
    costs, lambdas = [], []
    for place in range(batches):
        found = runner.govern(gated, arriving[place % len(arriving)])
        costs.append(found.cost)
        lambdas.append(found.lambda_)
    return {
        "share": share, "target": share * dense, "dense": dense, "floor": controller.floor,
        "milliseconds": costs, "lambdas": lambdas,
    }  # fmt: skip


def kept(found: dict[str, Any]) -> dict[str, float]:
    """How near the target it was once ``SETTLED`` batches had run.

    Returns:
        dict: ``mean`` milliseconds of an example, its relative ``error`` against the target, its
        ``simulation_error`` in the same unit, and the smallest and mean lambda.
    """
    settled = torch.tensor(found["milliseconds"][SETTLED:], dtype=torch.float64)
    lambdas = found["lambdas"]
    mean = float(settled.mean())
    return {
        "mean": mean,
        "error": mean / found["target"] - 1,
        "simulation_error": float(settled.std()) / math.sqrt(len(settled)) / found["target"],
        "lowest": min(lambdas),
        "lambda": sum(lambdas[SETTLED:]) / len(settled),
    }


def _dense_milliseconds(gated: _C.GatedModel, arriving: Sequence[Batch]) -> float:
    gated(arriving[0])
    start = time.perf_counter()
    for batch in arriving:
        gated(batch)
    spent = time.perf_counter() - start
    return 1000 * spent / sum(len(batch["labels"]) for batch in arriving)


def _tokens(arriving: Sequence[Batch]) -> float:
    """Of an example, padding included: that is what takes time."""
    shapes = [batch["input_ids"].shape for batch in arriving]
    return sum(size * length for size, length in shapes) / sum(size for size, _ in shapes)
