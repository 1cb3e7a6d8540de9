"""Calibration of a policy's lambda: how far it may save without breaking a promise."""

from collections.abc import Sequence
from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import as_objective, gated_model


def trace_policy(
    model: torch.nn.Module | _C.GatedModel,
    policy: _C.AdjustablePolicy,
    data: Any,
    *,
    loss: str = "flip",
    bound: float | None = None,
    task: str | _C.Objective | None = None,
    grid: Sequence[float] = (),
    task_field: str = "",
    progress: bool | Told = False,
) -> _C.PolicyTrace:
    """Run the whole gated model at each lambda and note what every example loses and costs.

    Args:
        model: an attached model, or a GatedModel; unchanged.
        policy: a policy with a lambda (``policy.at``).
        data: batches, as for ``score``; labels only for the loss ``"task"``.
        loss: against the run at lambda 1: ``"flip"`` of the label, ``"kl"``, ``"cosine"``, or
            ``"task"``, by how much the task loss rises.
        bound: losses above it count as it; None = 1, for cosine 2.
        task: objective of ``"task"``; None = cross entropy.
        grid: lambdas that ascend to 1, fixed beforehand; empty = 0, 1/16, .., 1.
        task_field: entry of the batches that numbers the task of each example; empty = one task.
        progress: as for ``score``.

    Returns:
        PolicyTrace: from which ``calibrate`` sets lambda for any risk and any part of the data.

    Raises:
        ValueError: for a model that is not attached, an unknown loss, or data that do not fit.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> policy = headkit.Escalation(headkit.HeadMask(torch.eye(2, 4)), threshold=0.5)
        >>> data = [{"input_ids": torch.randint(50, (8, 5))}]
        >>> headkit.trace_policy(model, policy, data, grid=[0, 0.5, 1]).losses.shape
        torch.Size([8, 3])
    """
    gated = gated_model(model, "trace_policy")
    with reporting("trace: policy", progress) as tell:
        return _C.trace_policy(
            gated,
            policy,
            data,
            loss=loss,
            bound=bound,
            task=None if task is None else as_objective(task),
            grid=list(grid),
            task_field=task_field,
            progress=tell,
        )


def calibrate(
    model: torch.nn.Module | _C.GatedModel | _C.PolicyTrace,
    policy: _C.AdjustablePolicy | None = None,
    data: Any = None,
    *,
    risk: float,
    method: str = "crc",
    delta: float = 0.1,
    loss: str = "flip",
    bound: float | None = None,
    task: str | _C.Objective | None = None,
    grid: Sequence[float] = (),
    task_field: str = "",
    length_edges: Sequence[int] = (),
    length_buckets: int = 3,
    progress: bool | Told = False,
) -> _C.Calibration:
    """Set lambda so that the mean loss on new examples is at most ``risk``.

    The promise is made for each bucket of task and length by itself; ``lambda_`` of the result
    keeps all of them. It is about the mean over new examples that are exchangeable with these and
    run under the same rule; not about single inputs, other data, or data that were tuned on.

    Args:
        model: an attached model, or a GatedModel, unchanged; or a PolicyTrace, alone.
        policy: a policy with a lambda.
        data: batches of examples that nothing else was fitted or chosen on.
        risk: the mean loss that is promised.
        method: ``"crc"``, conformal risk control: the promise holds on average over calibration
            sets; ``"ltt"``, Learn then Test: it holds for this one with probability 1 - delta.
        delta: see method.
        loss, bound, task, grid, task_field: as for ``trace_policy``.
        length_edges: longest lengths of all length buckets but the last, fixed beforehand.
        length_buckets: without edges, so many buckets of about equal size.
        progress: as for ``score``.

    Returns:
        Calibration: for ``CalibratedPolicy(policy, calibration)``.

    Raises:
        ValueError: for too few examples, before the model is run, with the number it would take;
            for a model that is not attached, unknown names, or data that do not fit.

    Source:
        Angelopoulos, Bates, Fisch, Lei, Schuster 2024 (arXiv 2208.02814); Angelopoulos, Bates,
        Candes, Jordan, Lei 2021 (arXiv 2110.01052).

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> policy = headkit.Escalation(headkit.HeadMask(torch.eye(2, 4)), threshold=0.5)
        >>> data = [{"input_ids": torch.randint(50, (20, 5))}]
        >>> calibration = headkit.calibrate(model, policy, data, risk=0.1)
        >>> calibrated = headkit.CalibratedPolicy(policy, calibration)
        >>> calibrated.at(0).lambda_ == calibration.lambda_
        True
    """
    promise: dict[str, Any] = {
        "method": method,
        "risk": risk,
        "delta": delta,
        "length_edges": list(length_edges),
        "length_buckets": length_buckets,
    }
    if isinstance(model, _C.PolicyTrace):
        if policy is not None or data is not None:
            raise ValueError("[calibrate] expected a trace alone; found a policy or data beside it")
        return _C.calibrate_trace(model, **promise)
    if policy is None or data is None:
        raise ValueError("[calibrate] expected a policy and data beside a model; found neither")
    if not isinstance(policy, _C.AdjustablePolicy):
        raise ValueError(
            "[calibrate] expected a policy whose lambda can be turned (headkit.AdjustablePolicy); "
            f"found {type(policy).__name__}"
        )
    gated = gated_model(model, "calibrate")
    with reporting("calibrate", progress) as tell:
        return _C.calibrate(
            gated,
            policy,
            data,
            loss=loss,
            bound=bound,
            task=None if task is None else as_objective(task),
            grid=list(grid),
            task_field=task_field,
            progress=tell,
            **promise,
        )
