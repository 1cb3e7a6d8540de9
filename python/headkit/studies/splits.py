"""Labelled sentences, cut into what may be looked at and what may not."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headkit.cli.tasks.labels import check_labels, read_label
from headkit.cli.text_lines import before_tab, read_lines


@dataclass(frozen=True)
class Sentence:
    """One labelled sentence."""

    text: str
    label: int


@dataclass(frozen=True)
class Splits:
    """The parts of an experiment's data; no sentence is in two of them.

    Attributes:
        train: what models are fine-tuned on.
        calibration: what heads are scored on.
        validation: what settings are chosen on.
        test: what is reported; read once.
        dropped: sentences of the training file that the test file has too.
    """

    train: list[Sentence]
    calibration: list[Sentence]
    validation: list[Sentence]
    test: list[Sentence]
    dropped: int

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        parts = (self.train, self.calibration, self.validation, self.test)
        return 1 + max(sentence.label for part in parts for sentence in part)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of every part, to say what was scored on and what was reported on."""
        names = ("train", "calibration", "validation", "test")
        return {name: hash_of(getattr(self, name)) for name in names}


def hash_of(sentences: Sequence[Sentence]) -> str:
    """SHA-256 of sentences and labels."""
    text = "".join(f"{each.text}\t{each.label}\n" for each in sentences)
    return hashlib.sha256(text.encode()).hexdigest()


def read_sentences(path: Path) -> list[Sentence]:
    """Lines of ``text<TAB>label``.

    Raises:
        ValueError: if the file is missing or a line is another, or there are not two labels.
    """
    sentences = []
    for number, line in read_lines(path):
        text, label = before_tab(path, number, line, "text<TAB>label")
        sentences.append(Sentence(text, read_label(path, number, label)))
    check_labels(path, [each.label for each in sentences])
    return sentences


def read_splits(
    data: Path, test: Path | None = None, *, calibration: int = 512, validation: int = 512
) -> Splits:
    """Read training and test data, and cut calibration and validation from the former.

    The cut is the same for every seed of an experiment.

    Args:
        data: a file of ``text<TAB>label``, or a folder with ``train.tsv`` and ``dev.tsv``.
        test: the test file, needed with a file as ``data``.
        calibration: sentences that heads are scored on.
        validation: sentences that settings are chosen on.

    Raises:
        ValueError: if there is no test file apart from the training file, too few sentences are
            left to train on, or a file is not as it should be.
    """
    if data.is_dir():
        data, test = data / "train.tsv", data / "dev.tsv" if test is None else test
    if test is None:
        raise ValueError(
            "[experiment] expected test data apart from the data that heads are scored on: --test "
            f"FILE, or a folder with train.tsv and dev.tsv; found only {data}"
        )
    held_out = read_sentences(test)
    seen = {each.text for each in held_out}
    known = read_sentences(data)
    rest = [each for each in known if each.text not in seen]
    if 2 * len(rest) < len(known):
        raise ValueError(
            f"[experiment] expected test data apart from {data}; found {len(known) - len(rest)} of "
            f"its {len(known)} sentences in {test} too"
        )
    random.Random(0).shuffle(rest)
    if min(calibration, validation) < 1 or len(rest) < 2 * (calibration + validation):
        raise ValueError(
            f"[experiment] expected at least {2 * (calibration + validation)} sentences, to cut "
            f"{calibration} and {validation} from them; found {len(rest)}"
        )
    cut = calibration + validation
    return Splits(
        train=rest[cut:],
        calibration=rest[:calibration],
        validation=rest[calibration:cut],
        test=held_out,
        dropped=len(known) - len(rest),
    )
