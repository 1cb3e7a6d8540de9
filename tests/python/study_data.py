"""A task that a tiny model learns in seconds, for the experiments."""

import random

import pytest
import torch
import transformers

from headkit.studies import read_splits
from headkit.studies.recipe import Recipe

from .cli_models import WORDS

QUICK, AGAIN = Recipe(epochs=8, learning_rate=1e-2), Recipe(epochs=1, learning_rate=1e-3)
CALIBRATION, VALIDATION, TEST = 40, 60, 60


def sentences(count, seed):
    """Labelled by which half of the vocabulary their words come from."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.randrange(2)
        words = [WORDS[draw.randrange(25) + 25 * label] for _ in range(draw.randrange(2, 7))]
        rows.append(f"{' '.join(words)}\t{label}")
    return "\n".join(rows) + "\n"


def asked_of(kind, standard, study, **options):
    """What an experiment of this kind is asked for, its ``standard`` unless told otherwise."""
    recipes = {"recipe": QUICK, "again": AGAIN}
    return kind(**{"model": str(study / "model"), **recipes, **standard, **options})


def quiet(text, done, total):
    pass


@pytest.fixture(scope="session")
def study(tmp_path_factory, tiny):
    """A folder with data, a tiny BERT that has learnt nothing, and room for a cache."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "data").mkdir()
    (folder / "data" / "train.tsv").write_text(sentences(320, 1))
    (folder / "data" / "dev.tsv").write_text(sentences(TEST, 2))
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    torch.manual_seed(3)
    tiny.make("Bert").save_pretrained(folder / "model")
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="session")
def splits(study):
    return read_splits(study / "data", calibration=CALIBRATION, validation=VALIDATION)
