"""One attention layer: headkit at shares of open heads beside what else one can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch._functorch import config as functorch_config

import headkit
from headkit.bench.attention_layer import AttentionLayer, Way
from headkit.bench.compiled_ways import COMPILED, FLEX, compiled_way, flex_way
from headkit.bench.dense_ways import dense_ways
from headkit.bench.exactness import require_close
from headkit.bench.open_units import KINDS, random_gates
from headkit.bench.peer import HEADKIT, Absent, Case, Peer, Result, Setting, Work
from headkit.bench.routine import Routine
from headkit.bench.sizes import DTYPES, require_known, require_layer
from headkit.bench.sparse_ways import gather_by_head, gather_by_pair, mask_multiply, pruned_ways

MEASURES = ("forward", "backward", "training")
PEERS = ("dense", "compiled", "sparse")


@dataclasses.dataclass(frozen=True)
class Attention(Routine):
    """One self-attention layer.

    Attributes:
        batch: samples, B.
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

    batch: int = 8
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
        require_layer(self.batch, self.lengths, self.dim, self.heads)
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
                "H": self.heads,
                "dtype": self.dtype,
                "measure": measure,
                **({} if self.gates == "equal" else {"gates": self.gates}),
            }
            for measure in self.measures
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
        of_tokens = 2.0 * self.batch * length * self.dim
        of_weights = 4.0 * self.dim * (self.dim // self.heads) * int((gate != 0).any(0).sum())
        times = {"forward": 1, "backward": 2, "training": 3}[measure]
        size = DTYPES[self.dtype].itemsize
        return Work(
            self.pair_flops(length, measure) * int((gate != 0).sum()),
            times * size * (of_tokens + of_weights),
        )

    def case(self, setting: Setting) -> Case:
        """Every peer at one length, checked."""
        measure, length = str(setting["measure"]), int(setting["T"])
        trained = measure != "forward"
        torch.manual_seed(self.seed)
        layer = AttentionLayer(self.batch, length, self.dim, self.heads, DTYPES[self.dtype])
        layer.x.requires_grad_(trained)
        for parameter in (*layer.torch_module.parameters(), *layer.module.parameters()):
            parameter.requires_grad_(trained)
        case = Case([], [], layer.dtype)
        exact = _Exact(layer, trained)
        for name, build in self._builders(layer, trained):
            try:
                ways = build()
                calls = [
                    (way, _call(layer, way, measure)) for way in ways if not _out(way, trained)
                ]
                results = [(way, call, call()) for way, call in calls]
            except Exception as error:
                # What torch.compile needs differs from machine to machine; the rest must run.
                if name not in (COMPILED, FLEX):
                    raise
                case.absent.append(Absent(name, _reason(error)))
                continue
            case.absent += [Absent(way.name, way.note) for way in ways if _out(way, trained)]
            for way, call, result in results:
                worst = exact.max_error(way, result, f"{way.name} at T={length}, {way.share:.0%}")
                work = self.work(length, measure, way.gate)
                case.peers.append(Peer(way.name, way.share, call, work, worst))
        names = [peer.name for peer in case.peers]
        case.peers.sort(key=lambda peer: names.index(peer.name))
        case.absent = list({absent.name: absent for absent in case.absent}.values())
        choice = headkit.attention_backend(layer.x, layer.module.weights(), self.heads)
        if choice.name != "cpu":
            case.note = f"headkit ran on backend {choice.name}: {choice.reason}."
        return case

    def _builders(
        self, layer: AttentionLayer, trained: bool
    ) -> list[tuple[str, Callable[[], list[Way]]]]:
        gates = random_gates(self.batch, self.heads, self.shares, self.gates)
        sparse = {share: gate for share, gate in gates.items() if share < 1}
        found: list[tuple[str, Callable[[], list[Way]]]] = []
        if "dense" in self.peers:
            found.append(("dense", lambda: dense_ways(layer)))
        if "compiled" in self.peers:
            found.append((COMPILED, lambda: [compiled_way(layer, trained=trained)]))
            for share, gate in sparse.items():
                found.append((FLEX, lambda s=share, g=gate: [flex_way(layer, s, g)]))
        if "sparse" in self.peers:
            for make in (mask_multiply, gather_by_pair, gather_by_head):
                for share, gate in sparse.items():
                    found.append(("sparse", lambda m=make, s=share, g=gate: [m(layer, s, g)]))
            for share in sparse:
                found.append(("sparse", lambda s=share: pruned_ways(layer, s)))
        found.append((HEADKIT, lambda: [_headkit_way(layer, *each) for each in gates.items()]))
        return found


def _headkit_way(layer: AttentionLayer, share: float, gate: torch.Tensor) -> Way:
    leaves = [layer.x, *layer.module.parameters()]
    return Way(HEADKIT, share, lambda: layer.module(layer.x, gate=gate), leaves, list, gate)


def _out(way: Way, trained: bool) -> bool:
    return trained and bool(way.note)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def _call(layer: AttentionLayer, way: Way, measure: str) -> Callable[[], Result]:
    if measure == "forward":

        def forward() -> torch.Tensor:
            with torch.no_grad():
                return way.forward()

        return forward
    if measure == "training":
        return lambda: torch.autograd.grad(way.forward(), way.leaves, layer.direction)
    # A graph that is run again must keep what torch.compile would give away.
    with functorch_config.patch(donated_buffer=False):
        y = way.forward()
    return lambda: torch.autograd.grad(y, way.leaves, layer.direction, retain_graph=True)


class _Exact:
    """The truth for each gate, computed once."""

    def __init__(self, layer: AttentionLayer, trained: bool) -> None:
        self.layer, self.trained = layer, trained
        self.known: dict[bytes, list[torch.Tensor]] = {}

    def max_error(self, way: Way, result: Result, what: str) -> float:
        key = way.gate.numpy().tobytes()
        if key not in self.known:
            gate = way.gate.double()
            if self.trained:
                self.known[key] = self.layer.exact_gradients(gate)
            else:
                with torch.no_grad():
                    self.known[key] = [self.layer.exact_output(gate)]
        found = way.canonical(result) if self.trained else [result]
        return require_close(found, self.known[key], self.layer.dtype, what)
