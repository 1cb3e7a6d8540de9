"""How far ways to score heads agree, and how alike the masks of several runs are."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headkit import _C

Scored = _C.HeadScores | torch.Tensor
STATISTICS = ("spearman", "pearson", "kendall", "overlap")


def agreement(
    scores: Sequence[_C.HeadScores] | Mapping[str, Scored | Sequence[Scored]],
    *,
    over: str = "runs",
    top_k: int | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> _C.Agreement:
    """Compare every two ways to score the same heads.

    Args:
        scores: HeadScores, named by their metric; or name -> HeadScores or values [layers, heads],
            or a list of them, one for each run (a seed of fine-tuning, a part of the data), in the
            same order for every name. Runs are compared one by one, and their mean is told.
        over: ``"runs"``, or ``"examples"``: then each name has a tensor [examples, layers, heads]
            whose mean over examples is the score, and the interval is over examples. It says
            nothing about seeds.
        top_k: heads of the overlap; None = half of them.
        confidence: level of the intervals; None without a second run.
        resamples: of runs or examples, the same for all names; 0 = no interval.
        seed: of the resamples.

    Returns:
        Agreement: matrices of Pearson, Spearman, Kendall's tau-b and top-k overlap.

    Raises:
        ValueError: for fewer than two names, shapes or numbers of runs that differ, or values that
            are not finite.

    Warns:
        UserWarning: for HeadScores of one run that were measured on different data: what disagrees
            may be the data, not the metrics.

    Source:
        Kendall 1945; Kuncheva 2007.

    Example:
        >>> one = headkit.HeadScores(torch.tensor([[3.0, 1.0], [2.0, 0.0]]), metric="one")
        >>> other = headkit.HeadScores(torch.tensor([[9.0, 1.0], [0.0, 2.0]]), metric="other")
        >>> headkit.agreement([one, other])
        Agreement(Spearman, 1 run)
        one    1.00  0.20
        other  0.20  1.00
    """
    if over not in ("runs", "examples"):
        raise ValueError(f"[agreement] expected over='runs' or 'examples'; found {over!r}")
    if not isinstance(scores, Mapping):
        names = [each.metric for each in scores]
        if len(set(names)) < len(names):
            raise ValueError(
                "[agreement] expected scores of different metrics, or a dictionary of names; found "
                f"{', '.join(names)}"
            )
        scores = dict(zip(names, scores, strict=True))
    series = [(name, _runs(name, found, over)) for name, found in scores.items()]
    _warn_of_other_data(scores)
    return _C.score_agreement(
        series,
        over_examples=over == "examples",
        top_k=0 if top_k is None else top_k,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def _warn_of_other_data(scores: Mapping[str, Scored | Sequence[Scored]]) -> None:
    runs = [
        [found] if isinstance(found, _C.HeadScores | torch.Tensor) else found
        for found in scores.values()
    ]
    for run in zip(*runs, strict=False):
        known = {
            each.metric: each.data_hash
            for each in run
            if isinstance(each, _C.HeadScores) and each.data_hash
        }
        if len(set(known.values())) > 1:
            told = ", ".join(f"{metric} on {digest[:8]}" for metric, digest in known.items())
            warnings.warn(
                f"[agreement] expected scores of one run from the same data; found {told}: what "
                "disagrees may be the data",
                stacklevel=3,
            )
            return


def _runs(name: str, found: Any, over: str) -> torch.Tensor:
    if over == "examples":
        if not isinstance(found, torch.Tensor) or found.dim() != 3:
            raise ValueError(
                f"[agreement] expected a tensor [examples, layers, heads] of {name}; found "
                f"{tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__}"
            )
        return found.double()
    single = isinstance(found, _C.HeadScores | torch.Tensor)
    values = [
        (each.values if isinstance(each, _C.HeadScores) else each).double()
        for each in ([found] if single else found)
    ]
    if not values or any(each.shape != values[0].shape or each.dim() != 2 for each in values):
        raise ValueError(
            f"[agreement] expected runs of {name} of one shape [layers, heads]; found "
            f"{', '.join(str(tuple(each.shape)) for each in values) or 'none'}"
        )
    return torch.stack(values)


def stability(
    masks: Sequence[_C.HeadMask | torch.Tensor], *, confidence: float = 0.95
) -> _C.Stability:
    """How alike masks are that one method chose in several runs.

    Args:
        masks: HeadMask, or [layers, heads] of bool or 0/1, at least two.
        confidence: level of the interval.

    Returns:
        Stability: Nogueira's index (1 = the same mask, 0 = as alike as by chance) with its
        asymptotic interval, Fleiss' kappa, mean Kuncheva index, frequency of every head.

    Raises:
        ValueError: for fewer than two masks, masks of different models, and masks that are all
            empty or all full.

    Source:
        Nogueira, Sechidis, Brown 2018; Fleiss 1971; Kuncheva 2007.

    Example:
        >>> masks = [torch.tensor([[1, 0, 1, 0]]), torch.tensor([[1, 1, 0, 0]])]
        >>> headkit.stability(masks).nogueira
        0.0
    """
    read = [
        each if isinstance(each, _C.HeadMask) else _C.HeadMask(torch.as_tensor(each))
        for each in masks
    ]
    return _C.mask_stability(read, confidence)


def plot_agreement(found: _C.Agreement, path: str | Path, statistic: str = "spearman") -> None:
    """Draw the matrix of a statistic, with its interval in each cell where there is one.

    Args:
        found: what ``agreement`` returned.
        path: a file whose ending matplotlib knows.
        statistic: ``"spearman"``, ``"pearson"``, ``"kendall"`` or ``"overlap"``.

    Raises:
        ValueError: for another statistic.
        RuntimeError: if matplotlib is not installed.
    """
    from headkit.plotting import pyplot_for, save_figure

    if statistic not in STATISTICS:
        raise ValueError(
            f"[plot_agreement] expected one of {', '.join(STATISTICS)}; found {statistic!r}"
        )
    matrix = getattr(found, statistic)
    names, values = found.names, matrix.values
    pyplot = pyplot_for("plot_agreement")
    side = 1.6 + 0.62 * len(names)
    figure, axes = pyplot.subplots(figsize=(side + 0.8, side), constrained_layout=True)
    low = 0 if statistic == "overlap" else -1
    image = axes.imshow(values.numpy(), cmap="cividis", vmin=low, vmax=1)
    axes.grid(False)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    for i in range(len(names)):
        for j in range(len(names)):
            text = f"{values[i, j]:.2f}"
            if matrix.lower is not None and i != j:
                text += f"\n{matrix.lower[i, j]:.2f}..{matrix.upper[i, j]:.2f}"
            dark = float(values[i, j]) < 0.5 * (1 + low)
            axes.text(
                j, i, text, ha="center", va="center", fontsize=6, color="white" if dark else "black"
            )
    title = f"overlap of the top {found.top_k}" if statistic == "overlap" else statistic
    figure.colorbar(image, ax=axes, label=title, shrink=0.8)
    save_figure(pyplot, figure, path)


def plot_stability(found: _C.Stability, path: str | Path) -> None:
    """Draw how often each head is kept, layer 0 at the bottom.

    Args:
        found: what ``stability`` returned.
        path: a file whose ending matplotlib knows.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    from headkit.plotting import pyplot_for, save_figure

    frequency = found.frequency
    pyplot = pyplot_for("plot_stability")
    layers, heads = frequency.shape
    figure, axes = pyplot.subplots(
        figsize=(1.8 + 0.35 * heads, 1.2 + 0.35 * layers), constrained_layout=True
    )
    image = axes.imshow(frequency.numpy(), cmap="cividis", vmin=0, vmax=1, origin="lower")
    axes.grid(False)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.set_title(
        f"{found.masks} masks: {found.nogueira:.2f} in [{found.lower:.2f}, {found.upper:.2f}]"
    )
    figure.colorbar(image, ax=axes, label="share that keeps the head")
    save_figure(pyplot, figure, path)
