"""Which seconds are counted."""

from __future__ import annotations

import time

WALL, PROCESSOR = "wall", "processor"

CLOCKS = {WALL: time.perf_counter, PROCESSOR: time.process_time}
