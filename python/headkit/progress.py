"""Progress of long work, as a bar or as a function that is told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Told = Callable[[int, int], None]


@contextmanager
def reporting(what: str, progress: bool | Told) -> Iterator[Told | None]:
    """Turn the ``progress`` argument of a public function into what C++ calls.

    Args:
        what: label of the bar.
        progress: False for silence, True for a bar on stderr, or a function that is told how many
            units of how many are done (total below 0 = unknown).
    """
    if progress is False or progress is None:
        yield None
        return
    if callable(progress):
        yield progress
        return
    from tqdm.auto import tqdm

    with tqdm(desc=what, unit="batch") as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total if total >= 0 else None
            bar.update(done - bar.n)

        yield tell
