"""Settings of metrics that are chosen on validation data."""

from collections.abc import Sequence
from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import as_objective, gated_model


def tune_hies(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    validation: Any,
    keep: float = 0.5,
    *,
    alphas: Sequence[float] = (),
    objective: str | _C.Objective | None = None,
    per_layer: bool = False,
    min_per_layer: int = 0,
    rounding: str = "nearest",
    normalization: str = "none",
    progress: bool | Told = False,
) -> _C.HiesTuning:
    """Choose the ``alpha`` of the metric ``"hies"`` on held-out data.

    Heads are scored on ``data``; of every alpha the mask is made and the model runs under it on
    ``validation``. Of alphas with the same loss the largest is taken. What it gives goes into
    ``prune(model, keep, "hies", data, alpha=found.alpha)``. Report on a third set.

    Args:
        model: an attached model, or a GatedModel; it is not changed.
        data: what heads are scored on, as for ``score``.
        validation: what alpha is chosen on, as ``data``; no example may be in both.
        keep: share of heads, as for ``prune``.
        alphas: tried, each 0 to 1; none = 0, 0.1, .. 1.
        objective: as for ``score``.
        per_layer, min_per_layer, rounding: as for ``prune``.
        normalization: as for ``score``.
        progress: True for a bar, or a function called with (masks tried, alphas).

    Returns:
        HiesTuning: ``alpha``, and the loss and mask of every alpha.

    Raises:
        ValueError: for an alpha outside 0 to 1, an example of ``data`` in ``validation``, or an
            objective whose minimum is the dense model.

    Source:
        HIES 2025 (arXiv 2510.13832).

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}]
        >>> validation = [{"input_ids": torch.tensor([[7, 8, 9]]), "labels": torch.tensor([0])}]
        >>> found = headkit.tune_hies(model, data, validation, alphas=(0.5, 1.0))
        >>> found.alpha in found.alphas
        True
    """
    gated = gated_model(model, "tune_hies")
    with reporting("tune: hies", progress) as tell:
        return _C.tune_hies(
            gated,
            data,
            validation,
            as_objective(objective),
            keep=keep,
            alphas=list(alphas),
            per_layer=per_layer,
            min_per_layer=min_per_layer,
            rounding=rounding,
            normalization=normalization,
            progress=tell,
        )
