"""Attention probabilities, for those who ask a model for them."""

from typing import TYPE_CHECKING, Any

import torch

from headkit.gating import Call
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
    query = project_heads(inputs.hidden, weights.q, weights.q_bias, block.head_dim)
    key = project_heads(source, weights.k, weights.k_bias, block.head_dim)
    query = normed_and_turned(query, None if norms is None else norms.q, norms, inputs.rotary)
    key = normed_and_turned(key, None if norms is None else norms.k, norms, inputs.rotary)
    return probabilities_of(block, inputs, query, key, mask, block.kv_head(key.shape[1]))


def probabilities_of(
    block: "Block",
    inputs: "Inputs",
    query: torch.Tensor,
    key: torch.Tensor,
    mask: Mask,
    kv_head: list[int] | None,
) -> torch.Tensor:
    """The same from queries [B, kept heads, T, dh] and keys [B, kv heads, S, dh].

    ``kv_head``: which keys each head uses; None = evenly shared.
    """
    heads, present = query.shape[1], key.shape[1]
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


def normed_and_turned(
    heads: torch.Tensor,
    norm: torch.Tensor | None,
    norms: Norms | None,
    rotary: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Queries or keys [B, H, T, dh] after their norm and rotation, if they have them."""
    if norm is not None and norms is not None:
        heads = torch.nn.functional.rms_norm(heads, (heads.shape[-1],), norm, norms.eps)
    return heads if rotary is None else rotate(heads, *rotary)


def project_heads(
    source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, head_dim: int
) -> torch.Tensor:
    """Projection of [B, T, D] by heads, [B, H, T, dh]."""
    projected = torch.nn.functional.linear(source, weight, bias)
    return projected.unflatten(-1, (weight.shape[0] // head_dim, head_dim)).transpose(1, 2)


def wants_probabilities(config: Any, keywords: dict[str, Any], call: Call) -> bool:
    """Whether a call asks for attention probabilities, and the model's attention gives them."""
    if config is None or config._attn_implementation != "eager":
        return False
    wants = keywords.get("output_attentions", call.attentions)
    return bool(config.output_attentions if wants is None else wants)
