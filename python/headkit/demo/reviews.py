"""Sentences of Amazon reviews with mean human ratings, from the vaderSentiment distribution."""

import io
import random
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "amazonReviewSnippets_GroundTruth.txt"
SHARES = {"train": 0.5, "calibration": 0.25, "test": 0.25}


@dataclass(frozen=True)
class Review:
    """One sentence.

    Attributes:
        review: number of the review it comes from.
        text: lower-cased by its publishers.
        rating: mean of twenty raters, -4 (negative) to 4 (positive).
    """

    review: str
    text: str
    rating: float

    @property
    def label(self) -> int:
        """1 = positive, 0 = negative."""
        return int(self.rating > 0)


def load_reviews(folder: Path, least_rating: float = 1.0) -> list[Review]:
    """Read the sentences whose raters agreed on a feeling.

    Args:
        folder: the unpacked source distribution of vaderSentiment 3.3.2.
        least_rating: sentences with a smaller absolute mean rating are left out, as are later
            copies of a sentence.

    Returns:
        list[Review]: in the order of the file.

    Raises:
        RuntimeError: if the folder does not hold the data.
    """
    archive = folder / ARCHIVE
    try:
        with tarfile.open(archive) as files:
            name = next(name for name in files.getnames() if name.endswith(MEMBER))
            text = io.TextIOWrapper(files.extractfile(name), encoding="utf-8-sig").read()
    except (OSError, tarfile.TarError, StopIteration) as error:
        raise RuntimeError(
            f"[demo] expected {MEMBER} in {archive}; found: {error or 'no such member'}"
        ) from error
    reviews, seen = [], set()
    for line in text.splitlines():
        key, rating, sentence = line.split("\t")
        if abs(float(rating)) >= least_rating and sentence not in seen:
            seen.add(sentence)
            reviews.append(Review(key.split("_")[0], sentence, float(rating)))
    return reviews


def split_by_review(reviews: Sequence[Review], seed: int) -> dict[str, list[Review]]:
    """Cut into train, calibration and test so that no review is in two parts.

    Args:
        reviews: all sentences.
        seed: of the shuffle of the reviews.

    Returns:
        dict[str, list[Review]]: by part.

    Example:
        >>> parts = split_by_review([Review(str(n), "good", 2.0) for n in range(8)], seed=0)
        >>> [len(part) for part in parts.values()]
        [4, 2, 2]
    """
    names = sorted({review.review for review in reviews})
    random.Random(seed).shuffle(names)
    part_of, first = {}, 0.0
    for part, share in SHARES.items():
        last = first + share
        for name in names[round(first * len(names)) : round(last * len(names))]:
            part_of[name] = part
        first = last
    parts: dict[str, list[Review]] = {part: [] for part in SHARES}
    for review in reviews:
        parts[part_of[review.review]].append(review)
    return parts
