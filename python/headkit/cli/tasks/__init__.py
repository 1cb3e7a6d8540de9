"""What models do, one task a file."""

from headkit.cli.model_source import ModelSource
from headkit.cli.tasks.causal_lm import CausalLm
from headkit.cli.tasks.embedding import Embedding
from headkit.cli.tasks.image_classification import ImageClassification
from headkit.cli.tasks.speech import Speech
from headkit.cli.tasks.task import Batch, Example, Opened, Task
from headkit.cli.tasks.text_classification import TextClassification

#: In the order in which they are tried.
TASKS: dict[str, Task] = {
    task.NAME: task
    for task in (TextClassification(), CausalLm(), ImageClassification(), Speech(), Embedding())
}

__all__ = ["TASKS", "Batch", "Example", "Opened", "Task", "choose_task"]


def choose_task(source: ModelSource, name: str | None) -> Task:
    """The task that is asked for, or that the model was made for.

    Args:
        source: the model.
        name: of the task; None = by the model's class.

    Raises:
        ValueError: if there is no such task, or the model cannot do it.
    """
    what = source.architecture or f"a model of type {source.config.model_type}"
    able = [task.NAME for task in TASKS.values() if task.auto_class(source)]
    if name is None:
        for task in TASKS.values():
            if task.is_default(source):
                return task
        raise ValueError(
            f"[task] expected a model for one of {', '.join(TASKS)}; found {what} in "
            f"{source.folder}"
        )
    if name not in TASKS:
        raise ValueError(f"[task] expected one of {', '.join(TASKS)}; found {name!r}")
    if name not in able:
        can = f"which does {', '.join(able)}" if able else "which does none of them"
        raise ValueError(f"[task] expected a model that does {name}; found {what}, {can}")
    return TASKS[name]
