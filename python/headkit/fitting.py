"""Gates fitted to data."""

from collections.abc import Sequence
from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import as_objective, gated_model


def fit_linear_gate(
    model: torch.nn.Module | _C.GatedModel,
    train: Any,
    calibration: Any,
    *,
    mean_heads: float,
    objective: str | _C.Objective | None = None,
    scores: _C.HeadScores | None = None,
    dropped_output: torch.Tensor | None = None,
    ridge: float | None = None,
    huber: float = 1.345,
    rank_weight: float = 0.0,
    min_heads: int = 1,
    settled_share: float = 0.005,
    progress: bool | Told = False,
) -> tuple[_C.LinearGate, _C.LinearGateReport]:
    """Fit a linear gate to the gate gradients of single examples, and its threshold to a mean.

    Args:
        model: an attached model, or a GatedModel; unchanged.
        train: labelled batches that W is fitted on, as for ``score``.
        calibration: other batches, for the threshold.
        mean_heads: heads that run on average over ``calibration``.
        objective: a loss with a gradient at the dense model; None = ``"cross_entropy"``.
        scores: HeadScores behind the static logits; None = the mean of the gradients.
        dropped_output: compensation, [layers, heads, model_dim].
        ridge: penalty relative to the mean feature variance; None = by generalised
            cross-validation.
        huber: robust loss beyond so many robust deviations; 0 = least squares.
        rank_weight: weight of the rank loss beside the squares: for each input and layer, the heads
            that it needs most should have larger logits than the others. 0 = none.
        min_heads: heads that every input runs at least.
        settled_share: heads opened for less than this share of the inputs are pruned, for more than
            1 minus it always on.
        progress: as for ``score``.

    Returns:
        tuple: LinearGate, LinearGateReport.

    Raises:
        ValueError: for a model that is not attached, an objective whose first-order scores are
            zero, or data that do not fit.

    Source:
        Targets after Akhauri et al. 2024; Golub, Heath, Wahba 1979; Huber 1964.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> ids, labels = torch.randint(50, (12, 5)), torch.randint(2, (12,))
        >>> data = [{"input_ids": ids[:8], "labels": labels[:8]}]
        >>> rest = [{"input_ids": ids[8:], "labels": labels[8:]}]
        >>> gate, report = headkit.fit_linear_gate(model, data, rest, mean_heads=4)
        >>> report.mean_heads <= 4
        True
    """
    gated = gated_model(model, "fit_linear_gate")
    with reporting("fit: linear gate", progress) as tell:
        return _C.fit_linear_gate(
            gated,
            train,
            calibration,
            mean_heads=mean_heads,
            objective=as_objective(objective),
            scores=scores,
            dropped_output=dropped_output,
            ridge=ridge,
            huber=huber,
            rank_weight=rank_weight,
            min_heads=min_heads,
            settled_share=settled_share,
            progress=tell,
        )


def fit_layer_gate(
    model: torch.nn.Module | _C.GatedModel,
    train: Any,
    calibration: Any,
    *,
    mean_heads: float,
    objective: str | _C.Objective | None = None,
    features: Sequence[str] = ("log_length",),
    labels_of_data: bool = False,
    scores: _C.HeadScores | None = None,
    dropped_output: torch.Tensor | None = None,
    ridge: float | None = None,
    huber: float = 1.345,
    rank_weight: float = 0.0,
    min_heads: int = 0,
    settled_share: float = 0.005,
    progress: bool | Told = False,
) -> tuple[_C.LayerGate, _C.LinearGateReport]:
    """Fit a linear gate to each layer, decided from the state before it, and one threshold.

    Args:
        model, train, calibration, mean_heads, objective, scores: as for ``fit_linear_gate``.
        dropped_output, ridge, huber, rank_weight, settled_share, progress: the same.
        features: scalars beside the pooled state (``scalar_features``); margin, entropy and
            log_loss are those of linear probes that are fitted to ``train`` first.
        labels_of_data: probes learn ``batch["labels"]`` instead of what the dense model says.
        min_heads: heads of each layer that every input runs at least.

    Returns:
        tuple: LayerGate, LinearGateReport.

    Raises:
        ValueError: as ``fit_linear_gate``, and for unknown features.

    Source:
        As ``fit_linear_gate``.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> ids, labels = torch.randint(50, (24, 5)), torch.randint(2, (24,))
        >>> data = [{"input_ids": ids[:16], "labels": labels[:16]}]
        >>> rest = [{"input_ids": ids[16:], "labels": labels[16:]}]
        >>> gate, report = headkit.fit_layer_gate(
        ...     model, data, rest, mean_heads=4, features=["margin", "log_length"]
        ... )
        >>> [probe.layer for probe in gate.probes]
        [0, 1]
    """
    gated = gated_model(model, "fit_layer_gate")
    with reporting("fit: layer gate", progress) as tell:
        return _C.fit_layer_gate(
            gated,
            train,
            calibration,
            mean_heads=mean_heads,
            objective=as_objective(objective),
            features=list(features),
            labels_of_data=labels_of_data,
            scores=scores,
            dropped_output=dropped_output,
            ridge=ridge,
            huber=huber,
            rank_weight=rank_weight,
            min_heads=min_heads,
            settled_share=settled_share,
            progress=tell,
        )


