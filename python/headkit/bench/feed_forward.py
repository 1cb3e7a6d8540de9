"""One feed-forward layer: headkit at shares of open blocks of neurons beside its peers."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

import headkit
from headkit.bench.feed_forward_layer import FeedForwardLayer
from headkit.bench.feed_forward_ways import (
    COMPILED,
    compiled_way,
    dense_ways,
    gather_by_sample,
    headkit_way,
    mask_multiply,
    pruned_ways,
)
from headkit.bench.open_units import KINDS, random_gates
from headkit.bench.peer import Case, Setting, Work
from headkit.bench.routine import Routine
from headkit.bench.sizes import DTYPES, PEERS, require_known, require_layer
from headkit.bench.way import MEASURES, Layer, Maker, layer_case


@dataclasses.dataclass(frozen=True)
class FeedForward(Routine):
    """linear, GELU, linear.

    Attributes:
        batch: samples, B.
        lengths: tokens in a sample, T; a case for each.
        dim: width, D.
        neurons: F, a multiple of ``block``.
        block: neurons of a block, which a gate opens or closes.
        dtype: ``float32`` or ``bfloat16``.
        measures: ``forward``, ``backward``, ``training``, as in ``Attention``.
        shares: of open blocks beside 1.
        gates: ``equal`` or ``skewed``: see ``random_gates``.
        peers: kinds of peers: ``dense``, ``compiled``, ``sparse``.
        seed: of inputs, weights and gates.

    Raises:
        ValueError: if the sizes do not fit together.

    Example:
        >>> FeedForward(lengths=(8,)).settings()
        [{'B': 8, 'T': 8, 'D': 768, 'F': 3072, 'dtype': 'float32', 'measure': 'forward'}]
    """

    NAME: ClassVar[str] = "feed-forward"

    batch: int = 8
    lengths: tuple[int, ...] = (128,)
    dim: int = 768
    neurons: int = 3072
    block: int = 32
    dtype: str = "float32"
    measures: tuple[str, ...] = ("forward",)
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)
    gates: str = "equal"
    peers: tuple[str, ...] = PEERS
    seed: int = 0

    def __post_init__(self) -> None:
        require_layer((self.batch,), self.lengths, self.neurons, self.neurons // max(1, self.block))
        if self.dim < 1 or self.block < 1:
            raise ValueError(
                f"[bench] expected a positive width and block; found {self.dim}, {self.block}"
            )
        require_known((self.dtype,), DTYPES)
        require_known(self.measures, MEASURES)
        require_known((self.gates,), KINDS)
        require_known(self.peers, PEERS)

    def settings(self) -> list[Setting]:
        """One for each measure and length."""
        return [
            {
                "B": self.batch,
                "T": length,
                "D": self.dim,
                "F": self.neurons,
                "dtype": self.dtype,
                "measure": measure,
                **({} if self.gates == "equal" else {"gates": self.gates}),
            }
            for measure in self.measures
            for length in self.lengths
        ]

    def work(self, length: int, measure: str, gate: torch.Tensor) -> Work:
        """4 T D FLOPs for an open neuron of a sample, twice as many in the backward; x, output and
        the weights of blocks open anywhere, or as many again for their gradients."""
        times = {"forward": 1, "backward": 2, "training": 3}[measure]
        neurons, union = (
            self.block * int(n) for n in ((gate != 0).sum(), (gate != 0).any(0).sum())
        )
        moved = 2.0 * self.batch * length * self.dim + 2.0 * self.dim * union
        return Work(
            4.0 * times * length * self.dim * neurons,
            times * DTYPES[self.dtype].itemsize * moved,
        )

    def case(self, setting: Setting) -> Case:
        """Every peer at one length, checked."""
        measure, length = str(setting["measure"]), int(setting["T"])
        torch.manual_seed(self.seed)
        layer = FeedForwardLayer(
            (self.batch, length), self.dim, self.neurons, self.block, DTYPES[self.dtype]
        )
        for leaf in layer.leaves:
            leaf.requires_grad_(measure != "forward")
        shared = Layer(
            layer.direction,
            layer.exact_output,
            layer.exact_gradients,
            lambda gate: self.work(length, measure, gate),
        )
        makers = self._makers(layer, measure != "forward")
        case = layer_case(shared, makers, measure, f"T={length}")
        choice = headkit.feed_forward_backend(
            layer.x, layer.weights, activation="gelu", block_size=self.block
        )
        if choice.name != "cpu":
            case.note = f"headkit ran on backend {choice.name}: {choice.reason}."
        return case

    def _makers(self, layer: FeedForwardLayer, trained: bool) -> list[Maker]:
        gates = random_gates(self.batch, self.neurons // self.block, self.shares, self.gates)
        sparse = {share: gate for share, gate in gates.items() if share < 1}
        found = []
        if "dense" in self.peers:
            found.append(Maker(lambda: dense_ways(layer)))
        if "compiled" in self.peers:
            found.append(Maker(lambda: [compiled_way(layer, trained=trained)], COMPILED))
        if "sparse" in self.peers:
            for make in (mask_multiply, gather_by_sample):
                for share, gate in sparse.items():
                    found.append(Maker(lambda m=make, s=share, g=gate: [m(layer, s, g)]))
            for share in sparse:
                found.append(Maker(lambda s=share: pruned_ways(layer, s)))
        found.append(Maker(lambda: [headkit_way(layer, *each) for each in gates.items()]))
        return found
