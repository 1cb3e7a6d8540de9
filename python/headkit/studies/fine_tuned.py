"""The fine-tuned model of one seed, which an experiment measures."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from headkit.demo.encoder import Part, tokenise
from headkit.studies.arms import check_fine_tuned
from headkit.studies.outcome import outcome_of
from headkit.studies.recipe import Recipe
from headkit.studies.results import Results
from headkit.studies.splits import Splits
from headkit.studies.trained import Trained, trained

Show = Callable[[str, int, int], None]


class FineTuned:
    """A model after fine-tuning, its data, and what was measured on it, from the disk if there.

    Attributes:
        seed: of its fine-tuning.
        labels: of the test sentences.
    """

    def __init__(
        self, model: str, recipe: Recipe, splits: Splits, results: Results, seed: int, show: Show
    ):
        self.model, self.recipe, self.seed, self.show = model, recipe, seed, show
        self.splits, self.results = splits, results
        self.labels = torch.tensor([each.label for each in splits.test])

    @cached_property
    def trained(self) -> Trained:
        """The folder of the model after fine-tuning."""
        return trained(
            self.results,
            self.model,
            self.splits,
            self.recipe,
            self.seed,
            lambda done, steps: self.show(f"fine-tuning, seed {self.seed}", done, steps),
        )

    def check(self) -> float:
        """Validation accuracy of the dense model.

        Raises:
            ValueError: if it learnt nothing.
        """

        def validate() -> float:
            model, tokenizer = self._fresh
            return outcome_of(model, tokenise(tokenizer, self.splits.validation, 32)).accuracy

        labels = torch.tensor([each.label for each in self.splits.validation])
        accuracy = self._get("validation", {}, validate)
        check_fine_tuned(accuracy, float(labels.bincount().max() / len(labels)), len(labels))
        return accuracy

    def _get(self, kind: str, asked: dict[str, Any], compute: Callable[[], Any]) -> Any:
        configuration = {"model": self.trained.configuration, **self.splits.hashes(), **asked}
        return self.results.get(kind, configuration, compute)

    @cached_property
    def _fresh(self) -> tuple[torch.nn.Module, Any]:
        return self.trained.load()

    @cached_property
    def _test(self) -> Part:
        return tokenise(self._fresh[1], self.splits.test, 32)

    def _calibration(self, sentences: int | None = None) -> Part:
        return tokenise(self._fresh[1], self.splits.calibration[:sentences], 32)
