"""Two ceilings of the machine, measured in every run: multiply-adds and memory traffic."""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch

from headkit import _C
from headkit.bench.clock import CLOCKS, PROCESSOR, WALL
from headkit.bench.machine import last_level_cache_bytes

MOST_COPY_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the processor did for a moment.

    Attributes:
        flops: FLOP/s of multiply-adds on registers alone, over the threads that torch uses.
        share: processor time that these threads got, over the time that passed for them.
    """

    flops: float
    share: float


def read_peak(dtype: torch.dtype = torch.float32, clock: str = WALL) -> Reading:
    """Measure what the processor can do now.

    Args:
        dtype: float32; for another one its own peak where the build can measure that, else the one
            of float32.
        clock: ``wall``; or ``processor``, the seconds that one thread had the processor: its share
            is 1 then.

    Example:
        >>> read_peak().flops > 0
        True
    """
    wall, used = time.perf_counter(), time.process_time()
    own = dtype != torch.float32 and has_peak(dtype)
    flops = _C.peak_flops(dtype=_name(dtype)) if own else _C.peak_flops()
    wall, used = time.perf_counter() - wall, time.process_time() - used
    share = used / (wall * torch.get_num_threads())
    return Reading(flops / share, 1.0) if clock == PROCESSOR else Reading(flops, share)


def has_peak(dtype: torch.dtype) -> bool:
    """Whether this build measures the peak of a dtype.

    Example:
        >>> has_peak(torch.float32)
        True
    """
    if dtype == torch.float32:
        return True
    try:
        _C.peak_flops(seconds=1e-4, dtype=_name(dtype))
    except (TypeError, ValueError):
        return False
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def copy_bytes_per_second(clock: str = WALL, repeats: int = 5) -> float:
    """Measure memory traffic, bytes read and written, of copying a tensor of 4 last-level caches.

    Args:
        clock: ``wall`` or ``processor``.
        repeats: copies timed; the median counts.

    Example:
        >>> copy_bytes_per_second(repeats=1) > 0
        True
    """
    size = min(4 * last_level_cache_bytes(), MOST_COPY_BYTES)
    source = torch.ones(size // 4)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(repeats):
        start = CLOCKS[clock]()
        target.copy_(source)
        seconds.append(CLOCKS[clock]() - start)
    return 2 * size / statistics.median(seconds)
