"""One attention layer against dense peers, and against itself with fewer heads.

All peers run in one process on the same random inputs, one after the other in every round, between
two runs of a probe that measures what the processor can do at that moment. What is reported are
medians over the rounds of ratios within a round, so that a drifting clock or a busy neighbour
cancels out. A peer whose output is wrong is not timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn import functional

import headkit
from headkit import _C

HEADKIT = "headkit"
MAX_PROBE_SPREAD = 0.05
MEASURES = ("forward", "backward", "training")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        batch: samples, B.
        lengths: tokens in a sample, T; one table row block for each.
        dim: width, D.
        heads: H, a divisor of ``dim``.
        threads: thread counts; 1 is pinned to one core, 0 stands for all cores.
        rounds: undisturbed rounds to collect.
        shares: shares of open heads beside 1.
        seed: of inputs, weights and gates.
        measure: ``forward``; ``backward``, the gradients of x, weights and biases alone, by a graph
            recorded before; or ``training``, both.

    Example:
        >>> Config(dim=64, heads=4).head_dim
        16
    """

    batch: int = 8
    lengths: tuple[int, ...] = (128, 512)
    dim: int = 768
    heads: int = 12
    threads: tuple[int, ...] = (1, 0)
    rounds: int = 15
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)
    seed: int = 0
    measure: str = "forward"

    def __post_init__(self) -> None:
        sizes = (self.batch, self.dim, self.heads, self.rounds, *self.lengths)
        if min(sizes) < 1 or self.dim % self.heads or min(self.threads) < 0:
            raise ValueError(
                "[bench] expected positive sizes, heads that divide dim and threads >= 0; found "
                f"{self}"
            )
        if not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"[bench] expected shares between 0 and 1; found {self.shares}")
        if self.measure not in MEASURES:
            raise ValueError(
                f"[bench] expected measure to be one of {', '.join(MEASURES)}; found {self.measure}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.heads

    def pair_flops(self, length: int) -> float:
        """Useful FLOPs of one head of one sample.

        Forward: 8 T D dh of the projections and 4 T^2 dh of the core. Backward: 16 T D dh and
        10 T^2 dh, with the scores computed again; what else a backward computes again does not
        count.
        """
        of_weights, of_core = {"forward": (8, 4), "backward": (16, 10), "training": (24, 14)}[
            self.measure
        ]
        return length * self.head_dim * (float(of_weights) * self.dim + of_core * length)


@dataclasses.dataclass(frozen=True)
class Row:
    """One peer at one length on one number of threads.

    Attributes:
        name: ``headkit`` or the dense peer.
        threads: threads it ran on.
        length: tokens in a sample.
        share: open heads over all heads.
        milliseconds: median over the rounds, and their minimum.
        useful_flops: FLOPs of the open heads alone: see ``Config.pair_flops``.
        of_probe: useful FLOP/s over the probe of the same round, median.
        times_headkit: its time over headkit's at share 1 in the same round, median.
        of_ideal: time at share 1 times ``share`` over its time, median; None for dense peers.
        max_error: largest difference from the float64 reference, of the output or the gradients.
        rounds: rounds that count, and how many were measured again because the probe dipped.
        probe_flops: median of the probe, FLOP/s, and its spread over the rounds that count.
        void: the probe never settled: do not quote this row.
    """

    name: str
    threads: int
    length: int
    share: float
    milliseconds: float
    min_milliseconds: float
    useful_flops: float
    of_probe: float
    times_headkit: float
    of_ideal: float | None
    max_error: float
    rounds: int
    repeated_rounds: int
    probe_flops: float
    probe_spread: float
    void: bool


Progress = Callable[[str, int, int], None]
Result = torch.Tensor | tuple[torch.Tensor, ...]


def machine() -> dict[str, str | int]:
    """Describe what a measurement depends on.

    Example:
        >>> sorted(machine())[:3]
        ['compiled_with', 'cores', 'cpu']
    """
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    config = dict(
        line.split(" ", 1) for line in headkit.show_config().splitlines() if " " in line.strip()
    )
    return {
        "cpu": name,
        "cores": len(os.sched_getaffinity(0)),
        "isa": _C.active_isa(),
        "torch": torch.__version__,
        "headkit": config.get("headkit", ""),
        "compiled_with": config.get("compiler", ""),
        "python": platform.python_version(),
    }


@contextlib.contextmanager
def _on_threads(count: int) -> Iterator[int]:
    before, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    threads = count or len(allowed)
    torch.set_num_threads(threads)
    if threads == 1:
        os.sched_setaffinity(0, {max(allowed)})
    try:
        yield threads
    finally:
        os.sched_setaffinity(0, allowed)
        torch.set_num_threads(before)


@dataclasses.dataclass
class _Layer:
    """The same random layer in every form that a peer needs."""

    config: Config
    length: int

    def __post_init__(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        self.x = torch.randn(config.batch, self.length, config.dim)
        self.torch_module = nn.MultiheadAttention(config.dim, config.heads, batch_first=True).eval()
        nn.init.normal_(self.torch_module.in_proj_bias)
        nn.init.normal_(self.torch_module.out_proj.bias)
        self.module = headkit.nn.MultiHeadAttention.from_torch(self.torch_module).eval()
        self.direction = torch.randn(config.batch, self.length, config.dim)
        self.gates = {1.0: torch.ones(config.batch, config.heads)}
        for share in config.shares:
            count = max(1, round(share * config.heads))
            gate = torch.zeros(config.batch, config.heads)
            for row in gate:
                row[torch.randperm(config.heads)[:count]] = 1.0
            self.gates[count / config.heads] = gate

    def split_heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        config = self.config
        shape = (config.batch, self.length, 3, config.heads, config.head_dim)
        return qkv.view(shape).permute(2, 0, 3, 1, 4).unbind(0)

    def merge_heads(self, context: torch.Tensor) -> torch.Tensor:
        return context.transpose(1, 2).reshape(self.config.batch, self.length, self.config.dim)

    def with_linear(self) -> torch.Tensor:
        module = self.torch_module
        qkv = functional.linear(self.x, module.in_proj_weight, module.in_proj_bias)
        context = functional.scaled_dot_product_attention(*self.split_heads(qkv))
        return functional.linear(
            self.merge_heads(context), module.out_proj.weight, module.out_proj.bias
        )

    def with_packed_linear(self) -> Callable[[], torch.Tensor] | None:
        """Linear layers whose weights oneDNN has laid out; None where torch lacks oneDNN."""
        if not torch.backends.mkldnn.is_available():
            return None
        module, rows = self.torch_module, self.config.batch * self.length
        reorder = torch.ops.mkldnn._reorder_linear_weight
        in_weight = reorder(module.in_proj_weight.detach(), rows)
        out_weight = reorder(module.out_proj.weight.detach(), rows)
        linear = torch.ops.mkldnn._linear_pointwise

        def forward() -> torch.Tensor:
            qkv = linear(self.x, in_weight, module.in_proj_bias, "none", [], "")
            context = functional.scaled_dot_product_attention(*self.split_heads(qkv))
            merged = self.merge_heads(context)
            return linear(merged, out_weight, module.out_proj.bias, "none", [], "")

        return forward

    def forwards(self) -> dict[tuple[str, float], Callable[[], torch.Tensor]]:
        calls: dict[tuple[str, float], Callable[[], torch.Tensor]] = {
            ("nn.MultiheadAttention", 1.0): lambda: self.torch_module(
                self.x, self.x, self.x, need_weights=False
            )[0],
            ("linear + SDPA", 1.0): self.with_linear,
        }
        # oneDNN's packed linear has no derivative.
        packed = self.with_packed_linear() if self.config.measure == "forward" else None
        if packed is not None:
            calls[("oneDNN-packed linear + SDPA", 1.0)] = packed
        for share, gate in self.gates.items():
            calls[(HEADKIT, share)] = lambda gate=gate: self.module(self.x, gate=gate)
        return calls

    def leaves(self, name: str) -> list[torch.Tensor]:
        """What a peer's gradients are taken for: x, then weights and biases."""
        module = self.module if name == HEADKIT else self.torch_module
        return [self.x, *module.parameters()]

    def peers(self) -> dict[tuple[str, float], Callable[[], Result]]:
        forwards = self.forwards()
        if self.config.measure == "forward":
            return dict(forwards)
        self.x.requires_grad_()
        calls: dict[tuple[str, float], Callable[[], Result]] = {}
        for key, forward in forwards.items():
            leaves = self.leaves(key[0])
            if self.config.measure == "training":
                calls[key] = lambda forward=forward, leaves=leaves: torch.autograd.grad(
                    forward(), leaves, self.direction
                )
                continue
            y = forward()
            calls[key] = lambda y=y, leaves=leaves: torch.autograd.grad(
                y, leaves, self.direction, retain_graph=True
            )
        return calls

    def exact(self, share: float) -> list[torch.Tensor]:
        """Output, or gradients in the order of ``leaves`` of headkit, in float64."""
        with torch.set_grad_enabled(self.config.measure != "forward"):
            x = self.x.detach().double().requires_grad_(self.config.measure != "forward")
            module = headkit.nn.MultiHeadAttention.from_torch(self.torch_module).double()
            y = headkit.reference_attention(
                x, module.weights(), self.config.heads, gate=self.gates[share].double()
            )
            if self.config.measure == "forward":
                return [y]
            leaves = [x, *module.parameters()]
            return list(torch.autograd.grad(y, leaves, self.direction.double()))

    def in_order_of_headkit(self, name: str, found: Result) -> list[torch.Tensor]:
        if isinstance(found, torch.Tensor):
            return [found]
        if name == HEADKIT:
            return list(found)
        x, in_weight, in_bias, out_weight, out_bias = found
        weights, biases = in_weight.chunk(3), in_bias.chunk(3)
        pairs = [pair for both in zip(weights, biases, strict=True) for pair in both]
        return [x, *pairs, out_weight, out_bias]

    def max_error(self, name: str, share: float, found: Result) -> float:
        worst, exact_values = 0.0, self.exact(share)
        # The bias of K has gradient 0 in theory: what is left of sums as large as the other biases.
        of_biases = max((t.abs().max().item() for t in exact_values if t.dim() == 1), default=0.0)
        for value, exact in zip(self.in_order_of_headkit(name, found), exact_values, strict=True):
            error = (value.double() - exact).abs().max().item()
            size = of_biases if exact.dim() == 1 else exact.abs().max().item()
            if not error <= 1e-5 * max(1.0, size):
                raise RuntimeError(
                    f"[bench] expected the output of the reference to 1e-5; found a difference of "
                    f"{error:.2e} at length {self.length}, share {share}, {name}"
                )
            worst = max(worst, error)
        return worst


def _time(call: Callable[[], Result]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@dataclasses.dataclass
class _Rounds:
    """Times of all peers, in seconds, and the probe of each round, in FLOP/s."""

    seconds: dict[tuple[str, float], list[float]]
    probes: list[float]
    repeated: int = 0

    def drop_disturbed(self) -> None:
        best = max(self.probes)
        kept = [i for i, probe in enumerate(self.probes) if probe >= (1 - MAX_PROBE_SPREAD) * best]
        self.repeated += len(self.probes) - len(kept)
        self.probes = [self.probes[i] for i in kept]
        self.seconds = {key: [times[i] for i in kept] for key, times in self.seconds.items()}


def _measure(
    calls: dict[tuple[str, float], Callable[[], Result]],
    rounds: int,
    progress: Callable[[int], None],
) -> _Rounds:
    for call in calls.values():
        call()
    result = _Rounds({key: [] for key in calls}, [])
    keys = list(calls)
    for attempt in range(3 * rounds):
        before = _C.peak_flops()
        turn = attempt % len(keys)
        for key in keys[turn:] + keys[:turn]:
            result.seconds[key].append(_time(calls[key]))
        # The slower of the two: a disturbance during the round shows in one of them.
        result.probes.append(min(before, _C.peak_flops()))
        result.drop_disturbed()
        progress(len(result.probes))
        if len(result.probes) >= rounds:
            break
    return result


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def run(config: Config, progress: Progress | None = None) -> list[Row]:
    """Measure one attention layer: headkit at every share of open heads, and the dense peers.

    Args:
        config: what to measure.
        progress: called with (what is measured, rounds done, rounds in all).

    Returns:
        list[Row]: one row for each number of threads, length, peer and share.

    Raises:
        RuntimeError: if the output or a gradient of a peer differs from the float64 reference.

    Example:
        >>> rows = run(Config(batch=1, lengths=(4,), dim=16, heads=2, threads=(1,), rounds=1))
        >>> [row.share for row in rows if row.name == "headkit"]
        [1.0, 0.5]
    """
    rows = []
    for count in config.threads:
        for length in config.lengths:
            grad = torch.set_grad_enabled(config.measure != "forward")
            with _on_threads(count) as threads, grad:
                layer = _Layer(config, length)
                calls = layer.peers()
                errors = {key: layer.max_error(*key, call()) for key, call in calls.items()}
                label = f"{threads} thread{'s' * (threads > 1)}, T={length}"

                def report(done: int, label: str = label) -> None:
                    if progress is not None:
                        progress(label, done, config.rounds)

                measured = _measure(calls, config.rounds, report)
            rows += _rows(config, threads, length, measured, errors)
    return rows


def _rows(
    config: Config,
    threads: int,
    length: int,
    measured: _Rounds,
    errors: dict[tuple[str, float], float],
) -> list[Row]:
    probes = measured.probes
    dense = measured.seconds[(HEADKIT, 1.0)]
    pair_flops = config.pair_flops(length)
    rows = []
    for (name, share), seconds in measured.seconds.items():
        flops = pair_flops * config.batch * config.heads * share
        rows.append(
            Row(
                name=name,
                threads=threads,
                length=length,
                share=share,
                milliseconds=1e3 * statistics.median(seconds),
                min_milliseconds=1e3 * min(seconds),
                useful_flops=flops,
                of_probe=statistics.median(
                    flops / s / p for s, p in zip(seconds, probes, strict=True)
                ),
                times_headkit=_median_ratio(seconds, dense),
                of_ideal=share * _median_ratio(dense, seconds) if name == HEADKIT else None,
                max_error=errors[(name, share)],
                rounds=len(seconds),
                repeated_rounds=measured.repeated,
                probe_flops=statistics.median(probes),
                probe_spread=1.0 - min(probes) / max(probes),
                void=len(seconds) < config.rounds,
            )
        )
    return rows
