"""What heads contribute to the output of a model, input by input."""

from collections.abc import Mapping
from typing import Any

import torch

from headkit import _C
from headkit.hybrid import HybridPruner, as_policy
from headkit.progress import Told, reporting
from headkit.scoring import as_objective, gated_model

Gates = _C.GateSet | _C.HeadMask | torch.Tensor | _C.GatePolicy | HybridPruner


def effects(
    model: torch.nn.Module | _C.GatedModel,
    batch: Mapping[str, torch.Tensor],
    *,
    ablation: str,
    metric: str | _C.OutputMetric | None = None,
    gates: Gates | None = None,
    reference: Any = None,
    target: torch.Tensor | None = None,
    distractor: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    toggles: bool = True,
    path_nodes: int = 0,
    pair_heads: int = 0,
    game_heads: int = 0,
    orders: int = 64,
    interaction: str = "fsii",
    draws: int = 8,
    confidence: float = 0.95,
    bootstrap: int = 1000,
    seed: int = 0,
    progress: bool | Told = False,
) -> list[_C.InputEffects]:
    """Measure what every head contributes to one number m of the output, for each input.

    Positive always means that the head supports m. Write norms describe (L0), gate gradients and
    direct effects estimate (L1), toggles, pairs and Shapley values intervene (L2). For a head that
    is off they say what it would do if it were on. The model, and what is passed in, stay as they
    are.

    Args:
        model: an attached model, or a GatedModel.
        batch: name -> tensor; every example is measured alone.
        ablation: what stands in for a head: ``"zero"`` = nothing, ``"mean"`` = its mean output over
            the tokens of ``reference``, ``"resample"`` = that over the tokens of another input.
        metric: a name in ``headkit.output_metric_names()``; None = ``"class_margin"`` for logits
            [batch, classes], ``"token_log_odds"`` for [batch, tokens, vocabulary].
        gates: of the run that is explained: gates, a mask, or a policy. None = every head is on.
            Under a policy that decides midway toggles are also measured with later gates decided
            again.
        reference: batches for ``"mean"`` and ``"resample"``, as ``score`` takes them.
        target, distractor: classes or tokens that m compares, whole numbers, shape [batch]; None =
            the predicted one and its runner-up.
        position: of logits [batch, tokens, vocabulary] the token at which m is read; None = the
            last valid one.
        toggles: toggle every head.
        path_nodes: of the integrated gate gradient, 16 to 32; 0 = not computed.
        pair_heads: heads with the largest toggles whose pairs are toggled together; 0 = none.
        game_heads: heads with the largest toggles that share Shapley values; 0 = none.
        orders: of those heads, drawn where all sets would cost more.
        interaction: of those heads: ``"fsii"``, ``"sii"`` (12 heads at most) or ``"none"``.
        draws: inputs of ``reference`` that ``"resample"`` draws.
        confidence: level of the intervals.
        bootstrap: resamples for them.
        seed: of whatever is random.
        progress: True for a bar, or a function called with (inputs done, inputs).

    Returns:
        list[InputEffects]: one for each input; ``mean_effects`` joins them.

    Raises:
        ValueError: for a model that is not attached, and for options, gates or a metric that do not
            fit.
        RuntimeError: if m or a gradient is not finite.

    Source:
        Michel, Levy, Neubig 2019 (gate gradient, here signed); Sundararajan et al. 2017 (paths);
        Tsai et al. 2023 (FSII); Grabisch, Roubens 1999 (SII).

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]])}
        >>> found = headkit.effects(model, batch, ablation="zero")
        >>> found[0].metric, len(found[0].heads), found[0].heads[0].toggle.ablation
        ('class_margin', 8, 'zero')
    """
    gated = gated_model(model, "effects")
    policy = None
    if isinstance(gates, _C.GatePolicy | HybridPruner):
        policy, gates = as_policy(gates), None
    with reporting("effects", progress) as tell:
        return _C.measure_effects(
            gated,
            dict(batch),
            _C.make_output_metric(metric) if isinstance(metric, str) else metric,
            ablation=ablation,
            gates=_C.GateSet() if gates is None else gates,
            policy=policy,
            reference=reference,
            target=target,
            distractor=distractor,
            position=position,
            toggles=toggles,
            path_nodes=path_nodes,
            pair_heads=pair_heads,
            game_heads=game_heads,
            orders=orders,
            interaction=interaction,
            draws=draws,
            confidence=confidence,
            bootstrap=bootstrap,
            seed=seed,
            progress=tell,
        )


def causal_head_gating(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    objective: str | _C.Objective | None = None,
    *,
    fits: int = 5,
    start_steps: int = 100,
    pressed_steps: int = 200,
    pressure: float = 0.1,
    learning_rate: float = 0.1,
    seed: int = 0,
    progress: bool | Told = False,
) -> _C.CausalGating:
    """Label heads of a frozen model as facilitating, interfering or irrelevant for a data set.

    Soft gates are fitted without pressure, then from there twice: with a pressure towards 1, and
    with one towards 0.

    Args:
        model: an attached model, or a GatedModel.
        data: as for ``score``.
        objective: as for ``score``; its mean is the loss.
        fits: at least 5, each from another start.
        start_steps, pressed_steps: optimiser steps, one batch each.
        pressure: times the mean gate, taken from or added to the loss.
        learning_rate: of the gates.
        seed: of the starts.
        progress: as for ``score``; counts fits.

    Returns:
        CausalGating: labels, scores and the gates of each fit.

    Raises:
        ValueError, RuntimeError: as ``score``, and for fewer than 5 fits.

    Source:
        Nam et al. 2025 (2505.13737).

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
        >>> found = headkit.causal_head_gating(model, [batch], start_steps=1, pressed_steps=2)
        >>> found.pressed_up.shape
        torch.Size([5, 2, 4])
    """
    gated = gated_model(model, "causal_head_gating")
    with reporting("causal head gating", progress) as tell:
        return _C.causal_head_gating(
            gated,
            data,
            as_objective(objective),
            fits=fits,
            start_steps=start_steps,
            pressed_steps=pressed_steps,
            pressure=pressure,
            learning_rate=learning_rate,
            seed=seed,
            progress=tell,
        )
