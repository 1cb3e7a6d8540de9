"""Attention masks of transformers, read as what the operator takes without a matrix."""

from typing import NamedTuple

import torch


class Mask(NamedTuple):
    """Which keys a query sees.

    Attributes:
        padding: bool [B, S], True = attend; None = all keys.
        causal: whether a query sees no key after its own place.
        offset: place among the keys of the first query, where ``causal``.
        window: a query sees keys at distances below this; None = at any.
        bias: broadcastable to [B, H, T, S], added to the scores; None = nothing.
    """

    padding: torch.Tensor | None = None
    causal: bool = False
    offset: int = 0
    window: int | None = None
    bias: torch.Tensor | None = None


def read_mask(
    mask: torch.Tensor | None,
    hidden: torch.Tensor,
    keys: int | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Mask:
    """Read an attention mask as key padding, causality, window and, only where it must be, a bias.

    Args:
        mask: None; bool or 0/1 integers [B, S]; bool [B or 1, 1 or H, T or 1, S], True = attend;
            or floating point of that shape, added to the scores.
        hidden: [B, T, D], the queries' hidden states.
        keys: number of keys, S; None = T.
        causal: whether the block is causal where its mask is None or two-dimensional. A
            four-dimensional mask says everything itself.
        window: distances between query and key that the block sees are below this, where its mask
            is None or two-dimensional; and what to look for in other masks.

    Returns:
        Mask: exact; a query without any key to see gets attention output 0.

    Raises:
        ValueError: for another shape.
    """
    batch, tokens = hidden.shape[:2]
    keys = tokens if keys is None else keys
    implied = causal and tokens > 1
    if mask is None:
        return Mask(causal=implied, window=window)
    if mask.dim() == 2 and tuple(mask.shape) == (batch, keys):
        return Mask(padding=mask.to(torch.bool), causal=implied, window=window)
    if mask.dim() == 4 and mask.shape[2] == 1:
        mask = mask.expand(-1, -1, tokens, -1)
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[2:] != (tokens, keys):
        raise ValueError(
            f"[attention] expected a mask of shape [{batch}, {keys}] or "
            f"[{batch}, 1, {tokens}, {keys}]; found shape {list(mask.shape)}"
        )
    if not torch.compiler.is_compiling() and mask.shape[1] == 1 and mask.numel() > 0:
        plain = _without_matrix(mask[:, 0], batch, window)
        if plain is not None:
            return plain
    if mask.dtype == torch.bool:
        # Minus infinity, not the least number: a query that may see nothing gets 0, as under sdpa.
        return Mask(bias=torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, -torch.inf))
    return Mask(bias=mask.to(hidden.dtype))


def _without_matrix(mask: torch.Tensor, batch: int, window: int | None) -> Mask | None:
    """The mask [B or 1, T, S] as padding, causality and window, if it is no more than that."""
    last = where_open(mask[:, -1:])
    if last is None:
        return None
    padding = None if bool(last.all()) else last[:, 0].expand(batch, -1)
    attends = where_open(mask)
    if attends is None:
        return None
    if torch.equal(attends, last.expand_as(attends)):
        return Mask(padding=padding)
    for offset in sorted({0, max(0, mask.shape[2] - mask.shape[1])}):
        if torch.equal(attends, last.expand_as(attends).tril(offset)):
            return Mask(padding=padding, causal=True, offset=offset)
    if window is not None and mask.shape[1] == mask.shape[2]:
        own = attends.diagonal(dim1=1, dim2=2)
        seen = own[:, None] & _near(mask.shape[1], mask.shape[2], window, mask.device)
        padding = None if bool(own.all()) else own.expand(batch, -1)
        for causal in (False, True):
            if torch.equal(attends, seen.tril() if causal else seen):
                return Mask(padding=padding, causal=causal, window=window)
    return None


def _near(
    queries: int, keys: int, window: int, device: torch.device, offset: int = 0
) -> torch.Tensor:
    """Whether query and key are less than ``window`` apart, bool [T, S]."""
    place = torch.arange(offset, queries + offset, device=device)
    return (place[:, None] - torch.arange(keys, device=device)).abs() < window


def where_open(mask: torch.Tensor) -> torch.Tensor | None:
    """Where a mask, bool or added to scores, is open; None if it does more than open and close."""
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
    if mask.window is not None:
        near = _near(*scores.shape[2:], mask.window, scores.device, mask.offset)
        attends = near if attends is None else attends & near
    if mask.padding is not None:
        padding = mask.padding[:, None, None]
        attends = padding if attends is None else attends & padding
    if attends is None:
        return mask.bias
    bias = torch.zeros(attends.shape, dtype=scores.dtype, device=scores.device)
    bias = bias.masked_fill(~attends, torch.finfo(scores.dtype).min)
    return bias if mask.bias is None else bias + mask.bias
