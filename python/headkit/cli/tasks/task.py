"""The contract of a task: which models do it, how its data are read, its loss, its output."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from headkit import _C
from headkit.cli.model_source import ModelSource


@dataclass(frozen=True)
class Example:
    """One input.

    Attributes:
        name: what is shown of it.
        value: the input as its file gives it.
        label: what is expected of it, or None.
    """

    name: str
    value: Any
    label: Any = None


@dataclass(frozen=True)
class Batch:
    """Examples that run at once.

    Attributes:
        places: of the examples among all of them.
        tensors: inputs of the model, and labels.
    """

    places: list[int]
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Opened:
    """A model that was loaded and attached.

    Attributes:
        source: where it comes from.
        model: of transformers.
        gated: its GatedModel.
        processor: its tokenizer or processor.
    """

    source: ModelSource
    model: torch.nn.Module
    gated: _C.GatedModel
    processor: Any


class Task(ABC):
    """One task. Stateless; a task is a subclass in a file here, with one instance in ``TASKS``.

    Attributes:
        NAME: as ``--task`` names it.
        INPUT: the option that gives one input: text, image or audio.
        PROCESSOR: the class of transformers that loads what prepares inputs.
        OBJECTIVE: the loss, by name.
        METRIC: how heads are scored unless the user says otherwise.
        QUALITY: what ``quality`` returns, in words.
        BATCH_SIZE: examples that run at once.
        GENERATES: whether an output is made token by token.
    """

    NAME: ClassVar[str]
    INPUT: ClassVar[str]
    PROCESSOR: ClassVar[str]
    OBJECTIVE: ClassVar[str]
    METRIC: ClassVar[str] = "gate_gradient"
    QUALITY: ClassVar[str]
    BATCH_SIZE: ClassVar[int] = 16
    GENERATES: ClassVar[bool] = False

    @abstractmethod
    def auto_class(self, source: ModelSource) -> str:
        """The class of transformers that loads a model for this task; "" = it cannot do it."""

    def is_default(self, source: ModelSource) -> bool:
        """Whether a model was made for this task."""
        return bool(self.auto_class(source))

    def check(self, source: ModelSource) -> None:
        """Refuse what needs packages that are not there, before anything is loaded."""

    @abstractmethod
    def read(self, path: Path, limit: int | None) -> list[Example]:
        """Examples to score, prune and fit on, labelled where the loss needs it.

        Raises:
            ValueError: if the file or folder does not hold them.
        """

    @abstractmethod
    def read_inputs(self, path: Path, limit: int | None) -> list[Example]:
        """Examples to run, with or without labels."""

    def given(self, value: Any) -> Example:
        """The example of ``--text``, ``--image`` or ``--audio``."""
        return Example(str(value), value)

    @abstractmethod
    def encode(self, opened: Opened, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """One batch; with ``labels`` if the examples have them."""

    def prepare(
        self, opened: Opened, examples: Sequence[Example], limit: int | None
    ) -> list[Example]:
        """The examples of ``read`` as they are encoded."""
        return list(examples)

    def batches(self, opened: Opened, examples: Sequence[Example]) -> list[Batch]:
        """Examples of similar length together."""
        order = sorted(
            range(len(examples)), key=lambda place: (self.length(examples[place]), place)
        )
        return [
            Batch(places, self.encode(opened, [examples[place] for place in places]))
            for places in cut(order, self.BATCH_SIZE)
        ]

    def length(self, example: Example) -> int:
        """Something that grows with the length of an input."""
        return len(example.value) if isinstance(example.value, str) else 0

    def headed(self, opened: Opened, batches: Sequence[Batch]) -> tuple[_C.GatedModel, str]:
        """The model whose output the loss reads, and where that comes from, in words."""
        return opened.gated, "the model's own output"

    def running(self, opened: Opened) -> _C.GatedModel:
        """The model whose output is shown.

        Raises:
            ValueError: if it has no output that can be.
        """
        return opened.gated

    @abstractmethod
    def tally(
        self, output: torch.Tensor, tensors: dict[str, torch.Tensor], dense: torch.Tensor | None
    ) -> torch.Tensor:
        """What ``quality`` is the mean of, [B].

        Args:
            output: of the model.
            tensors: the batch.
            dense: output with all heads, where the objective needs it.
        """

    def quality(self, mean: float) -> float:
        """The number behind ``QUALITY``."""
        return mean

    @abstractmethod
    def results(
        self, opened: Opened, output: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> list[dict[str, Any]]:
        """What came out for each input of a batch, for JSON."""

    @abstractmethod
    def summary(self, result: dict[str, Any]) -> str:
        """A result in a few words."""

    def units(self, opened: Opened, tensors: dict[str, torch.Tensor], tokens: int) -> list[str]:
        """What the tokens of one input are, in order."""
        return [str(number) for number in range(tokens)]


def cut(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """Parts of a sequence, the last one shorter if need be."""
    for first in range(0, len(order), size):
        yield list(order[first : first + size])
