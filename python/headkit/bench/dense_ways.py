"""What PyTorch has for a dense attention layer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from headkit.bench.attention_layer import AttentionLayer, from_packed_projection
from headkit.bench.way import Way

NO_DERIVATIVE = "oneDNN's packed linear has no derivative"


def packed_linear(weight: torch.Tensor, bias: torch.Tensor | None, rows: int, activation="none"):
    """A linear layer whose weight oneDNN has laid out for so many rows.

    Args:
        weight: [out, in].
        bias: [out] or None.
        rows: of the input.
        activation: applied to the output: ``none``, ``relu``, ``gelu`` (exact).

    Returns:
        A function of x [..., in].

    Raises:
        RuntimeError: if this torch comes without oneDNN.

    Example:
        >>> linear = packed_linear(torch.ones(2, 3), None, 1)
        >>> linear(torch.ones(1, 3)).tolist()
        [[3.0, 3.0]]
    """
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("this torch comes without oneDNN")
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    linear = torch.ops.mkldnn._linear_pointwise
    algorithm = "none" if activation == "gelu" else ""
    bias = None if bias is None else bias.detach()
    return lambda x: linear(x, packed, bias, activation, [], algorithm)


def dense_ways(layer: AttentionLayer) -> list[Way]:
    """nn.MultiheadAttention, linear + SDPA, and the same with packed weights."""
    module = layer.torch_module
    leaves = [layer.x, *module.parameters()]
    gate = torch.ones(layer.batch, layer.heads)

    def multihead() -> torch.Tensor:
        return module(layer.x, layer.x, layer.x, need_weights=False)[0]

    def linear() -> torch.Tensor:
        return layer.output(functional.scaled_dot_product_attention(*layer.project()))

    ways = [
        Way("nn.MultiheadAttention", 1.0, multihead, leaves, from_packed_projection, gate),
        Way("linear + SDPA", 1.0, linear, leaves, from_packed_projection, gate),
    ]
    if torch.backends.mkldnn.is_available():
        rows = layer.batch * layer.length
        project = packed_linear(module.in_proj_weight, module.in_proj_bias, rows)
        output = packed_linear(module.out_proj.weight, module.out_proj.bias, rows)

        def packed() -> torch.Tensor:
            context = functional.scaled_dot_product_attention(*layer.split_heads(project(layer.x)))
            return output(layer.merge_heads(context))

        name = "oneDNN-packed linear + SDPA"
        ways.append(Way(name, 1.0, packed, leaves, from_packed_projection, gate, NO_DERIVATIVE))
    return ways


class LinearSdpa(nn.Module):
    """linear + SDPA as a module, which is what torch.compile can freeze."""

    def __init__(self, layer: AttentionLayer) -> None:
        super().__init__()
        self.inner, self.layer = layer.torch_module, [layer]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend, [B, T, D]."""
        layer, inner = self.layer[0], self.inner
        qkv = functional.linear(x, inner.in_proj_weight, inner.in_proj_bias)
        context = functional.scaled_dot_product_attention(*layer.split_heads(qkv))
        merged = layer.merge_heads(context)
        return functional.linear(merged, inner.out_proj.weight, inner.out_proj.bias)
