"""Why a policy opened or closed each head of an input."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headkit import _C
from headkit.hybrid import HybridPruner, as_policy
from headkit.scoring import gated_model


def explain_decisions(
    model: torch.nn.Module | _C.GatedModel,
    batch: Mapping[str, torch.Tensor],
    policy: _C.GatePolicy | HybridPruner,
    *,
    logit_spread: torch.Tensor | None = None,
    removals: int | None = 8,
    listed_parts: int = 8,
    first_input: int = 0,
    units: Sequence[Sequence[_C.InputUnit | str]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[_C.DecisionRecord]:
    """Run a batch under a policy and tell why each head is open or closed.

    The logits of linear gates (LinearGate, LayerGate, also calibrated) are taken apart exactly, by
    token, by feature and by both, against the reference mean that the record names. Each decision
    gets its margin, rank, rivals and nearest flip, verified by running the gate. Other policies get
    records and identities without reasons.

    Args:
        model: an attached model, or a GatedModel.
        batch: name -> tensor.
        policy: GatePolicy, or a fitted HybridPruner.
        logit_spread: what ``headkit.logit_spread`` gives, for standardised margins.
        removals: for so many closest decisions the tokens of the flip are also taken out of the
            model's input, a run each; None = for all.
        listed_parts: parts by feature and by token and feature; the others are summed up.
        first_input: number of the first example.
        units: for each example what its tokens show: raw content, by opt-in.
        about: members of the record that are the same for all examples, for example
            ``{"model": {"name": "MiniLM"}, "seeds": [0]}``.

    Returns:
        list of DecisionRecord, one an example.

    Raises:
        ValueError: if the model is not attached, or policy, batch, model and units do not fit.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> gated = headkit.attach(transformers.BertForSequenceClassification(config).eval())
        >>> gate = headkit.LinearGate(
        ...     weight=torch.randn(2, 4, 24, dtype=torch.float64),
        ...     reference=torch.zeros(24, dtype=torch.float64),
        ...     static_logits=torch.zeros(2, 4, dtype=torch.float64),
        ...     threshold=0.0,
        ... )
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]])}
        >>> head = headkit.explain_decisions(gated, batch, gate)[0].heads[0]
        >>> abs(head.base + sum(part.value for part in head.parts) - head.logit) < 1e-5
        True
    """
    told = [
        [unit if isinstance(unit, _C.InputUnit) else _C.InputUnit(unit) for unit in example]
        for example in units or []
    ]
    return _C.explain_decisions(
        gated_model(model, "explain_decisions"),
        dict(batch),
        as_policy(policy),
        logit_spread=logit_spread,
        removals=-1 if removals is None else removals,
        listed_parts=listed_parts,
        first_input=first_input,
        units=told,
        about=json.dumps(about or {}, allow_nan=False),
    )


def logit_spread(
    model: torch.nn.Module | _C.GatedModel, data: Any, policy: _C.GatePolicy | HybridPruner
) -> torch.Tensor:
    """Standard deviation of each gate logit over a data set, the policy running.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor), for example those that the policy was calibrated on.
        policy: GatePolicy with linear logits, or a fitted HybridPruner.

    Returns:
        float64 [layers, heads]; 0 for heads without a linear logit.

    Raises:
        ValueError: for fewer than two examples, and for policies without linear logits.
    """
    return _C.logit_spread(gated_model(model, "logit_spread"), data, as_policy(policy))
