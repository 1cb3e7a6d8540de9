"""Dynamic arms against static ones at equal cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from headkit import _C


@dataclass(frozen=True)
class Point:
    """One arm of one seed: what it costs, and how good each example is, float64 [N]."""

    cost: float
    quality: torch.Tensor


def at_cost(curve: Sequence[Point], cost: float) -> torch.Tensor:
    """Quality of every example on a curve at some cost, float64 [N].

    Between its two neighbours in cost, in proportion; beyond its ends that of the end: below the
    cheapest arm of the curve this favours the curve.

    Raises:
        ValueError: for a curve without points.

    Example:
        >>> curve = [Point(1.0, torch.tensor([0.0])), Point(3.0, torch.tensor([1.0]))]
        >>> at_cost(curve, 1.5).tolist(), at_cost(curve, 9.0).tolist()
        ([0.25], [1.0])
    """
    if not curve:
        raise ValueError("[at_cost] expected a curve of at least one arm; found none")
    points = sorted(curve, key=lambda point: point.cost)
    if cost <= points[0].cost:
        return points[0].quality
    for left, right in pairwise(points):
        if cost <= right.cost:
            if right.cost == left.cost:
                return right.quality
            share = (cost - left.cost) / (right.cost - left.cost)
            return (1 - share) * left.quality + share * right.quality
    return points[-1].quality


def against(curves: Sequence[Sequence[Point]], arm: Sequence[Point]) -> dict[str, Any]:
    """How much better an arm is than a curve at the arm's cost.

    Args:
        curves: by seed.
        arm: by seed.

    Returns:
        dict: mean difference, its interval over seeds and examples (over examples with one seed).

    Raises:
        ValueError: for other numbers of seeds on both sides, or none.
    """
    if len(curves) != len(arm) or not arm:
        raise ValueError(
            f"[against] expected the same seeds on both sides; found {len(curves)} and {len(arm)}"
        )
    static = torch.stack(
        [at_cost(curve, point.cost) for curve, point in zip(curves, arm, strict=True)]
    )
    dynamic = torch.stack([point.quality for point in arm])
    found = _C.paired_bootstrap(static, dynamic, over="both" if len(arm) > 1 else "examples")
    return {
        "difference": found.mean,
        "lower": found.lower,
        "upper": found.upper,
        "over": "seeds and examples" if len(arm) > 1 else "examples",
        "inside": [
            min(p.cost for p in curve) <= point.cost <= max(p.cost for p in curve)
            for curve, point in zip(curves, arm, strict=True)
        ],
    }
