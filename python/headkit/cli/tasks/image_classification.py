"""Pictures with classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headkit.cli.model_source import ModelSource
from headkit.cli.tasks.class_output import class_results, class_summary, right
from headkit.cli.tasks.labels import check_classes, check_labels, read_label
from headkit.cli.tasks.task import Example, Opened, Task
from headkit.cli.tasks.text import labels_of
from headkit.cli.text_lines import before_tab, read_lines

OWN = "ForImageClassification"


class ImageClassification(Task):
    """By the model's own logits."""

    NAME = "image-classification"
    INPUT = "image"
    PROCESSOR = "AutoImageProcessor"
    OBJECTIVE = "cross_entropy"
    QUALITY = "accuracy"

    def auto_class(self, source: ModelSource) -> str:
        """A classifier."""
        return "AutoModelForImageClassification" if source.architecture.endswith(OWN) else ""

    def check(self, source: ModelSource) -> None:
        """Pillow reads pictures."""
        try:
            import PIL.Image  # noqa: F401
        except ImportError as error:
            raise RuntimeError(
                "[image] expected Pillow, which reads pictures; found none: pip install "
                "'headkit[images]'"
            ) from error

    def read(self, path: Path, limit: int | None) -> list[Example]:
        """A folder with a subfolder for each class, in alphabetical order, or path<TAB>label."""
        examples = _of_folder(path) if path.is_dir() else _of_file(path)
        if limit is not None and limit < len(examples):
            # Every class stays, also where they lie one after the other.
            step = len(examples) / limit
            examples = [examples[int(number * step)] for number in range(limit)]
        check_labels(path, [example.label for example in examples])
        return examples

    def read_inputs(self, path: Path, limit: int | None) -> list[Example]:
        """The same, or a folder of pictures, or lines of paths."""
        if not path.is_dir():
            lines = [line for _, line in read_lines(path)]
            if all("\t" in line for line in lines):
                return _of_file(path)[:limit]
            return [self.given(_beside(path, line.strip())) for line in lines][:limit]
        if any(child.is_dir() for child in path.iterdir()):
            return _of_folder(path)[:limit]
        return [self.given(file) for file in _files(path)][:limit]

    def encode(self, opened: Opened, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """pixel_values and labels."""
        pictures = [_read_picture(example.value) for example in examples]
        pixels = opened.processor(images=pictures, return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixels, **labels_of(examples)}

    def headed(self, opened, batches):
        """The model with its classifier."""
        labels = [int(label) for batch in batches for label in batch.tensors["labels"]]
        check_classes(labels, opened.model.config.num_labels)
        return opened.gated, "the model's own logits"

    def tally(self, output, tensors, dense):
        """1 where the class is right."""
        return right(output, tensors)

    def results(self, opened, output, tensors):
        """The likeliest classes."""
        return class_results(opened, output)

    def summary(self, result):
        """The likeliest class."""
        return class_summary(result)

    def units(self, opened, tensors, tokens):
        """The token of the whole picture, if there is one, and patches in rows."""
        patches = int(tokens**0.5) ** 2
        extra = [f"token {number}" for number in range(tokens - patches)]
        return extra + [f"patch {number}" for number in range(patches)]


def _of_folder(path: Path) -> list[Example]:
    classes = sorted(child for child in path.iterdir() if child.is_dir())
    if not classes:
        raise ValueError(f"[data] expected a subfolder for each class in {path}; found none")
    examples = [
        Example(f"{folder.name}/{file.name}", file, label)
        for label, folder in enumerate(classes)
        for file in _files(folder)
    ]
    return examples


def _files(folder: Path) -> list[Path]:
    files = sorted(
        child for child in folder.iterdir() if child.is_file() and not child.name.startswith(".")
    )
    if not files:
        raise ValueError(f"[data] expected pictures in {folder}; found none")
    return files


def _of_file(path: Path) -> list[Example]:
    examples = []
    for number, line in read_lines(path):
        name, label = before_tab(path, number, line, "path<TAB>label")
        examples.append(Example(name, _beside(path, name), read_label(path, number, label)))
    return examples


def _beside(path: Path, name: str) -> Path:
    return path.parent / name


def _read_picture(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"[image] expected a picture in {path}; found: {error}") from error
