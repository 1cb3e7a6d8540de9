"""Static pruning: which heads stay, and taking the others out of the weights."""

import json
from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import as_objective, gated_model, warn_of_doubts


def prune(
    model: torch.nn.Module | _C.GatedModel,
    keep: float = 0.5,
    method: str = "gate_gradient",
    data: Any = None,
    *,
    scores: _C.HeadScores | None = None,
    objective: str | _C.Objective | None = None,
    per_layer: bool = False,
    min_per_layer: int = 0,
    rounding: str = "nearest",
    compensate: bool = False,
    progress: bool | Told = False,
    **settings: Any,
) -> _C.HeadMask | _C.StaticPruning:
    """Decide what stays; the model is not changed (see ``apply``).

    Args:
        model: an attached model, or a GatedModel. Heads that it lost are never kept.
        keep: share that stays, 0 to 1, of what ``headkit.pruners()[method]["budget"]`` names: of
            all original heads for most methods.
        method: a name in ``headkit.pruners()``.
        data: as for ``score``; not needed with ``scores`` or ``method="random"``.
        scores: scores to use instead of computing them.
        objective: as for ``score``.
        per_layer: the same share in every layer instead of one global ranking.
        min_per_layer: the best heads of each layer that are never removed.
        rounding: how the share becomes whole heads: ``"nearest"`` (half counts as one), ``"up"``
            or ``"down"``.
        compensate: mean outputs, taken at the pruned model, replace the heads that go; the methods
            that search do so with them.
        progress: as for ``score``.
        settings: of a metric, those of ``score`` but ``dropped_output``, for example
            ``normalization``; of other methods, those that
            ``headkit.pruners()[method]["settings"]`` names.

    Returns:
        HeadMask: the heads that stay, in original indices, where that says everything; else a
        StaticPruning. ``apply`` takes both.

    Warns:
        UserWarning: where a metric says that it is not to be relied on.

    Raises:
        ValueError: for an unknown method or setting, missing data, a share outside 0 to 1, or a
            floor or budget that cannot be met.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> headkit.prune(model, keep=0.25, method="random", seed=1)
        HeadMask(2 of 8 heads)
    """
    gated = gated_model(model, "prune")
    if method not in _C.pruners():
        raise ValueError(
            f"[prune] expected a method among {', '.join(_C.pruners())}; found {method!r}"
        )
    if data is None and (compensate or (scores is None and method != "random")):
        raise ValueError(f"[prune] expected data or scores for method {method!r}; found none")
    if scores is not None and settings:
        raise ValueError(
            f"[prune] expected no settings of score beside scores; found {', '.join(settings)}"
        )
    batches: Any = [] if data is None else data
    share: dict[str, Any] = {
        "keep": keep,
        "per_layer": per_layer,
        "min_per_layer": min_per_layer,
        "rounding": rounding,
        "compensate": compensate,
    }
    with reporting(f"prune: {method}", progress) as tell:
        if scores is None:
            found = _C.prune(
                gated,
                batches,
                method,
                as_objective(objective),
                settings=_as_json(settings),
                progress=tell,
                **share,
            )
            if method in _C.scorers():
                warn_of_doubts("prune", method, found.details["scores"]["settings"])
        else:
            found = _C.prune_by_scores(gated, batches, scores, progress=tell, **share)
    return found.heads if found.heads_only else found


def _as_json(settings: dict[str, Any]) -> str:
    for name, value in settings.items():
        if isinstance(value, torch.Tensor):
            raise ValueError(
                f"[prune] expected settings that are numbers, words or lists; found a tensor as "
                f"{name} (scores against given outputs: score with them, then prune by scores)"
            )
    return json.dumps(settings)


