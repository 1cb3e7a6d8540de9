"""The decision record of one input."""

import torch

import headkit
from headkit import _C
from headkit.cli.inputs import Prepared


@torch.no_grad()
def record_input(prepared: Prepared) -> tuple[_C.DecisionRecord, list[str]]:
    """What the policy decided for the input, and the names of its tokens.

    Raises:
        ValueError: if policy, model and input do not fit.
    """
    task, opened = prepared.task, prepared.opened
    tensors = task.encode(opened, prepared.examples[:1])
    if task.INPUT == "audio":
        start = opened.model.config.decoder_start_token_id
        tensors = {**tensors, "decoder_input_ids": torch.tensor([[start]])}
    escalates = isinstance(prepared.policy, _C.Escalation)
    # Only escalation looks at the output, and so needs one with classes.
    model = task.running(opened) if escalates else opened.gated
    result = headkit.run(
        model,
        tensors,
        prepared.policy,
        record=True,
        weights_sha256=opened.gated.fingerprint(),
    )
    record = headkit.read_decision_records(result.records)[0]
    return record, task.units(opened, tensors, record.tokens)
