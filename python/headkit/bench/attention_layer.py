"""One random attention layer, and the truth about it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

import headkit
from headkit.bench.way import Tensors


def from_packed_projection(gradients: Tensors) -> list[torch.Tensor]:
    """Gradients of x, in_proj and out_proj in the order of x, q, k, v, o: weight, bias each."""
    x, in_weight, in_bias, out_weight, out_bias = gradients
    weights, biases = in_weight.chunk(3), in_bias.chunk(3)
    pairs = [pair for both in zip(weights, biases, strict=True) for pair in both]
    return [x, *pairs, out_weight, out_bias]


class AttentionLayer:
    """Random x, weights and biases, as ``nn.MultiheadAttention`` and as headkit's module.

    Args:
        batch: samples, B.
        length: tokens, T.
        dim: width, D.
        heads: H, a divisor of ``dim``.
        dtype: of all of it.

    Example:
        >>> AttentionLayer(1, 4, 8, 2, torch.float32).head_dim
        4
    """

    def __init__(self, batch: int, length: int, dim: int, heads: int, dtype: torch.dtype) -> None:
        self.batch, self.length, self.dim, self.heads = batch, length, dim, heads
        self.head_dim, self.dtype = dim // heads, dtype
        self.x = torch.randn(batch, length, dim).to(dtype)
        self.direction = torch.randn(batch, length, dim).to(dtype)
        module = nn.MultiheadAttention(dim, heads, batch_first=True)
        nn.init.normal_(module.in_proj_bias)
        nn.init.normal_(module.out_proj.bias)
        self.torch_module = module.to(dtype).eval()
        self.module = headkit.nn.MultiHeadAttention.from_torch(self.torch_module).eval()

    def split_heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Q, K, V [B, heads, T, dh] of a packed projection [B, T, 3 * heads * dh]."""
        heads = qkv.shape[-1] // (3 * self.head_dim)
        shape = (self.batch, -1, 3, heads, self.head_dim)
        return qkv.view(shape).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def merge_heads(context: torch.Tensor) -> torch.Tensor:
        """[B, T, heads * dh] of [B, heads, T, dh]."""
        return context.transpose(1, 2).flatten(2)

    def project(self) -> tuple[torch.Tensor, ...]:
        """Q, K, V of all heads by one linear layer."""
        module = self.torch_module
        return self.split_heads(
            functional.linear(self.x, module.in_proj_weight, module.in_proj_bias)
        )

    def output(self, context: torch.Tensor) -> torch.Tensor:
        """The output projection of [B, H, T, dh] by one linear layer."""
        out = self.torch_module.out_proj
        return functional.linear(self.merge_heads(context), out.weight, out.bias)

    def exact_output(self, gate: torch.Tensor) -> torch.Tensor:
        """Output in float64, sample by sample: long sequences have large attention matrices."""
        module = headkit.nn.MultiHeadAttention.from_torch(self.torch_module).double()
        weights, x = module.weights(), self.x.detach().double()
        samples = [
            headkit.reference_attention(x[b : b + 1], weights, self.heads, gate=gate[b : b + 1])
            for b in range(self.batch)
        ]
        return torch.cat(samples)

    def exact_gradients(self, gate: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of x, then weight and bias of q, k, v, o, in float64, summed up by sample."""
        module = headkit.nn.MultiHeadAttention.from_torch(self.torch_module).double()
        direction, of_x = self.direction.double(), []
        of_weights = [torch.zeros_like(parameter) for parameter in module.parameters()]
        for b in range(self.batch):
            x = self.x[b : b + 1].detach().double().requires_grad_()
            y = headkit.reference_attention(x, module.weights(), self.heads, gate=gate[b : b + 1])
            leaves = [x, *module.parameters()]
            first, *others = torch.autograd.grad(y, leaves, direction[b : b + 1])
            of_x.append(first)
            of_weights = [total + one for total, one in zip(of_weights, others, strict=True)]
        return [torch.cat(of_x), *of_weights]
