"""What ``score``, ``prune`` and ``fit`` work on: a model with a loss, and data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.cli.model_source import ModelSource, find_model
from headkit.cli.tasks import Batch, Example, Opened, Task, choose_task
from headkit.files import write_text
from headkit.running import run

Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Job:
    """A model and data for a task.

    Attributes:
        task: what the model does.
        opened: the model.
        examples: all of them.
    """

    task: Task
    opened: Opened
    examples: list[Example]

    @cached_property
    def batches(self) -> list[Batch]:
        """All examples."""
        return self.task.batches(self.opened, self.examples)

    @cached_property
    def headed(self) -> tuple[_C.GatedModel, str]:
        """The model whose output the loss reads, and where that comes from, in words."""
        return self.task.headed(self.opened, self.batches)

    @property
    def tensors(self) -> list[dict[str, torch.Tensor]]:
        """The batches as ``headkit.score`` takes them."""
        return [batch.tensors for batch in self.batches]


def start_job(model: str, task_name: str | None, data: Path, limit: int | None, show: Show) -> Job:
    """Read the data, load the model.

    Raises:
        ValueError: if model, task and data do not fit.
        RuntimeError: if something cannot be fetched or is not installed.
    """
    source = find_model(model)
    task = choose_task(source, task_name)
    task.check(source)
    found = task.read(data, limit)
    opened = open_model(source, task, show)
    return Job(task, opened, task.prepare(opened, found, limit))


def open_model(source: ModelSource, task: Task, show: Show) -> Opened:
    """Load a model for a task and attach to it."""
    from headkit.huggingface import attach

    show("loading the model", 0, -1)
    processor = source.load_processor(task.PROCESSOR)
    model = source.load(task.auto_class(source))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    opened = Opened(source, model, attach(model), processor)
    show("loading the model", 1, 1)
    return opened


@dataclass(frozen=True)
class Measured:
    """How good a model is on data.

    Attributes:
        quality: as the task counts it.
        outputs: of each batch, where the task compares with them later; else empty.
        mean_heads: heads that ran on average.
    """

    quality: float
    outputs: list[torch.Tensor]
    mean_heads: float


@torch.no_grad()
def measure(
    task: Task,
    gated: _C.GatedModel,
    batches: Sequence[Batch],
    show: Callable[[int, int], None],
    *,
    dense: Sequence[torch.Tensor] = (),
    policy: _C.GatePolicy | None = None,
) -> Measured:
    """Run a model over data and count.

    Args:
        dense: outputs of the model with all heads, by batch; none = this is that model.
        policy: under which it runs; None = all its heads.
    """
    policy = _C.MaskPolicy(gated.heads()) if policy is None else policy
    keeps = _C.make_objective(task.OBJECTIVE).needs_dense
    values, heads, outputs = [], [], []
    for number, batch in enumerate(batches):
        result = run(gated, batch.tensors, policy)
        reference = dense[number] if dense else result.output
        values.append(task.tally(result.output, batch.tensors, reference))
        heads.append(result.heads_run)
        if keeps:
            outputs.append(result.output)
        show(number + 1, len(batches))
    mean = float(torch.cat(values).mean())
    return Measured(task.quality(mean), outputs, float(torch.cat(heads).double().mean()))


def check_new_folder(operation: str, folder: Path) -> None:
    """Refuse to write where something is.

    Raises:
        ValueError: if the folder is not new or empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"[{operation}] expected a new or empty folder as --out; found {folder}")


def save_model(opened: Opened, folder: Path, policy: _C.GatePolicy | None = None) -> None:
    """Write what ``run`` needs: the model, its policy, its tokenizer or processor."""
    from headkit.saving import save

    folder.parent.mkdir(parents=True, exist_ok=True)
    save(opened.model, folder, policy=policy)
    opened.processor.save_pretrained(folder)
    if opened.model.can_generate():
        write_text(
            folder / "generation_config.json", opened.model.generation_config.to_json_string()
        )


def rounded(value: Any) -> Any:
    """A number with as many digits as are worth reading."""
    return float(f"{value:.6g}")
