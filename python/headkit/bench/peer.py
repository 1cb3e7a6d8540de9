"""What takes part in a measurement: ways to compute the same thing, and what each has to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

HEADKIT = "headkit"

Setting = dict[str, int | float | str]
Result = torch.Tensor | tuple[torch.Tensor, ...]


@dataclasses.dataclass(frozen=True)
class Work:
    """What has to be done whoever does it: that of the open heads or neurons alone.

    Attributes:
        flops: floating-point operations; a multiply-add counts 2.
        bytes: least traffic with memory: every input and weight read once, the output written once.

    Example:
        >>> Work(2.0, 8.0) + Work(1.0, 4.0)
        Work(flops=3.0, bytes=12.0)
    """

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclasses.dataclass(frozen=True)
class Peer:
    """One way to compute it.

    Attributes:
        name: of the way.
        share: open heads or neurons over all.
        call: computes it once; returns what is checked.
        work: what it has to do.
        max_error: largest difference from the float64 reference.
    """

    name: str
    share: float
    call: Callable[[], Any]
    work: Work
    max_error: float


@dataclasses.dataclass(frozen=True)
class Absent:
    """A peer that this machine, or this measurement, cannot have.

    Attributes:
        name: of the peer.
        reason: in one line.
    """

    name: str
    reason: str


@dataclasses.dataclass
class Case:
    """What is measured side by side, round by round. One peer is ``headkit`` at share 1.

    Attributes:
        peers: in the order of the table.
        absent: peers that are not there.
        dtype: that of the arithmetic; it chooses the peak that times are held against.
        note: what a reader of the figures should know, or "".
    """

    peers: list[Peer]
    absent: list[Absent]
    dtype: torch.dtype = torch.float32
    note: str = ""
