"""Importance of every head, measured on data."""

from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting


def gated_model(model: torch.nn.Module | _C.GatedModel, operation: str) -> _C.GatedModel:
    """The GatedModel of an attached module; a GatedModel is returned as it is.

    Args:
        model: what a public function was given.
        operation: its name, for the error message.

    Raises:
        ValueError: for a module that is not attached, and for anything else.
    """
    if isinstance(model, _C.GatedModel):
        return model
    if not isinstance(model, torch.nn.Module):
        raise ValueError(
            f"[{operation}] expected a GatedModel or an attached module; found "
            f"{type(model).__name__}"
        )
    from headkit import huggingface

    return huggingface.attached(model, operation)


def as_objective(objective: str | _C.Objective | None) -> _C.Objective:
    """An objective from its name; None = cross entropy."""
    if isinstance(objective, _C.Objective):
        return objective
    return _C.make_objective("cross_entropy" if objective is None else objective)


def score(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    metric: str = "gate_gradient",
    objective: str | _C.Objective | None = None,
    *,
    granularity: str = "example",
    normalization: str = "none",
    denominator: str = "examples",
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
    dropped_output: torch.Tensor | None = None,
    progress: bool | Told = False,
) -> _C.HeadScores:
    """Score every head from data; larger = more important.

    Dropout is off while it runs. Weights, gradients and mode of the model are as before when it
    ends, also by an error or Ctrl-C. Scores do not depend on batch size, order or padding.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once: a list, a DataLoader.
        metric: a name in ``headkit.scorers()``.
        objective: the loss per example, by name or object; None = ``"cross_entropy"``, which reads
            ``labels``. Language models: ``"next_token"``, encoder-decoders: ``"seq2seq"``.
        granularity: where absolute values are taken by ``gate_gradient``: ``"token"``,
            ``"example"``, ``"batch"`` (depends on the batch size), or ``"signed"`` (nowhere).
        normalization: ``"none"`` or ``"layer_l2"`` (divide by the norm of the layer).
        denominator: of ``gate_gradient``: ``"examples"`` or ``"tokens"``.
        confidence: level of the interval, between 0 and 1.
        bootstrap: resamples over examples for the interval; 0 = no interval.
        seed: of the bootstrap and of ``metric="random"``.
        dropped_output: what will replace a closed head, [layers, heads, model_dim] as
            ``mean_head_outputs`` gives it; heads are scored against it instead of against nothing.
        progress: True for a bar, or a function called with (batches done, batches).

    Returns:
        HeadScores: values, interval, and how they came about.

    Raises:
        ValueError: for unknown names, data without examples, a model that is not attached, or an
            objective whose minimum is the dense model with ``gate_gradient``.
        RuntimeError: if a loss is not finite or no gate reaches the loss.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
        >>> headkit.score(model, [batch]).values.shape
        torch.Size([2, 4])
    """
    gated = gated_model(model, "score")
    with reporting(f"score: {metric}", progress) as tell:
        return _C.score(
            gated,
            data,
            metric,
            as_objective(objective),
            granularity=granularity,
            normalization=normalization,
            denominator=denominator,
            confidence=confidence,
            bootstrap=bootstrap,
            seed=seed,
            dropped_output=dropped_output,
            progress=tell,
        )
