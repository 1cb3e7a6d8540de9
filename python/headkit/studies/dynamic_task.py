"""What the dynamic study is run on: a model of one seed, its data, and what counts as quality."""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from headkit import _C
from headkit.demo.encoder import Part, embed, encode, fit_probe, tokenise
from headkit.huggingface import attach
from headkit.studies.arms import check_fine_tuned
from headkit.studies.digits import RECIPE, Digits, DigitSizes, epoch_of, read_digits, train_digits
from headkit.studies.fashion import FASHION_RECIPE, FashionSizes, read_fashion
from headkit.studies.fine_tuned import Show
from headkit.studies.recipe import Recipe, groups_of
from headkit.studies.results import Results, key_of
from headkit.studies.splits import Splits
from headkit.studies.static import StaticStudy, StudySubject
from headkit.studies.subject import MINILM, PACKAGED

BATCH = 16
Batch = dict[str, torch.Tensor]
Forward = Callable[[torch.nn.Module, Batch], torch.Tensor]


def inputs_of(batch: Batch) -> Batch:
    """A batch without its labels."""
    return {name: value for name, value in batch.items() if name != "labels"}


@dataclass(frozen=True)
class Opened:
    """A fresh copy of a task's model.

    Attributes:
        module: of transformers, attached with its feed-forward blocks.
        gated: the GatedModel whose output is the task's.
        scored: the GatedModel whose cross entropy scores heads and neurons.
    """

    module: torch.nn.Module
    gated: _C.GatedModel
    scored: _C.GatedModel


