"""Importance of every head, measured on data."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.distributed import journal_of
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
    journal: str | os.PathLike[str] | None = None,
    progress: bool | Told = False,
    **settings: Any,
) -> _C.HeadScores:
    """Score every head from data; larger = more important.

    Dropout is off while it runs. Weights, gradients and mode of the model are as before when it
    ends, also by an error or Ctrl-C. Scores do not depend on batch size, order or padding. Several
    processes share the work inside ``shared_work``.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once: a list, a DataLoader.
        metric: a name in ``headkit.scorers()``.
        objective: the loss per example, by name or object; None = ``"cross_entropy"``, which reads
            ``labels``. Language models: ``"next_token"``, encoder-decoders: ``"seq2seq"``.
        granularity: where absolute values are taken by ``gate_gradient``: ``"token"``,
            ``"example"``, ``"batch"`` (depends on the batch size), or ``"signed"`` (nowhere).
        normalization: ``"none"``, ``"layer_l2"`` (divide by the norm of the layer) or ``"minmax"``
            (to 0 to 1 over all heads). It changes the order between layers.
        denominator: of ``gate_gradient``: ``"examples"`` or ``"tokens"``.
        confidence: level of the interval, between 0 and 1.
        bootstrap: resamples over examples for the interval; 0 = no interval.
        seed: of the bootstrap and of ``metric="random"``.
        dropped_output: what will replace a closed head, [layers, heads, model_dim] as
            ``mean_head_outputs`` gives it; heads are scored against it instead of against nothing.
        journal: a file that keeps what was measured, batch by batch; the same call with the same
            file goes on where one that was killed broke off, to the same scores. Not used by
            ``greedy_gnorm``. Yours to delete.
        progress: True for a bar, or a function called with (batches done, batches).
        settings: those of the metric, see ``headkit.scorers()[metric]["settings"]``.

    Returns:
        HeadScores: values, interval, and how they came about.

    Warns:
        UserWarning: where the metric says in its result that it is not to be relied on.

    Raises:
        ValueError: for unknown names and settings, data without examples, a model that is not
            attached, an objective whose minimum is the dense model with ``gate_gradient``, or a
            journal of another job or other data.
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
    gated, loss = gated_model(model, "score"), as_objective(objective)
    options: dict[str, Any] = {
        "granularity": granularity,
        "normalization": normalization,
        "denominator": denominator,
        "confidence": confidence,
        "bootstrap": bootstrap,
        "seed": seed,
        "settings": json.dumps(settings, sort_keys=True),
    }
    with (
        journal_of(journal, lambda: _job(gated, metric, loss, options, dropped_output)),
        reporting(f"score: {metric}", progress) as tell,
    ):
        scores = _C.score(
            gated, data, metric, loss, dropped_output=dropped_output, progress=tell, **options
        )
    warn_of_doubts("score", metric, json.loads(scores.settings))
    return scores


def _job(
    gated: _C.GatedModel,
    metric: str,
    objective: _C.Objective,
    options: dict[str, Any],
    dropped_output: torch.Tensor | None,
) -> str:
    """What a journal is of: all that scores depend on but the data, which it checks by batch."""
    job = {"model": gated.fingerprint(), "metric": metric, "objective": objective.name, **options}
    if dropped_output is not None:
        job["dropped_output"] = dropped_output.double().flatten().tolist()
    return json.dumps(job, sort_keys=True)


def warn_of_doubts(operation: str, metric: str, settings: dict[str, Any]) -> None:
    """Say where a metric says in its result that it is not to be relied on.

    Args:
        operation: the public function that scored; its caller is who is warned.
        metric: what was scored.
        settings: how its scores came about.

    Warns:
        UserWarning: if there is something to say.
    """
    warning = settings.get("warning")
    if warning is not None:
        warnings.warn(f"[{operation}] {metric}: {warning}", stacklevel=3)


def fisher_information(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    objective: str | _C.Objective | None = None,
    *,
    neurons: bool = True,
    keep_gradients: bool = False,
    progress: bool | Told = False,
) -> _C.FisherInformation:
    """Empirical Fisher information of the gates of heads, within layers, and of neurons.

    One forward and one backward a batch. The loss of a mask rises by about half of ``(1 - m) @
    head_blocks[l] @ (1 - m)``, summed over layers.

    Args:
        model: an attached model, or a GatedModel.
        data: as for ``score``.
        objective: as for ``score``.
        neurons: also neurons, where the model has gates of them.
        keep_gradients: also return the gradient of every example.
        progress: as for ``score``.

    Returns:
        FisherInformation: ``heads``, ``head_blocks``, ``neurons``.

    Raises:
        ValueError, RuntimeError: as ``score``.

    Source:
        Kwon et al. 2022.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
        >>> headkit.fisher_information(model, [batch]).head_blocks.shape
        torch.Size([2, 4, 4])
    """
    gated = gated_model(model, "fisher_information")
    with reporting("Fisher information", progress) as tell:
        return _C.fisher_information(
            gated,
            data,
            as_objective(objective),
            neurons=neurons,
            keep_gradients=keep_gradients,
            progress=tell,
        )


def plot_scores(scores: _C.HeadScores, path: str | Path) -> None:
    """Draw scores as a heat map, layer 0 at the bottom; also ``scores.plot(path)``.

    Scores of both signs get colours that part at 0.

    Args:
        scores: what ``score`` returned, or scores from elsewhere.
        path: a file whose ending matplotlib knows.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    from headkit.plotting import pyplot_for, save_figure

    values = scores.values
    pyplot = pyplot_for("plot_scores")
    layers, heads = values.shape
    figure, axes = pyplot.subplots(
        figsize=(2.0 + 0.35 * heads, 1.3 + 0.35 * layers), constrained_layout=True
    )
    low, high = float(values.min()), float(values.max())
    colours = {"cmap": "cividis", "vmin": low, "vmax": high}
    if low < 0 < high:
        reach = max(-low, high)
        colours = {"cmap": "PuOr", "vmin": -reach, "vmax": reach}
    image = axes.imshow(values.numpy(), origin="lower", **colours)
    axes.grid(False)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    of = f" of {scores.objective}" if scores.objective else ""
    axes.set_title(f"{scores.metric}{of}, {scores.samples} examples")
    figure.colorbar(image, ax=axes, shrink=0.8)
    save_figure(pyplot, figure, path)
