"""The decision record of one input."""

import torch

import headkit
from headkit import _C
from headkit.cli.inputs import Prepared
from headkit.cli.tasks import Example


def encode_one(prepared: Prepared, example: Example) -> dict[str, torch.Tensor]:
    """One input as the model takes it; a model that generates gets its first token."""
    tensors = prepared.task.encode(prepared.opened, [example])
    if prepared.task.INPUT == "audio":
        start = prepared.opened.model.config.decoder_start_token_id
        tensors = {**tensors, "decoder_input_ids": torch.tensor([[start]])}
    return tensors


@torch.no_grad()
def record_input(prepared: Prepared) -> tuple[_C.DecisionRecord, list[str]]:
    """What the policy decided for the input, and the names of its tokens.

    Raises:
        ValueError: if policy, model and input do not fit.
    """
    task, opened = prepared.task, prepared.opened
    tensors = encode_one(prepared, prepared.examples[0])
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
