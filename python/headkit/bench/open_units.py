"""Random gates: which heads, or blocks of neurons, are open."""

from __future__ import annotations

from collections.abc import Iterable

import torch

KINDS = ("equal", "skewed")


def random_gates(
    batch: int, units: int, shares: Iterable[float], kind: str = "equal"
) -> dict[float, torch.Tensor]:
    """Gates of 0 and 1, [batch, units] float32, by the share that is open; always share 1.

    Args:
        batch: samples.
        units: heads or blocks of a sample.
        shares: wanted; what is possible nearest to each is made, at least one unit a sample.
        kind: ``equal``, as many units for every sample, or ``skewed``: samples that are full, then
            samples that are empty, and as many open units in all.

    Raises:
        ValueError: if a share is not in (0, 1].

    Example:
        >>> gates = random_gates(2, 4, (0.5, 0.1))
        >>> {share: gate.sum(1).tolist() for share, gate in gates.items()}
        {1.0: [4.0, 4.0], 0.5: [2.0, 2.0], 0.25: [1.0, 1.0]}
    """
    shares = tuple(shares)
    if not all(0 < share <= 1 for share in shares):
        raise ValueError(f"[bench] expected shares between 0 and 1; found {shares}")
    gates = {1.0: torch.ones(batch, units)}
    for share in shares:
        count = max(1, round(share * units))
        if count == units:
            continue
        gate = torch.zeros(batch, units)
        if kind == "skewed":
            gate.view(-1)[: count * batch] = 1.0
        else:
            for row in gate:
                row[torch.randperm(units)[:count]] = 1.0
        gates[count / units] = gate
    return gates
