"""Fine-tuned models, kept on disk."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headkit.files import write_json
from headkit.huggingface import attach, detach
from headkit.studies.recipe import Recipe, Show, fine_tune
from headkit.studies.results import Results, key_of
from headkit.studies.splits import Splits, hash_of
from headkit.studies.subject import open_subject

MARKER = "fine_tuned.json"


@dataclass(frozen=True)
class Trained:
    """A fine-tuned classifier in a folder.

    Attributes:
        folder: of transformers, with its tokenizer.
        configuration: what it came from.
        steps: optimiser steps.
        fingerprint: of its weights, as ``GatedModel.fingerprint`` gives it.
    """

    folder: Path
    configuration: dict[str, Any]
    steps: int
    fingerprint: str

    def load(self) -> tuple[torch.nn.Module, Any]:
        """A fresh copy, attached and frozen, and its tokenizer."""
        import transformers

        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            self.folder, local_files_only=True
        ).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        attach(model)
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        return model, tokenizer


def trained(
    results: Results, name: str, splits: Splits, recipe: Recipe, seed: int, show: Show | None
) -> Trained:
    """The model fine-tuned on the training part, from the disk if it is there.

    Args:
        results: where it is kept, in ``models``.
        name: as for ``open_subject``.
        splits: of which only the training part is read.
        recipe: how it is fine-tuned.
        seed: of new weights, order and dropout.
        show: told (steps done, steps).
    """
    configuration = {
        "model": name,
        "train": hash_of(splits.train),
        "classes": splits.classes,
        "recipe": recipe.to_json(),
        "seed": seed,
    }
    folder = results.folder / "models" / key_of(configuration)
    if not (folder / MARKER).is_file():
        results.check_not_frozen("models")
        _train(folder, name, splits, recipe, seed, configuration, show)
        results.computed += 1
    marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    return Trained(folder, marker["configuration"], marker["steps"], marker["fingerprint"])


def _train(
    folder: Path,
    name: str,
    splits: Splits,
    recipe: Recipe,
    seed: int,
    configuration: dict[str, Any],
    show: Show | None,
) -> None:
    model, tokenizer = open_subject(name, splits.classes, seed)
    gated = attach(model)
    checkpoint = folder.with_suffix(".checkpoint")
    steps = fine_tune(
        model, tokenizer, splits.train, recipe, seed, checkpoint=checkpoint, show=show
    )
    fingerprint = gated.fingerprint()
    detach(model)
    beside = folder.with_suffix(".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    write_json(
        beside / MARKER,
        {"configuration": configuration, "steps": steps, "fingerprint": fingerprint},
    )
    os.rename(beside, folder)
    checkpoint.unlink(missing_ok=True)
