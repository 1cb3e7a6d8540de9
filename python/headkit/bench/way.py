"""Ways to compute one layer, and the case that checks and times them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch._functorch import config as functorch_config

from headkit.bench.exactness import require_close
from headkit.bench.peer import Absent, Case, Peer, Result, Work

MEASURES = ("forward", "backward", "training")

Tensors = Sequence[torch.Tensor]


@dataclasses.dataclass(eq=False)
class Way:
    """One way to compute a layer under one gate.

    Attributes:
        name: of the peer.
        share: open units over all.
        forward: the output, [B, T, D].
        leaves: x, then the weights and biases of this way.
        canonical: brings gradients of ``leaves`` into the order of the layer's exact ones.
        gate: [B, units], for the reference.
        note: why it has no gradients, or "".
    """

    name: str
    share: float
    forward: Callable[[], torch.Tensor]
    leaves: list[torch.Tensor]
    canonical: Callable[[Tensors], list[torch.Tensor]]
    gate: torch.Tensor
    note: str = ""


@dataclasses.dataclass
class Maker:
    """What makes ways of a kind.

    Attributes:
        make: the ways.
        compiled: its name where it needs a compiler, which a machine may lack; else "".
    """

    make: Callable[[], list[Way]]
    compiled: str = ""


@dataclasses.dataclass
class Layer:
    """What all ways of a layer share.

    Attributes:
        direction: [B, T, D], gradient of the output.
        exact_output: of a float64 gate, in float64.
        exact_gradients: of a float64 gate, in float64.
        work: of a gate.
    """

    direction: torch.Tensor
    exact_output: Callable[[torch.Tensor], torch.Tensor]
    exact_gradients: Callable[[torch.Tensor], list[torch.Tensor]]
    work: Callable[[torch.Tensor], Work]


def layer_case(layer: Layer, makers: list[Maker], measure: str, where: str) -> Case:
    """Make every way, check it against float64, and put it into a case.

    Args:
        layer: what they compute.
        makers: of the ways.
        measure: ``forward``, ``backward`` or ``training``.
        where: sizes, for error messages.

    Raises:
        RuntimeError: if an output or a gradient is wrong.
    """
    trained, dtype = measure != "forward", layer.direction.dtype
    case, exact = Case([], [], dtype), _Exact(layer, trained)
    for maker in makers:
        try:
            ways = maker.make()
            left = [way for way in ways if trained and way.note]
            calls = [(way, _call(layer, way, measure)) for way in ways if way not in left]
            results = [(way, call, call()) for way, call in calls]
        except Exception as error:
            # What torch.compile needs differs from machine to machine; the rest must run.
            if not maker.compiled:
                raise
            case.absent.append(Absent(maker.compiled, _reason(error)))
            continue
        case.absent += [Absent(way.name, way.note) for way in left]
        for way, call, result in results:
            found = way.canonical(result) if trained else [result]
            what = f"{way.name} at {where}, {way.share:.0%}"
            error = require_close(found, exact.of(way.gate), dtype, what)
            case.peers.append(Peer(way.name, way.share, call, layer.work(way.gate), error))
    names = [peer.name for peer in case.peers]
    case.peers.sort(key=lambda peer: names.index(peer.name))
    case.absent = list({absent.name: absent for absent in case.absent}.values())
    return case


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def _call(layer: Layer, way: Way, measure: str) -> Callable[[], Result]:
    if measure == "forward":

        @torch.no_grad()
        def forward() -> torch.Tensor:
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

    def __init__(self, layer: Layer, trained: bool) -> None:
        self.layer, self.trained = layer, trained
        self.known: dict[bytes, list[torch.Tensor]] = {}

    def of(self, gate: torch.Tensor) -> list[torch.Tensor]:
        key = gate.numpy().tobytes()
        if key not in self.known:
            if self.trained:
                self.known[key] = self.layer.exact_gradients(gate.double())
            else:
                with torch.no_grad():
                    self.known[key] = [self.layer.exact_output(gate.double())]
        return self.known[key]
