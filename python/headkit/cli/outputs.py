"""Running inputs under a policy."""

from typing import Any

import torch

import headkit
from headkit import _C
from headkit.cli.governing import Governing
from headkit.cli.inputs import Prepared
from headkit.cli.job import Show


@torch.no_grad()
def run_inputs(
    prepared: Prepared,
    max_new_tokens: int,
    every: int | None,
    show: Show,
    governing: Governing | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Output and cost of each input, in the order in which they were given.

    Args:
        prepared: model, policy and inputs.
        max_new_tokens: of tasks that generate.
        every: tokens after which these decide anew; None = once.
        governing: budget, audit and records; None = none of them.

    Returns:
        tuple: of each input ``input``, ``output``, ``heads_run`` and, where it is known, ``label``;
        and what came of budget, audit and records.

    Raises:
        ValueError: if the policy cannot run such a model.
    """
    task, opened = prepared.task, prepared.opened
    if task.GENERATES and isinstance(prepared.policy, _C.Escalation):
        raise ValueError(
            f"[run] expected a policy that decides before the first layer, as {task.NAME} "
            "generates; found escalation, which looks at the output (--keep-all runs all heads)"
        )
    running = task.running(opened)
    rows: list[dict[str, Any]] = [{} for _ in prepared.examples]
    governed, done = None, 0
    for places, tensors in _batches(prepared):
        if governing is not None and governing.asked and governed is None:
            governed = governing.runner(prepared, tensors)
        if task.GENERATES:
            output, heads = _generate(prepared, tensors, max_new_tokens, every)
        elif governed is not None:
            result = governed.run(tensors, places)
            output, heads = result.output, result.heads_run.tolist()
        else:
            result = headkit.run(running, tensors, prepared.policy)
            output, heads = result.output, result.heads_run.tolist()
        results = task.results(opened, output, tensors)
        for place, one, count in zip(places, results, heads, strict=True):
            example = prepared.examples[place]
            rows[place] = {"input": example.name, "output": one, "heads_run": count}
            if example.label is not None:
                rows[place]["label"] = example.label
        done += len(places)
        show("running", done, len(rows))
    return rows, {} if governed is None else governed.told()


def _batches(prepared: Prepared) -> Any:
    task, opened, examples = prepared.task, prepared.opened, prepared.examples
    if task.GENERATES:  # one by one, so that a prompt needs no padding
        for place, example in enumerate(examples):
            yield [place], task.encode(opened, [example])
        return
    for batch in task.batches(opened, examples):
        yield batch.places, batch.tensors


def _generate(
    prepared: Prepared, tensors: dict[str, torch.Tensor], max_new_tokens: int, every: int | None
) -> tuple[torch.Tensor, list[float]]:
    """Tokens of one input, and the heads it ran: the mean over its decisions."""
    opened = prepared.opened
    inputs = {
        name: value
        for name, value in tensors.items()
        if name not in ("labels", "decoder_input_ids")
    }
    state = _C.PolicyState(record=True, layout=opened.gated.layout())
    with headkit.gates(opened.model, prepared.policy, state=state, every=every):
        output = opened.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    present = opened.gated.heads().keep
    counts = [
        int(((record.gates() != 0) & present).sum())
        for record in headkit.read_decision_records(state.records)
    ]
    return output, [sum(counts) / len(counts)]
