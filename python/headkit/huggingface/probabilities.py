"""Attention probabilities, for those who ask a model for them."""

from typing import TYPE_CHECKING

import torch

from headkit.huggingface.adapter import Norms, Weights
from headkit.huggingface.masks import Mask, as_bias

if TYPE_CHECKING:
    from headkit.huggingface.attention_block import Block, Inputs


def attention_probabilities(
    block: "Block", inputs: "Inputs", weights: Weights, norms: Norms | None, mask: Mask
) -> torch.Tensor:
    """Softmax of the scores, of the heads that are there.

    Args:
        block: the block.
        inputs: what it was called with.
        weights: its weights.
        norms: of queries and keys, or None.
        mask: which keys are seen.

    Returns:
        Tensor: [B, kept heads, T, S].
    """
    source = inputs.hidden if inputs.source is None else inputs.source
    query = _heads(inputs.hidden, weights.q, weights.q_bias, block.head_dim)
    key = _heads(source, weights.k, weights.k_bias, block.head_dim)
    if norms is not None:
        query = torch.nn.functional.rms_norm(query, (block.head_dim,), norms.q, norms.eps)
        key = torch.nn.functional.rms_norm(key, (block.head_dim,), norms.k, norms.eps)
    if inputs.rotary is not None:
        query, key = rotate(query, *inputs.rotary), rotate(key, *inputs.rotary)
    return probabilities_of(block, inputs, query, key, mask)


def probabilities_of(
    block: "Block", inputs: "Inputs", query: torch.Tensor, key: torch.Tensor, mask: Mask
) -> torch.Tensor:
    """The same from queries [B, kept heads, T, dh] and keys [B, kv heads, S, dh]."""
    heads, present = query.shape[1], key.shape[1]
    kv_head = block.kv_head(present)
    if kv_head is not None:
        key = key[:, kv_head]
    elif present != heads:
        key = key.repeat_interleave(heads // present, 1)
    scores = query @ key.transpose(2, 3) * inputs.scaling
    bias = as_bias(mask, scores)
    for part in (inputs.position_bias, bias):
        if part is None:
            continue
        pruned = block.origin.is_pruned and part.shape[1] == block.origin.heads > 1
        scores = scores + (part[:, block.origin.kept] if pruned else part)
    return scores.softmax(-1)


def rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [B, H, T, dh], half-split layout; cos and sin [B or 1, T, dr].

    Source: Su et al. 2021 (RoFormer).
    """
    width = cos.shape[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    first, second = turned.chunk(2, -1)
    crossed = torch.cat((-second, first), -1)
    turned = turned * cos[:, None] + crossed * sin[:, None]
    return torch.cat((turned, rest), -1)


def _heads(
    source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head_dim: int
) -> torch.Tensor:
    projected = torch.nn.functional.linear(source, weight, bias)
    return projected.unflatten(-1, (weight.shape[0] // head_dim, head_dim)).transpose(1, 2)
