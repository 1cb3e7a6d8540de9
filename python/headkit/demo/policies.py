"""The head sets and policies that the demo compares."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headkit import _C
from headkit.demo.encoder import Part

Progress = Any


@dataclass(frozen=True)
class HeadSet:
    """A static mask and what replaces the heads outside it."""

    mask: _C.HeadMask
    dropped_output: torch.Tensor

    def policy(self) -> _C.MaskPolicy:
        """The set for every input."""
        return _C.MaskPolicy(self.mask, dropped_output=self.dropped_output)


def compensated(
    model: _C.GatedModel, data: Sequence[dict], mask: _C.HeadMask, dense_means: torch.Tensor
) -> HeadSet:
    """A mask with the mean outputs of its closed heads, estimated while they are closed."""
    gates = _C.GateSet(mask.keep.float(), dropped_output=dense_means)
    return HeadSet(mask, _C.mean_head_outputs(model, data, gates=gates))


def random_mask(layers: int, heads: int, count: int, seed: int) -> _C.HeadMask:
    """``count`` heads drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    keep = torch.zeros(layers * heads, dtype=torch.bool)
    keep[torch.randperm(layers * heads, generator=generator)[:count]] = True
    return _C.HeadMask(keep.view(layers, heads))


def fit_gate(
    probe: _C.GatedModel,
    train: Part,
    some: Sequence[dict],
    calibration: Part,
    mean_heads: float,
    scores: _C.HeadScores,
    dense_means: torch.Tensor,
    progress: Progress = None,
) -> tuple[_C.LinearGate, _C.LinearGateReport]:
    """A linear gate whose compensation is the mean output of heads where it closes them.

    Args:
        some: training batches for the means.
    """
    gate, report = _C.fit_linear_gate(
        probe,
        train.batches,
        calibration.batches,
        mean_heads=mean_heads,
        scores=scores,
        dropped_output=dense_means,
        progress=progress,
    )
    means = _C.mean_head_outputs(
        probe,
        some,
        decide=lambda state: gate.decide(state.hidden, state.attention_mask),
    )
    return gate.with_dropped_output(means), report


@dataclass(frozen=True)
class Rung:
    """One candidate for the low set of an escalation, as the calibration part sees it."""

    policy: _C.Escalation
    trace: _C.LadderTrace
    agreement: float
    error: float
    flops: float


def fit_escalation(
    model: _C.GatedModel,
    probe: _C.GatedModel,
    some: Sequence[dict],
    calibration: Part,
    mean_heads: float,
    scores: _C.HeadScores,
    dense_means: torch.Tensor,
    shares: Sequence[float],
    progress: Progress = None,
) -> tuple[Rung, list[Rung]]:
    """Escalation to all heads; the low set is chosen on the calibration part.

    All candidates run ``mean_heads`` heads on average. Taken is the one with the fewest FLOPs whose
    agreement is within one standard error of the best.

    Args:
        some: training batches for the means.
        shares: sizes of the low sets, as shares of ``mean_heads``.
    """
    layout = model.layout()
    rungs = []
    for share in shares:
        count = round(share * mean_heads)
        mask = _C.prune_top_fraction(scores, count / layout.total_heads)
        low = compensated(model, some, mask, dense_means)
        draft = _C.Escalation(mask, threshold=0.5, dropped_output=low.dropped_output)
        trace = draft.trace(probe, calibration.batches, progress=progress)
        threshold = trace.threshold(mean_heads)
        policy = draft.with_threshold(
            threshold,
            calibration=f"mean of {mean_heads:g} heads over {len(trace.confidence)} examples",
        )
        reached = trace.reached([threshold])
        agrees = 1 - trace.changed.gather(1, reached[:, None])[:, 0]
        flops = trace.flops.gather(1, reached[:, None])[:, 0]
        error = float(agrees.std() / len(agrees) ** 0.5)
        rungs.append(Rung(policy, trace, float(agrees.mean()), error, float(flops.mean())))
    best = max(rungs, key=lambda rung: rung.agreement)
    close = [rung for rung in rungs if rung.agreement >= best.agreement - best.error]
    return min(close, key=lambda rung: rung.flops), rungs
