"""Word errors of a transcript."""

from collections.abc import Sequence


def edit_distance(reference: Sequence[str], found: Sequence[str]) -> int:
    """Fewest words to insert, delete or replace.

    Source:
        Levenshtein 1966; Wagner, Fischer 1974.

    Example:
        >>> edit_distance("the cat sat".split(), "a cat sat down".split())
        2
    """
    row = list(range(len(found) + 1))
    for place, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(found, 1):
            best = min(row[column] + 1, row[column - 1] + 1, diagonal + (word != other))
            diagonal, row[column] = row[column], best
    return row[-1]


def word_errors(reference: str, found: str) -> tuple[int, int]:
    """Errors, and words of the reference, both normalised as Whisper's authors do.

    Spelling of numbers, contractions, case and punctuation do not count.

    Args:
        reference: what was said.
        found: what was written.

    Source:
        Radford et al. 2022, appendix C; the normaliser is that of transformers.

    Example:
        >>> word_errors("Press one, please.", "press 1")
        (1, 3)
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normalise = EnglishTextNormalizer({})
    words = normalise(reference).split()
    return edit_distance(words, normalise(found).split()), len(words)
