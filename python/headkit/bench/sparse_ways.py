"""How users skip heads, or pretend to, with PyTorch alone."""

from __future__ import annotations

import torch
from torch.nn import functional

from headkit.bench.attention_layer import AttentionLayer, from_packed_projection
from headkit.bench.dense_ways import NO_DERIVATIVE, packed_linear
from headkit.bench.way import Tensors, Way


def mask_multiply(layer: AttentionLayer, share: float, gate: torch.Tensor) -> Way:
    """All heads are computed, closed ones multiplied by 0."""
    factor = gate.to(layer.dtype)[:, :, None, None]

    def forward() -> torch.Tensor:
        context = functional.scaled_dot_product_attention(*layer.project())
        return layer.output(context * factor)

    leaves = [layer.x, *layer.torch_module.parameters()]
    return Way("mask multiply", share, forward, leaves, from_packed_projection, gate)


class _ByHead:
    """Weights cut by head: [H, D, 3 dh] and [H, dh, D]."""

    def __init__(self, layer: AttentionLayer) -> None:
        module, heads, head_dim = layer.torch_module, layer.heads, layer.head_dim
        trained = module.in_proj_weight.requires_grad
        self.layer = layer
        with torch.no_grad():
            in_weight = module.in_proj_weight.view(3, heads, head_dim, layer.dim)
            in_bias = module.in_proj_bias.view(3, heads, 1, head_dim)
            self.in_weight = in_weight.permute(1, 3, 0, 2).flatten(2).contiguous()
            self.in_bias = in_bias.permute(1, 2, 0, 3).flatten(2).contiguous()
            out_weight = module.out_proj.weight
            self.out_weight = out_weight.t().reshape(heads, head_dim, layer.dim).contiguous()
            self.out_bias = module.out_proj.bias.clone()
        for leaf in self.leaves()[1:]:
            leaf.requires_grad_(trained)

    def leaves(self) -> list[torch.Tensor]:
        return [self.layer.x, self.in_weight, self.in_bias, self.out_weight, self.out_bias]

    def canonical(self, gradients: Tensors) -> list[torch.Tensor]:
        x, in_weight, in_bias, out_weight, out_bias = gradients
        found = [x]
        parts = zip(in_weight.chunk(3, 2), in_bias.chunk(3, 2), strict=True)
        for weight, bias in parts:
            found += [weight.transpose(1, 2).flatten(0, 1), bias.flatten()]
        return [*found, out_weight.flatten(0, 1).t(), out_bias]

    def start(self) -> torch.Tensor:
        return self.out_bias.expand_as(self.layer.x).clone()


def gather_by_pair(layer: AttentionLayer, share: float, gate: torch.Tensor) -> Way:
    """Rows and weights of all open pairs are gathered, batched products, one index_add."""
    weights = _ByHead(layer)

    def forward() -> torch.Tensor:
        sample, head = gate.nonzero(as_tuple=True)
        qkv = torch.baddbmm(weights.in_bias[head], layer.x[sample], weights.in_weight[head])
        q, k, v = qkv.unsqueeze(1).chunk(3, -1)
        context = functional.scaled_dot_product_attention(q, k, v).squeeze(1)
        contribution = torch.bmm(context, weights.out_weight[head])
        return weights.start().index_add(0, sample, contribution)

    leaves = weights.leaves()
    return Way("gather by pair", share, forward, leaves, weights.canonical, gate)


def gather_by_head(layer: AttentionLayer, share: float, gate: torch.Tensor) -> Way:
    """For each head the rows of the samples in which it is open; an index_add for each."""
    weights = _ByHead(layer)

    def forward() -> torch.Tensor:
        y = weights.start()
        for head in range(layer.heads):
            sample = gate[:, head].nonzero().squeeze(1)
            if not len(sample):
                continue
            qkv = layer.x[sample] @ weights.in_weight[head] + weights.in_bias[head]
            q, k, v = qkv.unsqueeze(1).chunk(3, -1)
            context = functional.scaled_dot_product_attention(q, k, v).squeeze(1)
            y = y.index_add_(0, sample, context @ weights.out_weight[head])
        return y

    leaves = weights.leaves()
    return Way("gather by head", share, forward, leaves, weights.canonical, gate)


class _Pruned:
    """A layer that has only its first heads."""

    def __init__(self, layer: AttentionLayer, heads: int) -> None:
        module, width = layer.torch_module, heads * layer.head_dim
        trained = module.in_proj_weight.requires_grad
        self.layer, self.width = layer, width
        with torch.no_grad():
            in_weight = module.in_proj_weight.view(3, layer.dim, layer.dim)
            self.in_weight = in_weight[:, :width].flatten(0, 1).contiguous()
            self.in_bias = module.in_proj_bias.view(3, layer.dim)[:, :width].flatten().contiguous()
            self.out_weight = module.out_proj.weight[:, :width].contiguous()
            self.out_bias = module.out_proj.bias.clone()
        for leaf in self.leaves()[1:]:
            leaf.requires_grad_(trained)

    def leaves(self) -> list[torch.Tensor]:
        return [self.layer.x, self.in_weight, self.in_bias, self.out_weight, self.out_bias]

    def canonical(self, gradients: Tensors) -> list[torch.Tensor]:
        x, in_weight, in_bias, out_weight, out_bias = gradients
        missing = self.layer.dim - self.width
        found = [x]
        for weight, bias in zip(in_weight.chunk(3), in_bias.chunk(3), strict=True):
            found += [
                functional.pad(weight, (0, 0, 0, missing)),
                functional.pad(bias, (0, missing)),
            ]
        return [*found, functional.pad(out_weight, (0, missing)), out_bias]


def pruned_ways(layer: AttentionLayer, share: float) -> list[Way]:
    """The same heads open for all samples, and the others gone from the weights."""
    heads = round(share * layer.heads)
    pruned = _Pruned(layer, heads)
    gate = torch.zeros(layer.batch, layer.heads)
    gate[:, :heads] = 1.0

    def linear() -> torch.Tensor:
        qkv = functional.linear(layer.x, pruned.in_weight, pruned.in_bias)
        context = functional.scaled_dot_product_attention(*layer.split_heads(qkv))
        return functional.linear(layer.merge_heads(context), pruned.out_weight, pruned.out_bias)

    leaves = pruned.leaves()
    ways = [Way("pruned, linear + SDPA", share, linear, leaves, pruned.canonical, gate)]
    if torch.backends.mkldnn.is_available():
        rows = layer.batch * layer.length
        project = packed_linear(pruned.in_weight, pruned.in_bias, rows)
        output = packed_linear(pruned.out_weight, pruned.out_bias, rows)

        def packed() -> torch.Tensor:
            qkv = layer.split_heads(project(layer.x))
            return output(layer.merge_heads(functional.scaled_dot_product_attention(*qkv)))

        name = "pruned, oneDNN-packed"
        ways.append(Way(name, share, packed, leaves, pruned.canonical, gate, NO_DERIVATIVE))
    return ways
