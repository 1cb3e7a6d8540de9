"""One token against a cache of keys and values: headkit reads those of open heads only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch.nn import functional

from headkit.bench.dense_ways import packed_linear
from headkit.bench.exactness import require_close
from headkit.bench.open_units import random_gates
from headkit.bench.peer import HEADKIT, Case, Peer, Setting, Work
from headkit.bench.routine import Routine
from headkit.bench.sizes import DTYPES, require_known, require_layer


@dataclasses.dataclass(frozen=True)
class Decode(Routine):
    """The attention layer of a decoder at one new token: project, write to the cache, attend.

    Attributes:
        batch: sequences, B.
        lengths: positions in the cache, S, the new one included; a case for each.
        dim: width, D.
        heads: H, a divisor of ``dim``.
        kv_heads: heads of keys and values, a divisor of ``heads``; 0 = as many as heads.
        dtype: ``float32`` or ``bfloat16``.
        shares: of open heads beside 1.
        seed: of inputs, weights and gates.

    Raises:
        ValueError: if the sizes do not fit together.

    Example:
        >>> Decode(lengths=(2048,)).settings()
        [{'B': 16, 'S': 2048, 'D': 768, 'H': 12, 'KV': 12, 'dtype': 'float32'}]
    """

    NAME: ClassVar[str] = "decode"

    batch: int = 16
    lengths: tuple[int, ...] = (512, 2048)
    dim: int = 768
    heads: int = 12
    kv_heads: int = 0
    dtype: str = "float32"
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)
    seed: int = 0

    def __post_init__(self) -> None:
        require_layer((self.batch,), self.lengths, self.dim, self.heads)
        require_known((self.dtype,), DTYPES)
        if self.kv_heads < 0 or (self.kv_heads and self.heads % self.kv_heads):
            raise ValueError(
                "[bench] expected KV heads that divide the heads; found "
                f"{self.kv_heads} and {self.heads}"
            )

    def settings(self) -> list[Setting]:
        """One for each length of the cache."""
        return [
            {
                "B": self.batch,
                "S": length,
                "D": self.dim,
                "H": self.heads,
                "KV": self.kv_heads or self.heads,
                "dtype": self.dtype,
            }
            for length in self.lengths
        ]

    def work(self, length: int, gate: torch.Tensor) -> Work:
        """Of a head: 4 D dh for Q and O, 4 S dh for the core; of a KV head 4 D dh. Bytes: weights
        of heads open anywhere, keys and values of those a sequence reads."""
        head_dim, groups = self.dim // self.heads, self.kv_heads or self.heads
        is_open = gate != 0
        needed = is_open.unflatten(1, (groups, -1)).any(2)
        pairs, kv_pairs = int(is_open.sum()), int(needed.sum())
        flops = 4.0 * head_dim * (pairs * (self.dim + length) + kv_pairs * self.dim)
        weights = 2.0 * self.dim * head_dim * int(is_open.any(0).sum() + needed.any(0).sum())
        read = weights + 2.0 * kv_pairs * length * head_dim + 2.0 * self.batch * self.dim
        return Work(flops, DTYPES[self.dtype].itemsize * read)

    def case(self, setting: Setting) -> Case:
        """Dense peers, heads multiplied by 0, and headkit at every share."""
        length = int(setting["S"])
        torch.manual_seed(self.seed)
        layer = _Layer(self, length)
        gates = random_gates(self.batch, self.heads, self.shares)
        ways: list[tuple[str, float, torch.Tensor, Callable[[], torch.Tensor]]] = []
        dense = gates[1.0]
        ways.append(("linear + SDPA", 1.0, dense, layer.linear))
        if torch.backends.mkldnn.is_available():
            ways.append(("oneDNN-packed linear + SDPA", 1.0, dense, layer.packed()))
        for share, gate in gates.items():
            if share < 1:
                masked = lambda g=gate: layer.linear(g)  # noqa: E731
                ways.append(("mask multiply", share, gate, masked))
        for share, gate in gates.items():
            ways.append((HEADKIT, share, gate, layer.headkit(gate)))
        case = Case([], [], DTYPES[self.dtype])
        with torch.no_grad():
            for name, share, gate, call in ways:
                what = f"{name} at S={length}, {share:.0%}"
                error = require_close([call()], [layer.exact(gate)], case.dtype, what)
                case.peers.append(Peer(name, share, call, self.work(length, gate), error))
        return case


class _Layer:
    """Random weights, one token a sequence, and a cache whose last position is written."""

    def __init__(self, sizes: Decode, length: int) -> None:
        dtype, dim, batch = DTYPES[sizes.dtype], sizes.dim, sizes.batch
        self.heads, self.kv_heads = sizes.heads, sizes.kv_heads or sizes.heads
        self.head_dim, self.length = dim // sizes.heads, length
        width = self.kv_heads * self.head_dim

        def random(*shape: int, size: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape) * size).to(dtype)

        self.x = random(batch, 1, dim)
        self.in_weight = random(dim + 2 * width, dim, size=dim**-0.5)
        self.in_bias = random(dim + 2 * width)
        self.out_weight, self.out_bias = random(dim, dim, size=dim**-0.5), random(dim)
        self.keys, self.values = (
            random(batch, self.kv_heads, length, self.head_dim) for _ in range(2)
        )

    def _attend(self, qkv: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        heads = qkv.view(len(qkv), 1, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], 1)
        self.keys[:, :, -1:], self.values[:, :, -1:] = k, v
        context = functional.scaled_dot_product_attention(
            q, self.keys, self.values, enable_gqa=self.heads != self.kv_heads
        )
        if gate is not None:
            context = context * gate.to(context.dtype)[:, :, None, None]
        return context.transpose(1, 2).flatten(2)

    @torch.no_grad()
    def linear(self, gate: torch.Tensor | None = None) -> torch.Tensor:
        merged = self._attend(functional.linear(self.x, self.in_weight, self.in_bias), gate)
        return functional.linear(merged, self.out_weight, self.out_bias)

    def packed(self) -> Callable[[], torch.Tensor]:
        project = packed_linear(self.in_weight, self.in_bias, len(self.x))
        output = packed_linear(self.out_weight, self.out_bias, len(self.x))

        @torch.no_grad()
        def call() -> torch.Tensor:
            return output(self._attend(project(self.x), None))

        return call

    def headkit(self, gate: torch.Tensor) -> Callable[[], torch.Tensor]:
        sizes = [self.heads * self.head_dim, *[self.kv_heads * self.head_dim] * 2]
        q_weight, k_weight, v_weight = (part.clone() for part in self.in_weight.split(sizes))
        q_bias, k_bias, v_bias = (part.clone() for part in self.in_bias.split(sizes))
        needed = gate.unflatten(1, (self.kv_heads, -1)).amax(2)

        @torch.no_grad()
        def call() -> torch.Tensor:
            keys, values = torch.ops.headkit.project_kv(
                self.x, k_weight, v_weight, self.kv_heads, k_bias=k_bias, v_bias=v_bias, gate=needed
            )
            self.keys[:, :, -1:], self.values[:, :, -1:] = keys, values
            return torch.ops.headkit.attend(
                self.x,
                self.keys,
                self.values,
                q_weight,
                self.out_weight,
                self.heads,
                q_bias=q_bias,
                o_bias=self.out_bias,
                gate=gate,
            )

        return call

    def exact(self, gate: torch.Tensor) -> torch.Tensor:
        groups = self.heads // self.kv_heads
        qkv = self.x.double() @ self.in_weight.double().t() + self.in_bias.double()
        heads = qkv.view(len(qkv), 1, -1, self.head_dim).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], 1)
        keys = torch.cat([self.keys[:, :, :-1].double(), k], 2).repeat_interleave(groups, 1)
        values = torch.cat([self.values[:, :, :-1].double(), v], 2).repeat_interleave(groups, 1)
        scores = q @ keys.transpose(2, 3) * self.head_dim**-0.5
        context = scores.softmax(-1) @ values * gate.double()[:, :, None, None]
        merged = context.transpose(1, 2).flatten(2)
        return merged @ self.out_weight.double().t() + self.out_bias.double()
