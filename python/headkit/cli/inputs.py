"""What ``run`` and ``explain`` work on: a model, its policy, inputs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import headkit
from headkit import _C
from headkit.cli.job import Show, open_model
from headkit.cli.model_source import ModelSource, find_model
from headkit.cli.tasks import Example, Opened, Task, choose_task


@dataclass(frozen=True)
class Prepared:
    """A model under a policy, and inputs.

    Attributes:
        task: what the model does.
        opened: the model.
        policy: under which it runs.
        saved_policy: whether the folder has it; if not, all heads run.
        examples: the inputs.
    """

    task: Task
    opened: Opened
    policy: _C.GatePolicy
    saved_policy: bool
    examples: list[Example]


def prepare(
    operation: str,
    model: str,
    task_name: str | None,
    given: dict[str, Any],
    data: Path | None,
    keep_all: bool,
    show: Show,
    limit: int | None = None,
) -> Prepared:
    """Read the inputs, load the model and its policy.

    Args:
        operation: the command, for error messages.
        given: the options ``text``, ``image`` and ``audio``; None = not there.
        keep_all: run all heads, whatever the folder says.

    Raises:
        ValueError: if there is not exactly one source of inputs, or model, task and inputs do not
            fit.
    """
    names = [f"--{name}" for name, value in given.items() if value is not None]
    names += ["--data"] if data is not None else []
    if len(names) != 1:
        raise ValueError(
            f"[{operation}] expected one of --text, --image, --audio and --data; found "
            f"{' and '.join(names) or 'none'}"
        )
    source = find_model(model)
    task = choose_task(source, task_name)
    task.check(source)
    if names != ["--data"] and names != [f"--{task.INPUT}"]:
        raise ValueError(
            f"[{operation}] expected --{task.INPUT} for {task.NAME}, which {source.architecture} "
            f"does; found {names[0]}"
        )
    if data is not None:
        examples = task.read_inputs(data, limit)
    else:
        value = given[task.INPUT]
        if isinstance(value, str) and not value.strip():
            raise ValueError(f"[{operation}] expected text; found none")
        examples = [task.given(value)]
    policy = None if keep_all else _saved_policy(source)
    opened = open_model(source, task, show)
    if policy is not None:
        policy.check_model(opened.gated)
    chosen = _C.MaskPolicy(opened.gated.heads()) if policy is None else policy
    return Prepared(task, opened, chosen, policy is not None, examples)


def _saved_policy(source: ModelSource) -> _C.GatePolicy | None:
    saved = (source.saved or {}).get("policy")
    return None if saved is None else headkit.policy_from_json(json.dumps(saved))
