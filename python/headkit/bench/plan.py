"""The work list: what it costs to find out which heads run, beside the layer that runs them."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

import headkit
from headkit.bench.attention import Attention
from headkit.bench.open_units import random_gates
from headkit.bench.peer import HEADKIT, Case, Peer, Setting, Work
from headkit.bench.routine import Routine
from headkit.bench.sizes import require_layer

NAME_OF_LIST = "work list"


@dataclasses.dataclass(frozen=True)
class Plan(Routine):
    """Making the work list of gates [B, H], whose cost is in the time of every layer.

    Attributes:
        batches: samples, B; a case for each.
        length: tokens of the layer it is held against, T.
        dim: width, D.
        heads: H, a divisor of ``dim``.
        shares: of open heads beside 1.
        seed: of inputs, weights and gates.

    Raises:
        ValueError: if the sizes do not fit together.

    Example:
        >>> Plan(batches=(8,)).settings()
        [{'B': 8, 'T': 128, 'D': 768, 'H': 12}]
    """

    NAME: ClassVar[str] = "plan"

    batches: tuple[int, ...] = (8, 64)
    length: int = 128
    dim: int = 768
    heads: int = 12
    shares: tuple[float, ...] = (0.5,)
    seed: int = 0

    def __post_init__(self) -> None:
        require_layer(self.batches, (self.length,), self.dim, self.heads)

    def settings(self) -> list[Setting]:
        """One for each number of samples."""
        return [
            {"B": batch, "T": self.length, "D": self.dim, "H": self.heads} for batch in self.batches
        ]

    def case(self, setting: Setting) -> Case:
        """The work list, read back and compared with its gates, and the layer, at every share."""
        batch = int(setting["B"])
        layer = Attention(
            batches=(batch,),
            lengths=(self.length,),
            dim=self.dim,
            heads=self.heads,
            shares=self.shares,
            peers=(),
            seed=self.seed,
        )
        case = layer.case(layer.settings()[0])
        torch.manual_seed(self.seed)
        lists = []
        for share, gate in random_gates(batch, self.heads, self.shares).items():
            if not torch.equal(headkit.make_work_list(gate).to_keep(), gate != 0):
                raise RuntimeError(
                    f"[bench] expected the work list of its gates; found another at {share:.0%}"
                )
            make = lambda g=gate: headkit.make_work_list(g)  # noqa: E731
            lists.append(Peer(NAME_OF_LIST, share, make, Work(0.0, 0.0), 0.0))
        headkit_rows = [peer for peer in case.peers if peer.name == HEADKIT]
        return dataclasses.replace(case, peers=[*lists, *headkit_rows])
