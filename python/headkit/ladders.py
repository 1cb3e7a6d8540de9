"""Ladders of nested rungs, and what climbs them."""

from collections.abc import Sequence
from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import gated_model


def make_ladder(
    model: torch.nn.Module | _C.GatedModel,
    *,
    head_shares: Sequence[float],
    scores: _C.HeadScores | None = None,
    order: Sequence[_C.HeadId] | None = None,
    neuron_scores: torch.Tensor | None = None,
    block_shares: Sequence[float] = (),
    min_heads_per_layer: int = 0,
    min_blocks_per_layer: int = 0,
    common_layers: int = 0,
    data: Any = None,
    progress: bool | Told = False,
) -> _C.Ladder:
    """Build nested rungs by one order of the heads and one of the blocks of 32 neurons.

    On top is a rung with everything that is there.

    Args:
        model: an attached model, or a GatedModel; unchanged. For ``block_shares`` attached with
            ``feed_forward=True``.
        head_shares: share of the heads that are there on each rung below the top, ascending.
        scores: importance of the heads; or else ``order``.
        order: heads in the order in which they go, first to go first; others stay on every rung.
        neuron_scores: importance of neurons, [layers, neurons]; a block counts with their sum. For
            rungs that are prefixes, ``sort_neurons`` first.
        block_shares: with ``neuron_scores``, share of the blocks on each rung; empty = all run.
        min_heads_per_layer, min_blocks_per_layer: the best ones of each layer that never go.
        common_layers: layers at the bottom in which all rungs but the top are the lowest: those
            before the layer at which a ``Reactivation`` decides.
        data: batches; where given, closed heads and blocks add their mean output on the rung.
        progress: as for ``score``.

    Returns:
        Ladder: one rung more than there are shares.

    Raises:
        ValueError: for shares that do not ascend, or a floor that does not fit them.

    Source:
        Nested sub-networks after Yu, Huang 2019 (slimmable networks); means after An et al. 2024.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.randint(50, (12, 5)), "labels": torch.randint(2, (12,))}]
        >>> scores = headkit.score(model, data, metric="gate_gradient")
        >>> headkit.make_ladder(model, head_shares=[0.25, 0.5], scores=scores, data=data)
        <ladder of 2 heads, 4 heads, 8 heads>
    """
    gated = gated_model(model, "make_ladder")
    with reporting("ladder", progress) as tell:
        return _C.make_ladder(
            gated,
            head_shares=list(head_shares),
            scores=scores,
            order=None if order is None else list(order),
            neuron_scores=neuron_scores,
            block_shares=list(block_shares),
            min_heads_per_layer=min_heads_per_layer,
            min_blocks_per_layer=min_blocks_per_layer,
            common_layers=common_layers,
            data=data,
            progress=tell,
        )


def sort_neurons(model: torch.nn.Module | _C.GatedModel, scores: torch.Tensor) -> torch.Tensor:
    """Put the neurons of each feed-forward block in order of importance; outputs stay the same.

    Args:
        model: an attached model, or a GatedModel, with all its neurons; changed in place.
        scores: [layers, neurons], larger = more important. Layers that share their weights are
            sorted by the sum of their scores.

    Returns:
        torch.Tensor: the order, int64 [layers, neurons]; ``scores.gather(1, order)`` are the scores
        in the new places, ``order_neurons(model, order.argsort(1))`` puts the neurons back.

    Raises:
        ValueError: for scores that do not fit, before anything changes.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2)
        >>> gated = headkit.attach(transformers.BertModel(config).eval())
        >>> order = headkit.sort_neurons(gated, torch.rand(2, config.intermediate_size))
        >>> headkit.order_neurons(gated, order.argsort(1))
    """
    return _C.sort_neurons(gated_model(model, "sort_neurons"), scores)


def order_neurons(model: torch.nn.Module | _C.GatedModel, order: torch.Tensor) -> None:
    """Put the neurons of each feed-forward block into a given order; outputs stay the same.

    Args:
        model: as for ``sort_neurons``.
        order: int64 [layers, neurons]; place i gets what was at ``order[l, i]``.

    Raises:
        ValueError: for rows that are no permutations, before anything changes.
    """
    _C.order_neurons(gated_model(model, "order_neurons"), order)


def fit_reactivation(
    model: torch.nn.Module | _C.GatedModel,
    train: Any,
    calibration: Any,
    ladder: _C.Ladder,
    *,
    layer: int,
    signal: str = "probe_confidence",
    mean_heads: float | None = None,
    flops_share: float | None = None,
    objective: str | None = None,
    progress: bool | Told = False,
) -> tuple[_C.Reactivation, _C.ReactivationReport]:
    """Fit the probe that decides midway which rung the other layers run, and lambda to a budget.

    Args:
        model: an attached model with outputs [batch, classes], or a GatedModel; unchanged.
        train: batches that the probe is fitted on, without labels: it learns what the dense model
            says, from the states that the lowest rung gives.
        calibration: other batches, for lambda.
        ladder: best made with ``common_layers=layer``.
        layer: the decision is taken before it, 1 .. layers - 1.
        signal: ``"probe_confidence"``, or ``"predicted_loss"`` of the lowest rung.
        mean_heads: heads that ``calibration`` may run on average.
        flops_share: or else FLOPs, as a share of the dense model's.
        objective: the loss that is predicted; None = ``"kl_to_dense"``.
        progress: as for ``score``.

    Returns:
        tuple: Reactivation, ReactivationReport.

    Raises:
        ValueError: for a budget that the ladder cannot keep, or data that do not fit.

    Source:
        Alain, Bengio 2017 (probes); Yoo, Kweon 2019 (predicted loss).

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> low = headkit.Rung(headkit.HeadMask(torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])))
        >>> ladder = headkit.Ladder([low, headkit.Rung(headkit.HeadMask.all(2, 4))])
        >>> data = [{"input_ids": torch.randint(50, (20, 5))} for _ in range(2)]
        >>> policy, report = headkit.fit_reactivation(
        ...     model, data[:1], data[1:], ladder, layer=1, mean_heads=5.5
        ... )
        >>> report.mean_heads <= 5.5
        True
        >>> with headkit.gates(model, policy):
        ...     logits = model(**data[0]).logits
    """
    gated = gated_model(model, "fit_reactivation")
    with reporting("fit: reactivation", progress) as tell:
        return _C.fit_reactivation(
            gated,
            train,
            calibration,
            ladder,
            layer=layer,
            signal=signal,
            mean_heads=mean_heads,
            flops_share=flops_share,
            objective=objective,
            progress=tell,
        )
