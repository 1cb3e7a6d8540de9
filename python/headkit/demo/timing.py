"""Milliseconds of several ways to compute the same thing, measured side by side."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch


def interleaved(
    candidates: Mapping[str, Callable[[Any], Any]],
    batches: Sequence[Any],
    rounds: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    least_rounds: int = 15,
    seconds: float = 60.0,
) -> tuple[dict[str, float], int]:
    """Median milliseconds a batch for each candidate.

    Every round runs all candidates on the same batch, one after the other, in an order that moves
    on by one each round, so that drifts of the machine meet all of them.

    Args:
        candidates: name -> function of a batch.
        batches: taken in turn.
        rounds: of measurement; one more, on the first two batches, warms up.
        progress: called with (rounds done, rounds).
        least_rounds: done however long they take, ``rounds`` permitting.
        seconds: after so long no further round starts.

    Returns:
        tuple: milliseconds by name, and the rounds done.

    Example:
        >>> times, rounds = interleaved({"a": lambda b: b, "b": lambda b: b}, [1, 2], rounds=3)
        >>> sorted(times), rounds
        (['a', 'b'], 3)
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    with torch.no_grad():
        for name in names:
            for batch in batches[:2]:
                candidates[name](batch)
        begun = time.perf_counter()
        for number in range(rounds):
            if number >= least_rounds and time.perf_counter() - begun > seconds:
                break
            batch = batches[number % len(batches)]
            first = number % len(names)
            for name in names[first:] + names[:first]:
                started = time.perf_counter()
                candidates[name](batch)
                times[name].append(1000 * (time.perf_counter() - started))
            if progress:
                progress(number + 1, rounds)
    medians = {name: median(values) for name, values in times.items()}
    return medians, len(times[names[0]])
