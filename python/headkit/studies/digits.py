"""Handwritten digits of 8 x 8 pixels, and a small vision transformer that learns them."""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from headkit.demo.encoder import Part
from headkit.studies.recipe import Recipe, keep, resume

TEST, CALIBRATION, VALIDATION = 500, 200, 300
RECIPE = Recipe(epochs=60, learning_rate=1e-3)
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class DigitSizes:
    """Of the vision transformer.

    Attributes:
        width: of the residual stream.
        layers: of the encoder.
        heads: of a layer.
        neurons: of a feed-forward block.
        IMAGE: rows and columns of an image.
        PATCH: the same of a patch.
    """

    IMAGE: ClassVar[int] = 8
    PATCH: ClassVar[int] = 2

    width: int = 96
    layers: int = 6
    heads: int = 6
    neurons: int = 384


@dataclass(frozen=True)
class Digits:
    """Images in [-1, 1], float32 [N, 1, rows, columns], and their labels, int64 [N]."""

    images: torch.Tensor
    labels: torch.Tensor

    def batch(self, places: torch.Tensor) -> Batch:
        """Images and labels of these places."""
        return {"pixel_values": self.images[places], "labels": self.labels[places]}

    def part(self, size: int, tokens: int) -> Part:
        """All of them in order, in batches, each image of so many tokens."""
        order = list(torch.arange(len(self.labels)).split(size))
        return Part(
            reviews=[],
            labels=self.labels,
            tokens=torch.full((len(self.labels),), tokens),
            batches=[self.batch(places) for places in order],
            order=order,
        )


def read_digits(limit: int | None = None) -> dict[str, Digits]:
    """The digits of scikit-learn, cut once: test, then calibration and validation, then the rest.

    Args:
        limit: at most so many in the training part, and a quarter of it in the others; for tests.

    Raises:
        RuntimeError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError(
            f"[digits] expected scikit-learn; found: {error} (pip install 'headkit[demo]')"
        ) from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target, dtype=torch.int64)
    places = list(range(len(labels)))
    random.Random(0).shuffle(places)
    parts, first = {}, 0
    for name, count in (("test", TEST), ("calibration", CALIBRATION), ("validation", VALIDATION)):
        parts[name], first = places[first : first + count], first + count
    parts["train"] = places[first:]
    most = {name: limit and (limit if name == "train" else limit // 4) for name in parts}
    return {
        name: Digits(images[chosen[: most[name]]], labels[chosen[: most[name]]])
        for name, chosen in parts.items()
    }


def make_vision_transformer(sizes: DigitSizes, seed: int) -> torch.nn.Module:
    """A classifier of images in ten classes, with random weights."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.neurons,
        image_size=sizes.IMAGE,
        patch_size=sizes.PATCH,
        num_channels=1,
        num_labels=10,
        initializer_range=sizes.width**-0.5,
    )
    return transformers.ViTForImageClassification(config)


def epoch_of(digits: Digits, size: int, seed: int) -> Iterator[Batch]:
    """The images in a random order, each moved by up to a pixel."""
    generator = torch.Generator().manual_seed(seed)
    for places in torch.randperm(len(digits.labels), generator=generator).split(size):
        batch = digits.batch(places)
        moves = torch.randint(-1, 2, (len(places), 2), generator=generator).tolist()
        batch["pixel_values"] = torch.stack(
            [
                image.roll(tuple(move), (1, 2))
                for image, move in zip(batch["pixel_values"], moves, strict=True)
            ]
        )
        yield batch


def train_digits(
    folder: Path,
    sizes: DigitSizes,
    digits: Digits,
    recipe: Recipe,
    seed: int,
    show: Callable[[int, int], None],
) -> None:
    """Train a vision transformer and write it to a folder, whole or not at all.

    A run that was cut off goes on after its last whole epoch.

    Raises:
        RuntimeError: if the loss is not finite.
    """
    model = make_vision_transformer(sizes, seed).train()
    steps = recipe.steps(len(digits.labels))
    optimizer, schedule = recipe.optimizer(model, steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoint = folder.with_suffix(".training")
    first = resume(checkpoint, parts)
    done = first * steps // recipe.epochs
    for epoch in range(first, recipe.epochs):
        for batch in epoch_of(digits, recipe.batch_size, 1_000_003 * seed + epoch):
            recipe.step(model, model(**batch).loss, optimizer, schedule)
            done += 1
            show(done, steps)
        keep(checkpoint, parts, epoch + 1)
    beside: Any = folder.with_suffix(".part")
    model.eval().save_pretrained(beside)
    os.rename(beside, folder)
    checkpoint.unlink()
