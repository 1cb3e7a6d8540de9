"""Running a model under a policy."""

from collections.abc import Mapping
from typing import Any

import torch

from headkit import _C
from headkit.hybrid import HybridPruner, as_policy
from headkit.scoring import gated_model


def run(
    model: torch.nn.Module | _C.GatedModel,
    batch: Mapping[str, torch.Tensor],
    policy: _C.GatePolicy | HybridPruner,
    *,
    record: bool = False,
    first_input: int = 0,
    weights_sha256: str = "",
) -> _C.PolicyRun:
    """Run a batch under any policy, escalation included, and say what it cost.

    Args:
        model: an attached model, or a GatedModel.
        batch: name -> tensor.
        policy: GatePolicy, or a fitted HybridPruner.
        record: ask for decision records.
        first_input: number of the first example, for the records.
        weights_sha256: the model's ``fingerprint()``, for the records.

    Returns:
        PolicyRun: outputs, gates, heads and layers computed, records.

    Raises:
        ValueError: if the model is not attached, or policy, batch and model do not fit, for example
            a policy that was calibrated for another model.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> low = headkit.HeadMask(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]))
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]])}
        >>> headkit.run(model, batch, headkit.Escalation(low, threshold=1)).heads_run.tolist()
        [11]
    """
    options = {
        "record": record,
        "first_input": first_input,
        "weights_sha256": weights_sha256,
    }
    return _under(as_policy(policy), gated_model(model, "run"), dict(batch), options)


def _under(
    policy: _C.GatePolicy,
    model: _C.GatedModel,
    batch: dict[str, torch.Tensor],
    options: dict[str, Any],
) -> _C.PolicyRun:
    # pybind11 takes a frame named `run` whose first argument is the model for the model's own
    # method `run`, and would then refuse to call that. This frame has another name.
    return _C.run_policy(model, batch, policy, **options)
