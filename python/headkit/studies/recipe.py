"""One way to fine-tune, for every model and every arm."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headkit.demo.encoder import encode
from headkit.studies.splits import Sentence

Show = Callable[[int, int], None]
# Batches that are sorted by length together, so that little is padding and order stays random.
POOL = 16


@dataclass(frozen=True)
class Recipe:
    """Settings of fine-tuning: AdamW, a linear warm-up, a linear decay to 0.

    Attributes:
        epochs: passes over the training part.
        learning_rate: at its peak.
        batch_size: sentences a step.
        weight_decay: of AdamW.
        warmup: share of the steps.
        clip: largest norm of the gradient.
    """

    epochs: int = 3
    learning_rate: float = 5e-5
    batch_size: int = 32
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0

    def steps(self, sentences: int) -> int:
        """Steps of the whole fine-tuning."""
        return self.epochs * -(-sentences // self.batch_size)

    def warmup_steps(self, steps: int) -> int:
        """Steps of a fine-tuning of so many over which the rate climbs."""
        return max(1, round(self.warmup * steps))

    def optimizer(self, model: torch.nn.Module, steps: int) -> tuple[Any, Any]:
        """AdamW over all parameters of a model, and the schedule of its learning rate."""
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        warm = self.warmup_steps(steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm + 1)),
        )
        return optimizer, schedule

    def step(
        self, model: torch.nn.Module, loss: torch.Tensor, optimizer: Any, schedule: Any
    ) -> None:
        """One step down a loss.

        Raises:
            RuntimeError: if it is not finite.
        """
        if not torch.isfinite(loss):
            raise RuntimeError(f"[fine_tune] expected a finite loss; found {float(loss)}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip)
        optimizer.step()
        schedule.step()

    def to_json(self) -> dict[str, Any]:
        """All settings."""
        return asdict(self)

    def again(self, epochs: int, learning_rate: float | None = None) -> "Recipe":
        """The recipe after pruning, of every arm."""
        return replace(self, epochs=epochs, learning_rate=learning_rate or self.learning_rate)


# For models that start from random weights.
FROM_SCRATCH = Recipe(epochs=8, learning_rate=5e-4)


def fine_tune(
    model: torch.nn.Module,
    tokenizer: Any,
    sentences: Sequence[Sentence],
    recipe: Recipe,
    seed: int,
    *,
    checkpoint: Path | None = None,
    show: Show | None = None,
) -> int:
    """Train every parameter of a model, in place; it is in evaluation mode afterwards.

    Stops and goes on bit for bit: everything random follows from the seed and the epoch.

    Args:
        model: a classifier of transformers, attached or not, pruned or not.
        tokenizer: of the model.
        sentences: what it learns.
        recipe: how.
        seed: of order and dropout.
        checkpoint: a file that is written after every epoch and read if it is there.
        show: told (steps done, steps).

    Returns:
        int: steps that the model has been trained in all.

    Raises:
        RuntimeError: if the loss is not finite.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    steps = recipe.steps(len(sentences))
    optimizer, schedule = recipe.optimizer(model, steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first = resume(checkpoint, parts)
    done = first * -(-len(sentences) // recipe.batch_size)
    model.train()
    for epoch in range(first, recipe.epochs):
        torch.manual_seed(1_000_003 * seed + epoch)
        for group in groups_of(sentences, recipe.batch_size, random.Random(f"{seed}-{epoch}")):
            recipe.step(model, model(**encode(tokenizer, group)).loss, optimizer, schedule)
            done += 1
            if show:
                show(done, steps)
        keep(checkpoint, parts, epoch + 1)
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return done


def groups_of(
    sentences: Sequence[Sentence], size: int, order: random.Random
) -> list[list[Sentence]]:
    """Batches in a random order, sentences of similar length together."""
    shuffled = list(sentences)
    order.shuffle(shuffled)
    groups = []
    for first in range(0, len(shuffled), size * POOL):
        pool = sorted(shuffled[first : first + size * POOL], key=lambda each: len(each.text))
        cut = [pool[place : place + size] for place in range(0, len(pool), size)]
        order.shuffle(cut)
        groups += cut
    return groups


def keep(path: Path | None, parts: dict[str, Any], done: int) -> None:
    """Write how far training has come, whole or not at all; nothing without a path.

    Args:
        path: of the file.
        parts: what has a state: the model, its optimiser ..
        done: how far.
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    states = {name: part.state_dict() for name, part in parts.items()}
    torch.save({**states, "epochs": done}, beside)
    os.replace(beside, path)


def resume(path: Path | None, parts: dict[str, Any]) -> int:
    """Go on from what ``keep`` wrote: how far training has come, 0 if nothing is there."""
    if path is None or not path.is_file():
        return 0
    saved = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    return saved["epochs"]
