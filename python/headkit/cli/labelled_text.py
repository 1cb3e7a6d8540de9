"""Files of labelled sentences, one a line: ``text<TAB>label``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LabelledText:
    """Sentences and their labels, whole numbers from 0."""

    texts: list[str]
    labels: list[int]


def read_labelled_text(path: Path, limit: int | None = None) -> LabelledText:
    """Read a file of ``text<TAB>label`` lines; blank lines are skipped.

    Args:
        path: UTF-8, without a header.
        limit: at most so many lines.

    Raises:
        ValueError: if the file is missing, is no text, a line has no tab or no label that is a
            whole number, or there are not two labels.

    Example:
        >>> file = Path("data.tsv")
        >>> _ = file.write_text("good\\t1\\nbad\\t0\\n")
        >>> read_labelled_text(file).labels
        [1, 0]
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"[data] expected a UTF-8 file {path}; found: {error}") from error
    texts, labels = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        text, tab, label = line.rpartition("\t")
        if not tab:
            raise ValueError(
                f"[data] expected text<TAB>label in line {number} of {path}; found no tab"
            )
        if not label.strip().isascii() or not label.strip().isdigit():
            raise ValueError(
                f"[data] expected a whole number as label in line {number} of {path}; found "
                f"{label.strip()[:40]!r}"
            )
        texts.append(text)
        labels.append(int(label))
        if limit is not None and len(texts) == limit:
            break
    if len(set(labels)) < 2:
        found = f"only label {labels[0]}" if labels else "no line"
        raise ValueError(f"[data] expected at least two labels in {path}; found {found}")
    return LabelledText(texts, labels)
