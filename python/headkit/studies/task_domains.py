"""Domains that are tasks of the dynamic study too: sentence embeddings and pictures."""

from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch

from headkit import _C
from headkit.assets import fetch
from headkit.demo.reviews import load_reviews, split_by_review
from headkit.studies.domain import Domain, Tally
from headkit.studies.dynamic_task import (
    Batch,
    DigitsTask,
    EmbeddingTask,
    FashionTask,
    Opened,
    Task,
)
from headkit.studies.splits import Sentence, Splits
from headkit.studies.subject import MINILM

# With fewer images a vision transformer learns nothing; few sentences have one label.
LEAST_IMAGES, LEAST_SENTENCES = 640, 64
PARTS = {"train": "calibration", "validation": "validation", "test": "test"}


class TaskDomain(Domain):
    """A task of the dynamic study, of which heads alone are closed."""

    @cached_property
    @abstractmethod
    def task(self) -> Task:
        """What the dynamic study runs."""

    @property
    def configuration(self) -> dict[str, Any]:
        """That of the task."""
        return {**self.task.configuration, "task": self.task.name}

    def plain(self) -> torch.nn.Module:
        """The task's."""
        return self.task.plain()

    def open(self) -> Opened:
        """The task's."""
        return self.task.open()

    def batches(self, part: str) -> list[Batch]:
        """Heads are scored on the task's calibration data."""
        return self.task.part(PARTS[part]).batches

    def forward(self, module: torch.nn.Module, batch: Batch) -> Any:
        """The task's."""
        return self.task.forward(module, batch)

    def check(self) -> None:
        """The task's."""
        self.task.check()


class Text(TaskDomain):
    """Embeddings of review sentences."""

    NAME = "text"
    MODEL = "all-MiniLM-L6-v2"
    MEASURE = "cosine to the dense embedding"

    @cached_property
    def task(self) -> Task:
        """Sentences of reviews, no review in two parts."""
        parts = split_by_review(load_reviews(fetch("vaderSentiment")), self.seed)
        most = None if self.limit is None else max(self.limit, LEAST_SENTENCES)
        cut = {
            name: [Sentence(each.text, each.label) for each in part][:most]
            for name, part in parts.items()
        }
        half = len(cut["train"]) // 2
        splits = Splits(
            train=cut["train"],
            calibration=cut["train"][:half],
            validation=cut["calibration"],
            test=cut["test"],
            dropped=0,
        )
        return EmbeddingTask(MINILM, splits, self.results, self.show)

    def tally(self, opened: Opened, batch: Batch, gates: _C.GateSet) -> Tally:
        """The cosine of each sentence."""
        dense = opened.gated(batch, _C.GateSet()).double()
        found = self.task.agreement(opened.gated(batch, gates).double(), dense)
        return Tally(found, torch.ones_like(found))


class Image(TaskDomain):
    """Pictures of clothes, or digits where these cannot be had."""

    NAME = "image"
    MODEL = "ViT, 6 layers of 6 heads, trained by this study"
    MEASURE = "accuracy"

    @cached_property
    def task(self) -> DigitsTask:
        """Fashion-MNIST; digits where it can neither be found nor downloaded."""
        try:
            return FashionTask(self.results, self.seed, self.show, limit=self.images)
        except RuntimeError:
            return DigitsTask(self.results, self.seed, self.show, limit=self.images)

    @property
    def images(self) -> int | None:
        """To train on at most."""
        return None if self.limit is None else max(self.limit, LEAST_IMAGES)

    def tally(self, opened: Opened, batch: Batch, gates: _C.GateSet) -> Tally:
        """1 for each picture whose class is right."""
        found = (opened.gated(batch, gates).argmax(1) == batch["labels"]).double()
        return Tally(found, torch.ones_like(found))

    def head_flops(self, layout: _C.HeadLayout, batch: Batch) -> torch.Tensor:
        """Every picture has as many tokens."""
        tokens = int(self.task.part("test").tokens[0])
        one = float(_C.attention_flops(layout, 1, tokens))
        return torch.full((layout.layers,), one, dtype=torch.float64)
