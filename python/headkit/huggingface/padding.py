"""Attention masks of transformers, read as key padding where that is exact."""

import torch


def read_mask(
    mask: torch.Tensor | None, hidden: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Split an attention mask into key padding and an additive bias.

    Args:
        mask: None; bool or 0/1 integers [B, T]; bool [B or 1, 1 or H, T, T], True = attend; or
            floating point of that shape, added to the scores.
        hidden: [B, T, D], the input of the first layer.

    Returns:
        ``(padding, None)`` with padding bool [B, T], True = attend, where every query sees the same
        keys; else ``(None, bias)`` with a bias that broadcasts to [B, H, T, T]; (None, None) for no
        mask.

    Raises:
        ValueError: for another shape.
    """
    if mask is None:
        return None, None
    batch, tokens = hidden.shape[:2]
    if mask.dim() == 2 and tuple(mask.shape) == (batch, tokens):
        return mask.to(torch.bool), None
    if mask.dim() != 4 or mask.shape[0] not in (1, batch) or mask.shape[-1] != tokens:
        raise ValueError(
            f"[attention] expected a mask of shape [{batch}, {tokens}] or "
            f"[{batch}, 1, {tokens}, {tokens}]; found shape {list(mask.shape)}"
        )
    if not torch.compiler.is_compiling() and mask.shape[1] == 1:
        row = mask[:, 0, :1]
        if _only_opens_and_closes(row) and torch.equal(mask[:, 0], row.expand_as(mask[:, 0])):
            attend = row[:, 0] if row.dtype == torch.bool else row[:, 0] == 0
            return attend.expand(batch, tokens), None
    if mask.dtype == torch.bool:
        # Minus infinity, not the least number: a query that may see nothing gets 0, as under sdpa.
        return None, torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, -torch.inf)
    return None, mask.to(hidden.dtype)


def _only_opens_and_closes(mask: torch.Tensor) -> bool:
    if mask.dtype == torch.bool:
        return True
    closed = torch.finfo(mask.dtype).min / 2
    return bool(((mask == 0) | (mask <= closed)).all())
