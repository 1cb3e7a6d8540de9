"""A peer whose output is wrong is not timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def require_close(
    found: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
    dtype: torch.dtype,
    what: str,
    *,
    floor: float = 0.0,
) -> float:
    """Compare tensors with their exact values.

    The allowed difference is relative to the largest exact value of a tensor, or to 1 where that is
    smaller; for vectors to the largest of all vectors.

    Args:
        found: of any dtype.
        exact: float64, of the same shapes.
        dtype: of the arithmetic.
        what: for the error message.
        floor: a difference that is allowed beside that.

    Returns:
        float: the largest difference.

    Raises:
        RuntimeError: if one is too large.

    Example:
        >>> one = torch.ones(2, 2, dtype=torch.float64)
        >>> require_close([one + 0.5], [one], torch.float32, "peer")
        Traceback (most recent call last):
        RuntimeError: [bench] expected the output of the reference to 1e-05; found a ... by peer
    """
    worst = 0.0
    # The bias of K has gradient 0 in theory: what is left of sums as large as the other biases.
    of_vectors = max((t.abs().max().item() for t in exact if t.dim() == 1), default=0.0)
    for value, truth in zip(found, exact, strict=True):
        error = (value.double() - truth).abs().max().item()
        size = of_vectors if truth.dim() == 1 else truth.abs().max().item()
        allowed = TOLERANCE[dtype] * max(1.0, size) + floor
        if not error <= allowed:
            raise RuntimeError(
                f"[bench] expected the output of the reference to {allowed:.0e}; found a "
                f"difference of {error:.2e} by {what}"
            )
        worst = max(worst, error)
    return worst
