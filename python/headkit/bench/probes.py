"""Two ceilings of the machine, measured in every run: multiply-adds and memory traffic."""

from __future__ import annotations

import statistics
import time

import torch

from headkit import _C
from headkit.bench.machine import last_level_cache_bytes

MOST_COPY_BYTES = 1 << 30


def peak_flops(dtype: torch.dtype = torch.float32) -> float:
    """Measure FLOP/s of multiply-adds on registers alone, over the threads that torch uses.

    Args:
        dtype: float32; for another one its own peak where the build can measure that, else the one
            of float32.

    Example:
        >>> peak_flops() > 0
        True
    """
    if dtype == torch.float32 or not has_peak(dtype):
        return _C.peak_flops()
    return _C.peak_flops(dtype=_name(dtype))


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


def copy_bytes_per_second(repeats: int = 5) -> float:
    """Measure memory traffic, bytes read and written, of copying a tensor of 4 last-level caches.

    Args:
        repeats: copies timed; the median counts.

    Example:
        >>> copy_bytes_per_second(1) > 0
        True
    """
    size = min(4 * last_level_cache_bytes(), MOST_COPY_BYTES)
    source = torch.ones(size // 4)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * size / statistics.median(seconds)
