"""The contract of a domain: a model, its data, and what counts as quality there."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from headkit import _C
from headkit.studies.dynamic_task import Batch, Opened
from headkit.studies.fine_tuned import Show
from headkit.studies.results import Results


@dataclass(frozen=True)
class Tally:
    """What was counted on some examples.

    Attributes:
        counts: float64 [N]: errors, hits, losses ..
        units: float64 [N]: of how many, words for example.
    """

    counts: torch.Tensor
    units: torch.Tensor

    @property
    def ratio(self) -> float:
        """All counts over all units."""
        return float(self.counts.sum() / self.units.sum())

    def parts(self) -> torch.Tensor:
        """Numbers of single examples whose mean is ``ratio``, float64 [N], for intervals.

        Linearised around it: example n has ratio + (counts - ratio * units) / mean units.
        """
        ratio = self.ratio
        return ratio + (self.counts - ratio * self.units) / self.units.mean()


class Domain(ABC):
    """One model of one seed, its data, and what counts as quality.

    Attributes:
        NAME: in tables.
        MODEL: in words.
        MEASURE: of quality, in words.
        HIGHER: whether more of it is better.
        OBJECTIVE: the loss by whose gradient heads are scored.
        seed: of the data, and of the model if it is trained.
        limit: at most so many examples in each part; None = as many as the study wants.
        results, show: as for a Task.
    """

    NAME: ClassVar[str]
    MODEL: ClassVar[str]
    MEASURE: ClassVar[str]
    HIGHER: ClassVar[bool] = True
    OBJECTIVE: ClassVar[str] = "cross_entropy"

    def __init__(self, results: Results, seed: int, show: Show, limit: int | None = None):
        self.results, self.seed, self.show, self.limit = results, seed, show, limit
        self._opened: Opened | None = None

    @property
    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """JSON values that determine the model and the data."""

    @abstractmethod
    def plain(self) -> torch.nn.Module:
        """A fresh copy of the model as transformers made it, frozen."""

    @abstractmethod
    def open(self) -> Opened:
        """A fresh copy, attached and frozen."""

    @abstractmethod
    def batches(self, part: str) -> list[Batch]:
        """``"train"`` (labelled, for scores and gates), ``"validation"`` or ``"test"``."""

    @abstractmethod
    def tally(self, opened: Opened, batch: Batch, gates: _C.GateSet) -> Tally:
        """Run a batch of the test data under gates and count."""

    @abstractmethod
    def forward(self, module: torch.nn.Module, batch: Batch) -> Any:
        """One pass of the model's own code, for the clock."""

    def check(self) -> None:
        """Refuse a model that did not learn its task with a ValueError."""

    def quality(self, ratio: float) -> float:
        """What ``MEASURE`` names, of the ratio of all counts and units."""
        return ratio

    def head_flops(self, layout: _C.HeadLayout, batch: Batch) -> torch.Tensor:
        """FLOPs that one example saves by one closed head of each layer, float64 [layers]."""
        tokens = next(iter(batch.values())).shape[1]
        one = _C.attention_flops(layout, 1, tokens)
        return torch.full((layout.layers,), float(one), dtype=torch.float64)

    @property
    def opened(self) -> Opened:
        """One copy, opened once."""
        if self._opened is None:
            self._opened = self.open()
        return self._opened

    def get(self, kind: str, asked: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """A result of this model and data, computed if there is none."""
        key = {**self.configuration, "domain": self.NAME, "seed": self.seed, "limit": self.limit}
        return self.results.get(f"domain_{kind}", {**key, **asked}, compute)

    def tell(self, text: str, done: int, total: int) -> None:
        """Report progress."""
        self.show(f"{self.NAME}, seed {self.seed}, {text}", done, total)
