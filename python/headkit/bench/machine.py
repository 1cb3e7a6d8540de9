"""What a measurement depends on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform

import torch

import headkit
from headkit import _C

FALLBACK_CACHE_BYTES = 32 << 20


def last_level_cache_bytes() -> int:
    """Size of the largest cache of the first core; 32 MiB where the system does not say.

    Example:
        >>> last_level_cache_bytes() >= 1 << 18
        True
    """
    sizes = [0]
    for level in range(8):
        path = f"/sys/devices/system/cpu/cpu0/cache/index{level}/size"
        with contextlib.suppress(OSError, ValueError, KeyError), open(path) as file:
            text = file.read().strip()
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]])
    return max(sizes) or FALLBACK_CACHE_BYTES


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, str | int | float]:
    """Describe the machine, its load and the versions in use.

    Example:
        >>> sorted(machine())[:3]
        ['cache_bytes', 'compiled_with', 'cores']
    """
    config = dict(
        line.split(" ", 1) for line in headkit.show_config().splitlines() if " " in line.strip()
    )
    about: dict[str, str | int | float] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "cache_bytes": last_level_cache_bytes(),
        "load": round(os.getloadavg()[0], 2),
        "isa": _C.active_isa(),
        "torch": torch.__version__,
        "headkit": config.get("headkit", ""),
        "compiled_with": config.get("compiler", ""),
        "python": platform.python_version(),
    }
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        about["transformers"] = importlib.metadata.version("transformers")
    return about
