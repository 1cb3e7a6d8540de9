"""Whether a promise of risk holds on examples that it was not calibrated on, over many splits."""

import math
from dataclasses import dataclass

import torch

from headkit import _C

STEPS = 64


@dataclass(frozen=True)
class Knob:
    """What every example loses and costs at each value of a knob from cheap to dense.

    Attributes:
        losses: float64 [N, steps + 1], in [0, 1]; the last column is the top rung.
        flops: float64 [N, steps + 1].
        dense_flops: float64 [N], of the original model.
    """

    losses: torch.Tensor
    flops: torch.Tensor
    dense_flops: torch.Tensor

    @property
    def grid(self) -> torch.Tensor:
        """Values of the knob, 0 to 1."""
        return torch.linspace(0, 1, self.losses.shape[1], dtype=torch.float64)


@dataclass(frozen=True)
class RealisedRisk:
    """A promise over many splits.

    Attributes:
        promised: the mean loss that was promised (alpha).
        mean: of the realised risks, one for each split.
        simulation_error: standard error of that mean over splits.
        largest: realised risk of the worst split, for which nothing is promised.
        flops: mean share of the dense FLOPs that keeping it took.
    """

    promised: float
    mean: float
    simulation_error: float
    largest: float
    flops: float


def knob_of(trace: _C.LadderTrace, steps: int = STEPS) -> Knob:
    """Flips against the top rung, and FLOPs, where one threshold serves all rungs."""
    losses, flops = [], []
    for step in range(steps + 1):
        rung = trace.reached([step / steps])[:, None]
        losses.append(trace.changed.gather(1, rung))
        flops.append(trace.flops.gather(1, rung))
    return Knob(torch.cat(losses, 1), torch.cat(flops, 1), trace.dense_flops)


def realised_risk(knob: Knob, risk: float, splits: int, seed: int = 0) -> RealisedRisk:
    """Calibrate on a random half by conformal risk control and look at the other half; repeat.

    Args:
        knob: of a policy that was fixed without these examples.
        risk: the mean loss that is promised.
        splits: how many halves.
        seed: of their draw.

    Raises:
        ValueError: for fewer than two splits, or halves that are too small to promise the risk,
            with the number it would take.

    Source:
        Angelopoulos, Bates, Fisch, Lei, Schuster 2024 (arXiv 2208.02814).

    Example:
        >>> losses = torch.zeros(40, 3, dtype=torch.float64)
        >>> flops = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).expand(40, 3)
        >>> found = realised_risk(Knob(losses, flops, flops[:, 2]), risk=0.1, splits=5)
        >>> found.mean, found.flops
        (0.0, 0.25)
    """
    if splits < 2:
        raise ValueError(f"[realised_risk] expected two splits or more; found {splits}")
    draw = torch.Generator().manual_seed(seed)
    count = len(knob.losses)
    found, shares = [], []
    for _ in range(splits):
        order = torch.randperm(count, generator=draw)
        calibration, new = order[: count // 2], order[count // 2 :]
        chosen = _C.conformal_risk_control(knob.losses[calibration], knob.grid, risk=risk)
        found.append(knob.losses[new, chosen.index].mean())
        shares.append(knob.flops[new, chosen.index].sum() / knob.dense_flops[new].sum())
    risks = torch.stack(found)
    return RealisedRisk(
        promised=risk,
        mean=float(risks.mean()),
        simulation_error=float(risks.std()) / math.sqrt(splits),
        largest=float(risks.max()),
        flops=float(torch.stack(shares).mean()),
    )
