"""One attention layer: headkit at shares of open heads beside what else one can do."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

import headkit
from headkit.bench.attention_layer import AttentionLayer
from headkit.bench.compiled_ways import COMPILED, FLEX, compiled_way, flex_way
from headkit.bench.dense_ways import dense_ways
from headkit.bench.open_units import KINDS, random_gates
from headkit.bench.peer import HEADKIT, Case, Setting, Work
from headkit.bench.routine import Routine
from headkit.bench.sizes import DTYPES, PEERS, require_known, require_layer
from headkit.bench.sparse_ways import gather_by_head, gather_by_pair, mask_multiply, pruned_ways
from headkit.bench.way import MEASURES, Layer, Maker, Way, layer_case


@dataclasses.dataclass(frozen=True)
class Attention(Routine):
    """One self-attention layer.

    Attributes:
        batches: samples, B; a case for each.
        lengths: tokens in a sample, T; a case for each.
        dim: width, D.
        heads: H, a divisor of ``dim``.
        dtype: ``float32`` or ``bfloat16``.
        measures: ``forward``; ``backward``, the gradients of x, weights and biases alone, by a
            graph recorded before; ``training``, both. A case for each.
        shares: of open heads beside 1.
        gates: ``equal`` or ``skewed``: see ``random_gates``.
        peers: kinds of peers: ``dense``, ``compiled``, ``sparse``.
        seed: of inputs, weights and gates.

    Raises:
        ValueError: if the sizes do not fit together.

    Example:
        >>> Attention(dim=64, heads=4, lengths=(8,), measures=("forward",)).settings()
        [{'B': 8, 'T': 8, 'D': 64, 'H': 4, 'dtype': 'float32', 'measure': 'forward'}]
    """

    NAME: ClassVar[str] = "attention"

    batches: tuple[int, ...] = (8,)
    lengths: tuple[int, ...] = (128, 512)
    dim: int = 768
    heads: int = 12
    dtype: str = "float32"
    measures: tuple[str, ...] = ("forward",)
    shares: tuple[float, ...] = (0.75, 0.5, 0.25, 1 / 12)
    gates: str = "equal"
    peers: tuple[str, ...] = PEERS
    seed: int = 0

    def __post_init__(self) -> None:
        require_layer(self.batches, self.lengths, self.dim, self.heads)
        require_known((self.dtype,), DTYPES)
        require_known(self.measures, MEASURES)
        require_known((self.gates,), KINDS)
        require_known(self.peers, PEERS)

    def settings(self) -> list[Setting]:
        """One for each measure, number of samples and length."""
        return [
            {
                "B": batch,
                "T": length,
                "D": self.dim,
                "H": self.heads,
                "dtype": self.dtype,
                "measure": measure,
                **({} if self.gates == "equal" else {"gates": self.gates}),
            }
            for measure in self.measures
            for batch in self.batches
            for length in self.lengths
        ]

    def pair_flops(self, length: int, measure: str) -> float:
        """Useful FLOPs of one head of one sample.

        Forward: 8 T D dh of the projections and 4 T^2 dh of the core. Backward: 16 T D dh and
        10 T^2 dh, with the scores computed again; what else a backward computes again does not
        count.
        """
        of_weights, of_core = {"forward": (8, 4), "backward": (16, 10), "training": (24, 14)}[
            measure
        ]
        head_dim = self.dim // self.heads
        return length * head_dim * (float(of_weights) * self.dim + of_core * length)

    def work(self, length: int, measure: str, gate: torch.Tensor) -> Work:
        """FLOPs of the open pairs; x, output and the weights of heads open anywhere, or as many
        again for their gradients."""
        of_tokens = 2.0 * len(gate) * length * self.dim
        of_weights = 4.0 * self.dim * (self.dim // self.heads) * int((gate != 0).any(0).sum())
        times = {"forward": 1, "backward": 2, "training": 3}[measure]
        size = DTYPES[self.dtype].itemsize
        return Work(
            self.pair_flops(length, measure) * int((gate != 0).sum()),
            times * size * (of_tokens + of_weights),
        )

    def case(self, setting: Setting) -> Case:
        """Every peer at one length, checked."""
        batch, length, measure = int(setting["B"]), int(setting["T"]), str(setting["measure"])
        trained = measure != "forward"
        torch.manual_seed(self.seed)
        layer = AttentionLayer(batch, length, self.dim, self.heads, DTYPES[self.dtype])
        layer.x.requires_grad_(trained)
        for parameter in (*layer.torch_module.parameters(), *layer.module.parameters()):
            parameter.requires_grad_(trained)
        shared = Layer(
            layer.direction,
            layer.exact_output,
            layer.exact_gradients,
            lambda gate: self.work(length, measure, gate),
        )
        case = layer_case(shared, self._makers(layer, trained), measure, f"T={length}")
        choice = headkit.attention_backend(layer.x, layer.module.weights(), self.heads)
        if choice.name != "cpu":
            case.note = f"headkit ran on backend {choice.name}: {choice.reason}."
        return case

    def _makers(self, layer: AttentionLayer, trained: bool) -> list[Maker]:
        gates = random_gates(layer.batch, self.heads, self.shares, self.gates)
        sparse = {share: gate for share, gate in gates.items() if share < 1}
        found = []
        if "dense" in self.peers:
            found.append(Maker(lambda: dense_ways(layer)))
        if "compiled" in self.peers:
            found.append(Maker(lambda: [compiled_way(layer, trained=trained)], COMPILED))
            for share, gate in sparse.items():
                found.append(Maker(lambda s=share, g=gate: [flex_way(layer, s, g)], FLEX))
        if "sparse" in self.peers:
            for make in (mask_multiply, gather_by_pair, gather_by_head):
                for share, gate in sparse.items():
                    found.append(Maker(lambda m=make, s=share, g=gate: [m(layer, s, g)]))
            for share in sparse:
                found.append(Maker(lambda s=share: pruned_ways(layer, s)))
        found.append(Maker(lambda: [_headkit_way(layer, *each) for each in gates.items()]))
        return found


def _headkit_way(layer: AttentionLayer, share: float, gate: torch.Tensor) -> Way:
    leaves = [layer.x, *layer.module.parameters()]
    return Way(HEADKIT, share, lambda: layer.module(layer.x, gate=gate), leaves, list, gate)
