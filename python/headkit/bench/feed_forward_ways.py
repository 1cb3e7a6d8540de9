"""Ways to compute a feed-forward layer."""

from __future__ import annotations

import torch
from torch.nn import functional

import headkit
from headkit.bench.dense_ways import NO_DERIVATIVE, packed_linear
from headkit.bench.feed_forward_layer import FeedForwardLayer
from headkit.bench.peer import HEADKIT
from headkit.bench.way import Tensors, Way

COMPILED = "torch.compile(feed-forward)"


def _linear_gelu_linear(
    x: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
) -> torch.Tensor:
    hidden = functional.gelu(functional.linear(x, in_weight, in_bias))
    return functional.linear(hidden, out_weight, out_bias)


def _packed(x: torch.Tensor, in_weight, in_bias, out_weight, out_bias):
    rows = x.shape[0] * x.shape[1]
    inner = packed_linear(in_weight, in_bias, rows, "gelu")
    outer = packed_linear(out_weight, out_bias, rows)
    return lambda: outer(inner(x))


def _all_open(layer: FeedForwardLayer) -> torch.Tensor:
    return torch.ones(layer.rows[0], layer.neurons // layer.block)


def dense_ways(layer: FeedForwardLayer) -> list[Way]:
    """linear, GELU, linear; and with packed weights and a fused GELU."""
    leaves, gate = layer.leaves, _all_open(layer)
    ways = [
        Way("linear, gelu, linear", 1.0, lambda: _linear_gelu_linear(*leaves), leaves, list, gate)
    ]
    if torch.backends.mkldnn.is_available():
        packed = _packed(*leaves)
        ways.append(
            Way("oneDNN-packed, fused gelu", 1.0, packed, leaves, list, gate, NO_DERIVATIVE)
        )
    return ways


class _Frozen(torch.nn.Module):
    """Weights as parameters, which is what torch.compile can freeze."""

    def __init__(self, leaves: list[torch.Tensor]) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(leaf, requires_grad=False) for leaf in leaves[1:]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D]."""
        return _linear_gelu_linear(x, *self.weights)


def compiled_way(layer: FeedForwardLayer, *, trained: bool) -> Way:
    """linear, GELU, linear, compiled; with frozen weights where nothing is trained."""
    torch.compiler.reset()
    leaves, gate = layer.leaves, _all_open(layer)
    if trained:
        compiled = torch.compile(_linear_gelu_linear, dynamic=False)
        return Way(COMPILED, 1.0, lambda: compiled(*leaves), leaves, list, gate)
    frozen = torch.compile(_Frozen(leaves).eval(), dynamic=False, options={"freezing": True})
    return Way(COMPILED, 1.0, lambda: frozen(layer.x), leaves, list, gate)


def mask_multiply(layer: FeedForwardLayer, share: float, gate: torch.Tensor) -> Way:
    """All neurons are computed, closed blocks multiplied by 0."""
    factor = gate.to(layer.dtype).repeat_interleave(layer.block, 1)[:, None]

    def forward() -> torch.Tensor:
        x, in_weight, in_bias, out_weight, out_bias = layer.leaves
        hidden = functional.gelu(functional.linear(x, in_weight, in_bias)) * factor
        return functional.linear(hidden, out_weight, out_bias)

    return Way("mask multiply", share, forward, layer.leaves, list, gate)


def gather_by_sample(layer: FeedForwardLayer, share: float, gate: torch.Tensor) -> Way:
    """For each sample the rows and columns of its open neurons."""

    def forward() -> torch.Tensor:
        x, in_weight, in_bias, out_weight, out_bias = layer.leaves
        blocks = in_weight.unflatten(0, (-1, layer.block))
        biases = in_bias.unflatten(0, (-1, layer.block))
        columns = out_weight.unflatten(1, (-1, layer.block))
        samples = []
        for sample, opened in zip(x, gate, strict=True):
            index = opened.nonzero().squeeze(1)
            samples.append(
                _linear_gelu_linear(
                    sample,
                    blocks[index].flatten(0, 1),
                    biases[index].flatten(),
                    columns[:, index].flatten(1),
                    out_bias,
                )
            )
        return torch.stack(samples)

    return Way("gather by sample", share, forward, layer.leaves, list, gate)


def pruned_ways(layer: FeedForwardLayer, share: float) -> list[Way]:
    """The same blocks open for all samples, and the others gone from the weights."""
    count = round(share * (layer.neurons // layer.block))
    width, missing = count * layer.block, layer.neurons - count * layer.block
    gate = torch.zeros(layer.rows[0], layer.neurons // layer.block)
    gate[:, :count] = 1.0
    with torch.no_grad():
        smaller = [
            layer.in_weight[:width].clone(),
            layer.in_bias[:width].clone(),
            layer.out_weight[:, :width].contiguous(),
            layer.out_bias.clone(),
        ]
    leaves = [layer.x, *(leaf.requires_grad_(layer.x.requires_grad) for leaf in smaller)]

    def canonical(gradients: Tensors) -> list[torch.Tensor]:
        x, in_weight, in_bias, out_weight, out_bias = gradients
        return [
            x,
            functional.pad(in_weight, (0, 0, 0, missing)),
            functional.pad(in_bias, (0, missing)),
            functional.pad(out_weight, (0, missing)),
            out_bias,
        ]

    ways = [
        Way(
            "pruned, linear, gelu, linear",
            share,
            lambda: _linear_gelu_linear(*leaves),
            leaves,
            canonical,
            gate,
        )
    ]
    if torch.backends.mkldnn.is_available():
        packed = _packed(*leaves)
        name = "pruned, oneDNN-packed"
        ways.append(Way(name, share, packed, leaves, canonical, gate, NO_DERIVATIVE))
    return ways


def headkit_way(layer: FeedForwardLayer, share: float, gate: torch.Tensor) -> Way:
    """The gated operator."""

    def forward() -> torch.Tensor:
        return headkit.gated_feed_forward(
            layer.x, layer.weights, activation="gelu", block_size=layer.block, gate=gate
        )

    return Way(HEADKIT, share, forward, layer.leaves, list, gate)