def fit_linear_probes(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    *,
    layers: Sequence[int],
    task: bool = True,
    labels_of_data: bool = False,
    objective: str | _C.Objective | None = None,
    gates: torch.Tensor | _C.HeadMask | _C.GateSet | None = None,
    ridge: float | None = None,
    loss_ridge: float | None = None,
    huber: float = 1.345,
    progress: bool | Told = False,
) -> list[_C.FittedProbe]:
    """Fit linear probes of the task to the pooled states before some layers.

    Args:
        model: an attached model, or a GatedModel; unchanged.
        data: batches, as for ``score``.
        layers: before which, ascending.
        task: whether the probes learn classes.
        labels_of_data: learn ``batch["labels"]`` instead of the class that the dense model says.
        objective: loss that the probes predict, of the model under ``gates``; None = none.
        gates: HeadMask, GateSet or tensor [layers, heads] under which states and losses are taken.
        ridge: penalty of the classes relative to the mean feature variance; None = the best on a
            held-out fifth.
        loss_ridge: the same for the loss; None = by generalised cross-validation.
        huber: robust fit of the log loss beyond so many robust deviations; 0 = least squares.
        progress: as for ``score``.

    Returns:
        list[FittedProbe]: one for each layer.

    Raises:
        ValueError: for a model that is not attached, or layers and data that do not fit.

    Source:
        Alain, Bengio 2017; Yoo, Kweon 2019 for the predicted loss.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.randint(50, (12, 5))}]
        >>> [fitted.probe for fitted in headkit.fit_linear_probes(model, data, layers=[0, 1])]
        [<linear probe before layer 0>, <linear probe before layer 1>]
    """
    gated = gated_model(model, "fit_linear_probes")
    if isinstance(gates, _C.HeadMask):
        gates = _C.GateSet.from_mask(gates)
    elif isinstance(gates, torch.Tensor):
        gates = _C.GateSet(gates)
    with reporting("fit: linear probes", progress) as tell:
        return _C.fit_linear_probes(
            gated,
            data,
            layers=list(layers),
            task=task,
            labels_of_data=labels_of_data,
            objective=None if objective is None else as_objective(objective),
            gates=gates,
            ridge=ridge,
            loss_ridge=loss_ridge,
            huber=huber,
            progress=tell,
        )


def fit_second_look(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    gate: _C.LinearGate | _C.LayerGate,
    *,
    band_share: float = 0.2,
    progress: bool | Told = False,
) -> _C.SecondLook:
    """Give heads near the threshold of a gate a second look at their own queries and keys.

    As many of these heads run as the gate itself would open; which of them, an estimate from
    whole-number attention scores decides.

    Args:
        model: an attached model, or a GatedModel; an encoder with the norm behind its blocks.
        data: batches, labels not needed.
        gate: LinearGate or LayerGate.
        band_share: share of the decisions, those nearest to the threshold, that are looked at.
        progress: as for ``score``.

    Returns:
        SecondLook: a policy with the lambda of the gate.

    Raises:
        ValueError: for a model that is not attached or whose attention reads something else than
            the state before its layer, and for another kind of gate.

    Source:
        Jaradat 2024 (HDP), corrected; see ``SecondLook``.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> gate = headkit.LinearGate(
        ...     weight=torch.randn(2, 4, 24, dtype=torch.float64),
        ...     reference=torch.zeros(24, dtype=torch.float64),
        ...     static_logits=torch.randn(2, 4, dtype=torch.float64),
        ...     threshold=0,
        ... )
        >>> batch = {"input_ids": torch.randint(50, (8, 5))}
        >>> policy = headkit.fit_second_look(model, [batch], gate)
        >>> headkit.run(model, batch, policy).decision_flops.shape
        torch.Size([8])
    """
    gated = gated_model(model, "fit_second_look")
    with reporting("fit: second look", progress) as tell:
        return _C.fit_second_look(gated, data, gate, band_share=band_share, progress=tell)