def apply(
    model: torch.nn.Module | _C.GatedModel,
    mask: _C.HeadMask | _C.GateSet | _C.StaticPruning | torch.Tensor,
    dropped_output: torch.Tensor | None = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Take heads, and whatever else gates close, out of the weights, for good.

    Rows of the query, key and value weights and columns of the output weight go; outputs equal
    those under the mask as gates. Static gates also cut neurons (rows of the first linear map,
    columns of the second) and whole blocks, and what they leave half open is folded into the output
    weights. A block whose gate is 0 adds nothing; one without heads or neurons still adds its
    output bias. Happens whole or not at all. Heads keep their original indices;
    heads that are gone already stay gone. Parameters are new objects, without gradients: an
    optimiser that was made before goes on only if it is given here.

    Args:
        model: an attached model, or a GatedModel; changed in place.
        mask: HeadMask, or [layers, heads] of bool or 0/1; true = the head stays. Or a GateSet of
            static gates, the same for every sample; or what ``prune`` returned, with all that it
            decided.
        dropped_output: shape [layers, heads, model_dim], added to the output bias for each head
            that goes, for example ``mean_head_outputs``.
        optimizer: one that trains the model; changed in place. Its groups get the new parameters,
            and what it remembers of the rows and columns that stay (momentum, squares) is kept.

    Raises:
        ValueError: if the mask, ``dropped_output`` or the optimiser does not fit: one that trains
            other parameters, stands beside gates that are neither 0 nor 1, or whose state has
            another shape than its parameter (Adafactor, LBFGS). Model and optimiser are as they
            were.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> headkit.apply(model, torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]]))
        >>> model.encoder.layer[0].attention.self.query.weight.shape
        torch.Size([18, 24])
    """
    gated = gated_model(model, "apply")
    mask = _static(mask, dropped_output)
    pruning = None
    if isinstance(mask, _C.StaticPruning):
        pruning = mask
        if optimizer is None:
            _apply_pruning(gated, mask)
            return
        if mask.refits:
            raise ValueError(
                "[apply] expected no re-fitted weights beside an optimiser; found "
                f"{mask.refits} (prune without it and make a new one)"
            )
        mask = mask.all_gates()
    if optimizer is None:
        _remove(gated, mask, dropped_output)
        return
    from headkit.huggingface.optimizer_state import cut_state
    from headkit.huggingface.staged_model import StagedModel

    if not isinstance(gated, StagedModel):
        raise ValueError(
            "[apply] expected the attached module itself beside an optimiser; found "
            f"{type(gated).__name__}"
        )
    cut = cut_state(gated, mask, optimizer)
    if pruning is None:
        _remove(gated, mask, dropped_output)
    else:
        _apply_pruning(gated, pruning)
    cut.carry_over(gated)


def _apply_pruning(gated: _C.GatedModel, pruning: _C.StaticPruning) -> None:
    from headkit.huggingface.staged_model import StagedModel
    from headkit.huggingface.weight_replacement import BASE

    changes_what_stays = pruning.refits or pruning.dropped_neurons is not None
    if not isinstance(gated, StagedModel) or not changes_what_stays or not gated.is_whole():
        _C.apply_pruning(gated, pruning)
        return
    # They come before the first cut, at which a model notes what it was.
    base = gated.fingerprint()
    _C.apply_pruning(gated, pruning)
    if not gated.is_whole():
        setattr(gated.model, BASE, base)


def _remove(
    gated: _C.GatedModel, mask: _C.HeadMask | _C.GateSet, dropped_output: torch.Tensor | None
) -> None:
    if isinstance(mask, _C.GateSet):
        _C.remove_units(gated, mask)
    else:
        _C.remove_heads(gated, mask, dropped_output)


def _static(
    mask: Any, dropped_output: torch.Tensor | None
) -> _C.HeadMask | _C.GateSet | _C.StaticPruning:
    """What goes, as a mask of heads or as gates of more than these."""
    if isinstance(mask, _C.StaticPruning | _C.GateSet) and dropped_output is not None:
        raise ValueError(
            "[apply] expected dropped_output among the gates; found it beside a "
            f"{type(mask).__name__}"
        )
    if isinstance(mask, _C.StaticPruning | _C.GateSet | _C.HeadMask):
        return mask
    return _C.HeadMask(torch.as_tensor(mask))


def mean_head_outputs(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    *,
    gates: _C.GateSet | _C.HeadMask | torch.Tensor | None = None,
    progress: bool | Told = False,
) -> torch.Tensor:
    """Mean output of every head over valid tokens: what best replaces a head that is dropped.

    Args:
        model: an attached model, or a GatedModel.
        data: as for ``score``; labels are not needed.
        gates: gates at which the model runs, [layers, heads]: what a head sees shifts when heads
            below it are gone. None = all heads run.
        progress: as for ``score``.

    Returns:
        Tensor: shape [layers, heads, model_dim], on CPU; 0 for heads that were removed.

    Raises:
        ValueError: if the data hold no token or the gates do not fit.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> headkit.mean_head_outputs(model, [{"input_ids": torch.tensor([[1, 2, 3]])}]).shape
        torch.Size([2, 4, 24])
    """
    gated = gated_model(model, "mean_head_outputs")
    with reporting("mean outputs", progress) as tell:
        return _C.mean_head_outputs(gated, data, gates=_as_gates(gates), progress=tell)


def mean_neuron_activations(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    *,
    gates: _C.GateSet | _C.HeadMask | torch.Tensor | None = None,
    progress: bool | Told = False,
) -> torch.Tensor:
    """Mean activation of every neuron over valid tokens: what best replaces one that is dropped.

    Args:
        model: an attached model, or a GatedModel, that shows its feed-forward blocks.
        data: as for ``score``; labels are not needed.
        gates: gates at which the model runs, as for ``mean_head_outputs``.
        progress: as for ``score``.

    Returns:
        Tensor: shape [layers, neurons], on CPU, for ``StaticPruning(..., dropped_neurons=...)``; 0
        for neurons that were removed.

    Raises:
        ValueError: if the model has no gates of neurons, the data hold no token or the gates do not
            fit.

    Source:
        An et al. 2024 (FLAP).

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50,
        ...     hidden_size=24,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=4,
        ...     intermediate_size=40,
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.tensor([[1, 2, 3]])}]
        >>> headkit.mean_neuron_activations(model, data).shape
        torch.Size([2, 40])
    """
    gated = gated_model(model, "mean_neuron_activations")
    with reporting("mean activations", progress) as tell:
        return _C.mean_neuron_activations(gated, data, gates=_as_gates(gates), progress=tell)


def mean_block_outputs(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    *,
    gates: _C.GateSet | _C.HeadMask | torch.Tensor | None = None,
    progress: bool | Told = False,
) -> torch.Tensor:
    """Mean output of every block of 32 neurons: what best replaces one that is dropped.

    Args:
        model, data, gates, progress: as for ``mean_neuron_activations``.

    Returns:
        Tensor: shape [layers, blocks, model_dim], on CPU, for ``GateSet(dropped_blocks=...)``.

    Raises:
        ValueError: as ``mean_neuron_activations``.
    """
    gated = gated_model(model, "mean_block_outputs")
    with reporting("mean outputs of blocks", progress) as tell:
        return _C.mean_block_outputs(gated, data, gates=_as_gates(gates), progress=tell)


def _as_gates(gates: _C.GateSet | _C.HeadMask | torch.Tensor | None) -> _C.GateSet:
    if gates is None:
        return _C.GateSet()
    if isinstance(gates, _C.HeadMask):
        return _C.GateSet.from_mask(gates)
    if isinstance(gates, torch.Tensor):
        return _C.GateSet(gates if gates.is_floating_point() else gates.to(torch.float32))
    return gates


def measure_latency(
    model: torch.nn.Module | _C.GatedModel,
    batch: dict[str, torch.Tensor],
    *,
    layer: int = 0,
    neuron_entries: int = 8,
    repeats: int = 5,
) -> dict[str, Any]:
    """Time blocks with fewer heads and neurons: the budget of ``prune(method="kwon", ...)``.

    Runs headkit's operators on slices of the model's own weights, on as many threads as torch has
    now. The model is not changed.

    Args:
        model: an attached model, or a GatedModel, with all its heads and neurons.
        batch: what the pruned model will be fed, as many examples and tokens.
        layer: the layer whose weights are timed.
        neuron_entries: entries of the table of neurons, a divisor of their number.
        repeats: each entry is the least of so many runs.

    Returns:
        dict: ``head_latency`` and ``neuron_latency`` (lists, seconds; the latter empty for models
        that show no feed-forward blocks) and ``other_latency``, to be handed on as settings.

    Raises:
        ValueError: for a model that lost units, or entries that do not divide the neurons.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50,
        ...     hidden_size=24,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=4,
        ...     intermediate_size=48,
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]])}
        >>> tables = headkit.measure_latency(model, batch)
        >>> len(tables["head_latency"]), len(tables["neuron_latency"])
        (4, 8)
        >>> data = [{**batch, "labels": torch.tensor([1])}]
        >>> tables["other_latency"] = 0.0  # a share of the time of blocks alone
        >>> pruned = headkit.prune(model, 0.9, "kwon", data, **tables)
        >>> pruned.details["unit"]
        'latency'
    """
    tables = _C.measure_latency(
        gated_model(model, "measure_latency"),
        batch,
        layer=layer,
        neuron_entries=neuron_entries,
        repeats=repeats,
    )
    return {
        "head_latency": tables.heads,
        "neuron_latency": tables.neurons,
        "other_latency": tables.other,
    }