class Task(ABC):
    """One model of one seed, its data, and what counts as quality.

    Attributes:
        name: in tables.
        seed: of the model.
        results: where everything is kept.
        show: told (step, done, total).
        classifies: whether outputs are logits; else they are vectors.
    """

    name = ""
    classifies = True

    def __init__(self, results: Results, seed: int, show: Show):
        self.results, self.seed, self.show = results, seed, show

    @property
    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """JSON values that determine the model and the data."""

    @abstractmethod
    def plain(self) -> torch.nn.Module:
        """A fresh copy of the model as transformers made it, frozen."""

    @abstractmethod
    def part(self, name: str) -> Part:
        """``"train"``, ``"calibration"``, ``"validation"`` or ``"test"``, in batches of 16."""

    @abstractmethod
    def epoch(self, size: int, seed: int) -> Iterator[Batch]:
        """Training batches in a random order."""

    def check(self) -> None:
        """Refuse a model that did not learn its task with a ValueError."""

    def forward(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The task's output by the model's own forward."""
        return module(**inputs_of(batch)).logits

    def open(self) -> Opened:
        """A fresh copy, attached and frozen."""
        module = self.plain()
        gated = attach(module, feed_forward=True)
        return Opened(module, gated, gated)

    def scores(self, metric: str) -> _C.HeadScores:
        """Scores of every head on calibration data, by cross entropy."""
        from headkit.scoring import score
        from headkit.studies.methods import method_of

        method = method_of(metric)
        batches = self.part("calibration").batches
        if method.sentences is not None:
            batches = batches[: -(-method.sentences // BATCH)]

        def compute() -> Any:
            found = score(
                self.open().scored, batches, method.name, "cross_entropy", seed=self.seed,
                progress=lambda done, total: self.tell(f"scoring: {metric}", done, total),
                **method.settings,
            )  # fmt: skip
            return json.loads(found.to_json())

        asked = {"metric": method.name, "settings": method.settings, "sentences": method.sentences}
        return _C.HeadScores.from_json(json.dumps(self.get("dynamic_scores", asked, compute)))

    def get(self, kind: str, asked: dict[str, Any], compute: Callable[[], Any]) -> Any:
        """A result of this model, computed if there is none."""
        return self.results.get(kind, {**self.configuration, "task": self.name, **asked}, compute)

    def tell(self, text: str, done: int, total: int) -> None:
        """Report progress."""
        self.show(f"{self.name}, seed {self.seed}, {text}", done, total)

    def divergence(self, outputs: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """KL(dense || outputs), or 1 - cosine, of each example, [N]."""
        if not self.classifies:
            return 1 - torch.nn.functional.cosine_similarity(outputs, dense, dim=1)
        reference, own = dense.log_softmax(1), outputs.log_softmax(1)
        return (reference.exp() * (reference - own)).sum(1)

    def agreement(self, outputs: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Whether the class is the dense model's, or the cosine to it, float64 [N]."""
        if not self.classifies:
            return torch.nn.functional.cosine_similarity(outputs, dense, dim=1).double()
        return (outputs.argmax(1) == dense.argmax(1)).double()


def frozen(module: torch.nn.Module) -> torch.nn.Module:
    """In evaluation mode, without gradients of weights."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


class Sentences(Task):
    """A task of sentences."""

    def __init__(self, splits: Splits, results: Results, seed: int, show: Show):
        super().__init__(results, seed, show)
        self.splits = splits
        self._parts: dict[str, Part] = {}

    @cached_property
    @abstractmethod
    def tokenizer(self) -> Any:
        """Of the model."""

    def part(self, name: str) -> Part:
        """Sentences of similar length together."""
        if name not in self._parts:
            self._parts[name] = tokenise(self.tokenizer, getattr(self.splits, name), BATCH)
        return self._parts[name]

    def epoch(self, size: int, seed: int) -> Iterator[Batch]:
        """As fine-tuning orders them."""
        for group in groups_of(self.splits.train, size, random.Random(seed)):
            yield encode(self.tokenizer, group)

    def arriving(self, size: int) -> list[Batch]:
        """The test sentences in batches as requests arrive, in an order by the seed."""
        order = list(self.splits.test)
        random.Random(self.seed).shuffle(order)
        return [
            encode(self.tokenizer, order[first : first + size])
            for first in range(0, len(order), size)
        ]


class SentenceTask(Sentences):
    """Sentences of one class or another: the fine-tuned models of the static study."""

    name = "sst2"

    def __init__(
        self, model: str, recipe: Recipe, splits: Splits, results: Results, seed: int, show: Show
    ):
        super().__init__(splits, results, seed, show)
        self.subject = StudySubject(
            StaticStudy(model=model, recipe=recipe), splits, results, seed, show
        )

    @property
    def configuration(self) -> dict[str, Any]:
        """The model, and hashes of the data."""
        return {"model": self.subject.trained.configuration, **self.splits.hashes()}

    @cached_property
    def tokenizer(self) -> Any:
        """Of the model."""
        import transformers

        return transformers.AutoTokenizer.from_pretrained(
            self.subject.trained.folder, local_files_only=True
        )

    def plain(self) -> torch.nn.Module:
        """A fresh copy of the model as transformers made it, frozen."""
        import transformers

        return frozen(
            transformers.AutoModelForSequenceClassification.from_pretrained(
                self.subject.trained.folder, local_files_only=True
            )
        )

    def check(self) -> None:
        """Refuse a model that did not learn its task with a ValueError."""
        self.subject.check()

    def scores(self, metric: str) -> _C.HeadScores:
        """Those of the static study."""
        return self.subject.scores(metric)


class EmbeddingTask(Sentences):
    """Embeddings of the same sentences by the model before fine-tuning: one seed, no classes.

    Heads and neurons are scored by the cross entropy of a linear classifier on the embeddings.
    """

    name = "embedding"
    classifies = False

    def __init__(self, model: str, splits: Splits, results: Results, show: Show):
        super().__init__(splits, results, 0, show)
        self.model = model

    @cached_property
    def _source(self) -> Any:
        from headkit.cli.model_source import find_model

        return find_model(PACKAGED if self.model == MINILM else self.model)

    @property
    def configuration(self) -> dict[str, Any]:
        """The model, and hashes of the data."""
        return {"model": {"encoder": self.model}, **self.splits.hashes()}

    @cached_property
    def tokenizer(self) -> Any:
        """Of the model."""
        return self._source.load_processor("AutoTokenizer")

    def plain(self) -> torch.nn.Module:
        """A fresh copy of the model as transformers made it, frozen."""
        return frozen(self._source.load("AutoModel"))

    def forward(self, module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The task's output by the model's own forward."""
        return embed(module, batch)

    def open(self) -> Opened:
        """A fresh copy, attached and frozen."""
        module = self.plain()
        gated = attach(module, feed_forward=True)
        weight, bias = self._classifier()
        return Opened(
            module,
            _C.with_sentence_embedding(gated),
            _C.with_sentence_probe(gated, weight, bias),
        )

    def _classifier(self) -> tuple[torch.Tensor, torch.Tensor]:
        def compute() -> Any:
            module, found = self.plain(), []
            for name in ("calibration", "validation"):
                part = self.part(name)
                with torch.no_grad():
                    rows = [embed(module, batch) for batch in part.batches]
                found += [part.in_order(rows), part.labels]
            probe = fit_probe(*found)
            return {"weight": probe.weight.tolist(), "bias": probe.bias.tolist()}

        found = self.get("sentence_classifier", {}, compute)
        return torch.tensor(found["weight"]), torch.tensor(found["bias"])


class DigitsTask(Task):
    """Digits of 8 x 8 pixels and a small vision transformer trained from nothing.

    Args:
        sizes: of the model.
        recipe: of its training.
        limit: at most so many images for training, fewer in the other parts; for tests.
    """

    name = "digits"
    SIZES: ClassVar[type[DigitSizes]] = DigitSizes
    RECIPE: ClassVar[Recipe] = RECIPE

    def __init__(
        self,
        results: Results,
        seed: int,
        show: Show,
        *,
        sizes: DigitSizes | None = None,
        recipe: Recipe | None = None,
        limit: int | None = None,
    ):
        super().__init__(results, seed, show)
        self.sizes, self.recipe = sizes or self.SIZES(), recipe or self.RECIPE
        self.limit, self.digits = limit, self.read(limit)

    @staticmethod
    def read(limit: int | None) -> dict[str, Digits]:
        """The images, by part."""
        return read_digits(limit)

    @property
    def configuration(self) -> dict[str, Any]:
        """The model, and hashes of the data."""
        return {
            "model": {
                "sizes": asdict(self.sizes),
                "recipe": self.recipe.to_json(),
                "seed": self.seed,
            },
            "images": {name: len(part.labels) for name, part in self.digits.items()},
        }

    def plain(self) -> torch.nn.Module:
        """A fresh copy of the model as transformers made it, frozen."""
        import transformers

        folder = self.results.folder / "digits" / key_of(self.configuration)
        if not folder.is_dir():
            self.results.check_not_frozen("digits")
            train_digits(
                folder, self.sizes, self.digits["train"], self.recipe, self.seed,
                lambda done, steps: self.tell("training", done, steps),
            )  # fmt: skip
        return frozen(
            transformers.ViTForImageClassification.from_pretrained(folder, local_files_only=True)
        )

    def part(self, name: str) -> Part:
        """Images in order."""
        return self.digits[name].part(BATCH, 1 + (self.sizes.IMAGE // self.sizes.PATCH) ** 2)

    def check(self) -> None:
        """Refuse a model that did not learn its task with a ValueError."""
        part = self.part("validation")

        def compute() -> float:
            module = self.plain()
            with torch.no_grad():
                outputs = torch.cat([self.forward(module, batch) for batch in part.batches])
            return float((outputs.argmax(1) == part.labels).double().mean())

        count = len(part.labels)
        accuracy = self.get("validation", {}, compute)
        check_fine_tuned(accuracy, float(part.labels.bincount().max()) / count, count)

    def epoch(self, size: int, seed: int) -> Iterator[Batch]:
        """Images in a random order, each moved by up to a pixel."""
        return epoch_of(self.digits["train"], size, seed)


class FashionTask(DigitsTask):
    """Pictures of clothes and a vision transformer trained from nothing: 49 patches of 4 x 4.

    Args: as for ``DigitsTask``.
    """

    name = "fashion"
    SIZES = FashionSizes
    RECIPE = FASHION_RECIPE

    @staticmethod
    def read(limit: int | None) -> dict[str, Digits]:
        """The images, by part."""
        return read_fashion(limit)
