"""Attention masks of transformers, read as what the operator takes without a matrix."""

from typing import NamedTuple

import torch


class Mask(NamedTuple):
    """Which keys a query sees.

    Attributes:
        padding: bool [B, S], True = attend; None = all keys.
        causal: whether a query sees no key after its own place.
        offset: place among the keys of the first query, where ``causal``.
        bias: broadcastable to [B, H, T, S], added to the scores; None = nothing.
    """

    padding: torch.Tensor | None = None
    causal: bool = False
    offset: int = 0
    bias: torch.Tensor | None = None


def read_mask(
    mask: torch.Tensor | None,
    hidden: torch.Tensor,
    keys: int | None = None,
    *,
    causal: bool = False,
) -> Mask:
    """Read an attention mask as key padding, causality and, only where it must be, a bias.

    Args:
        mask: None; bool or 0/1 integers [B, S]; bool [B or 1, 1 or H, T, S], True = attend; or
            floating point of that shape, added to the scores.
        hidden: [B, T, D], the queries' hidden states.
        keys: number of keys, S; None = T.
        causal: whether the block is causal where its mask is None or two-dimensional. A
            four-dimensional mask says everything itself.

    Returns:
        Mask: exact; a query without any key to see gets attention output 0.

    Raises:
        ValueError: for another shape.
    """
    batch, tokens = hidden.shape[:2]
    keys = tokens if keys is None else keys
    implied = causal and tokens > 1
    if mask is None:
        return Mask(causal=implied)
    if mask.dim() == 2 and tuple(mask.shape) == (batch, keys):
        return Mask(padding=mask.to(torch.bool), causal=implied)
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[2:] != (tokens, keys):
        raise ValueError(
            f"[attention] expected a mask of shape [{batch}, {keys}] or "
            f"[{batch}, 1, {tokens}, {keys}]; found shape {list(mask.shape)}"
        )
    if not torch.compiler.is_compiling() and mask.shape[1] == 1 and mask.numel() > 0:
        plain = _without_matrix(mask[:, 0], batch)
        if plain is not None:
            return plain
    if mask.dtype == torch.bool:
        # Minus infinity, not the least number: a query that may see nothing gets 0, as under sdpa.
        return Mask(bias=torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, -torch.inf))
    return Mask(bias=mask.to(hidden.dtype))


def _without_matrix(mask: torch.Tensor, batch: int) -> Mask | None:
    """The mask [B or 1, T, S] as padding and causality, if it is no more than that."""
    last = _attends(mask[:, -1:])
    if last is None:
        return None
    padding = None if bool(last.all()) else last[:, 0].expand(batch, -1)
    attends = _attends(mask)
    if attends is None:
        return None
    if torch.equal(attends, last.expand_as(attends)):
        return Mask(padding=padding)
    for offset in sorted({0, max(0, mask.shape[2] - mask.shape[1])}):
        if torch.equal(attends, last.expand_as(attends).tril(offset)):
            return Mask(padding=padding, causal=True, offset=offset)
    return None


def _attends(mask: torch.Tensor) -> torch.Tensor | None:
    """Where a mask attends, bool; None if it does more than open and close."""
    if mask.dtype == torch.bool:
        return mask
    opened = mask == 0
    closed = mask <= torch.finfo(mask.dtype).min / 2
    return opened if bool((opened | closed).all()) else None


def as_bias(mask: Mask, scores: torch.Tensor) -> torch.Tensor | None:
    """What ``mask`` adds to ``scores`` [B, H, T, S], broadcastable to it; None = nothing."""
    attends = None
    if mask.causal:
        attends = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device)
        attends = attends.tril(mask.offset)
    if mask.padding is not None:
        padding = mask.padding[:, None, None]
        attends = padding if attends is None else attends & padding
    if attends is None:
        return mask.bias
    bias = torch.zeros(attends.shape, dtype=scores.dtype, device=scores.device)
    bias = bias.masked_fill(~attends, torch.finfo(scores.dtype).min)
    return bias if mask.bias is None else bias + mask.bias
