"""Two arms of an experiment on the same test sentences, over several seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headkit import _C


def compare(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> dict[str, Any]:
    """How much better arm b is than arm a.

    Args:
        a: by seed, what is right: bool [N]; or the share of several draws that is, float [N].
        b: the same of the other arm.

    Returns:
        dict: difference of the accuracies, its interval over seeds and examples (over examples
        with one seed) and p value; exact McNemar p of every seed where both arms have one answer.

    Raises:
        ValueError: for other numbers of seeds or sentences on both sides.
    """
    if len(a) != len(b) or not a:
        raise ValueError(
            f"[compare] expected the same seeds in both arms; found {len(a)} and {len(b)}"
        )
    left = torch.stack([each.double() for each in a])
    right = torch.stack([each.double() for each in b])
    over = "both" if len(a) > 1 else "examples"
    found = _C.paired_bootstrap(left, right, over=over)
    pairs = list(zip(a, b, strict=True))
    whole = all(x.dtype == torch.bool == y.dtype for x, y in pairs)
    return {
        "difference": found.mean,
        "lower": found.lower,
        "upper": found.upper,
        "p": found.p_value,
        "over": "seeds and examples" if len(a) > 1 else "examples",
        "mcnemar_p": [_C.mcnemar(x, y).exact_p for x, y in pairs] if whole else None,
    }


def with_holm(comparisons: Mapping[Any, dict[str, Any]]) -> None:
    """Add ``holm_p`` to comparisons that belong together: corrected for their number."""
    adjusted = _C.holm([each["p"] for each in comparisons.values()])
    for each, p in zip(comparisons.values(), adjusted, strict=True):
        each["holm_p"] = p


def accuracy_interval(right: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Accuracy over seeds, its interval over seeds and examples, and that of each seed."""
    table = torch.stack([each.double() for each in right])
    found = _C.bootstrap_mean(table, over="both" if len(right) > 1 else "examples")
    return {
        "accuracy": found.mean,
        "lower": found.lower,
        "upper": found.upper,
        "by_seed": table.mean(1).tolist(),
        "half_width": _C.binomial_half_width(found.mean, table.shape[1]),
    }
