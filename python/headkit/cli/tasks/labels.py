"""Labels of data files: whole numbers from 0."""

from pathlib import Path


def read_label(path: Path, number: int, text: str) -> int:
    """A label as a line of a file gives it.

    Raises:
        ValueError: if it is no whole number.
    """
    if not text.isascii() or not text.isdigit():
        raise ValueError(
            f"[data] expected a whole number as label in line {number} of {path}; found "
            f"{text[:40]!r}"
        )
    return int(text)


def check_labels(path: Path, labels: list[int]) -> None:
    """Refuse data from which nothing can be learnt.

    Raises:
        ValueError: if there are not two labels.
    """
    if len(set(labels)) < 2:
        raise ValueError(
            f"[data] expected at least two labels in {path}; found only label {labels[0]}"
        )


def check_classes(labels: list[int], classes: int) -> None:
    """Refuse labels that a classifier does not know.

    Raises:
        ValueError: if one is not below ``classes``.
    """
    if classes < 2 or max(labels) >= classes:
        raise ValueError(
            f"[model] expected labels from 0 to {classes - 1}, as the model has {classes} "
            f"class(es); found {max(labels)}"
        )
