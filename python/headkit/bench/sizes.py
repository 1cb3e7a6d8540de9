"""What the sizes of a routine must be."""

from __future__ import annotations

from collections.abc import Iterable

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PEERS = ("dense", "compiled", "sparse")


def require_layer(batches: tuple[int, ...], lengths: tuple[int, ...], dim: int, heads: int) -> None:
    """Refuse sizes of an attention layer that do not fit together.

    Raises:
        ValueError: naming them.

    Example:
        >>> require_layer((8,), (128,), 768, 12)
    """
    if not (batches and lengths) or min(dim, heads, *batches, *lengths) < 1 or dim % heads:
        raise ValueError(
            "[bench] expected positive sizes and heads that divide the width; found "
            f"samples {batches}, lengths {lengths}, width {dim}, heads {heads}"
        )


def require_known(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that a routine does not know.

    Raises:
        ValueError: naming them.

    Example:
        >>> require_known(("float32",), DTYPES)
    """
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"[bench] expected {', '.join(known)}; found {', '.join(unknown)}")
