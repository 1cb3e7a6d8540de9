"""Joules that a computation costs, by the counters of processors and graphics processors."""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headkit import _C

POWERCAP = "/sys/class/powercap"
LEAST_SECONDS = 10.0


class EnergyCounter(Protocol):
    """Something that counts joules.

    Attributes:
        name: what is counted.
    """

    name: str

    def joules(self) -> float:
        """Joules since the last call, or since the counter was opened.

        Raises:
            RuntimeError: if it can no longer be read.
        """


class RaplCounter:
    """Processor packages, by the RAPL counters of Linux; counters that wrapped once are right.

    Args:
        folder: of the power-capping interface.

    Raises:
        RuntimeError: where there are no counters, or this process may not read them.
    """

    name = "RAPL"

    def __init__(self, folder: str = POWERCAP):
        self._meter = _C.EnergyMeter(folder)

    def joules(self) -> float:
        """Of all packages together."""
        return self._meter.joules()


class NvmlCounter:
    """Graphics processors of NVIDIA, by the total-energy counters of NVML (from Volta on).

    Raises:
        RuntimeError: without the package nvidia-ml-py, a driver, or a device that counts.
    """

    name = "NVML"

    def __init__(self) -> None:
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError as error:
            raise RuntimeError(
                "[energy] expected the package nvidia-ml-py for NVML; found none: pip install "
                "'headkit[energy]'"
            ) from error
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._devices = [self._nvml.nvmlDeviceGetHandleByIndex(n) for n in range(count)]
            self._last = self._read()
        except self._nvml.NVMLError as error:
            raise RuntimeError(
                f"[energy] expected NVIDIA devices that count energy; found: {error}"
            ) from error
        if not self._devices:
            raise RuntimeError("[energy] expected NVIDIA devices that count energy; found none")

    def _read(self) -> list[int]:
        """Millijoules since the driver was loaded, of each device."""
        return [self._nvml.nvmlDeviceGetTotalEnergyConsumption(one) for one in self._devices]

    def joules(self) -> float:
        """Of all devices together."""
        try:
            now = self._read()
        except self._nvml.NVMLError as error:
            raise RuntimeError(f"[energy] expected a readable counter; found: {error}") from error
        spent = sum(now) - sum(self._last)
        self._last = now
        return spent / 1000


@dataclass(frozen=True)
class Energy:
    """What one run of a computation costs.

    Attributes:
        joules: above those of the idle machine; negative where the noise is larger than the cost.
        idle_joules: that the idle machine would have spent meanwhile.
        seconds: of one run.
        runs: that were measured.
        counters: that were added up.
    """

    joules: float
    idle_joules: float
    seconds: float
    runs: int
    counters: tuple[str, ...]


class Meter:
    """Energy of computations above that of the idle machine.

    Counters are those of the whole machine, whoever uses it: keep other work away.

    Attributes:
        counters: names of those that there are; none = nothing can be measured.
        missing: why others are not there.
        idle_watts: of the idle machine; None = not measured yet.

    Args:
        counters: that are added up.
        missing: reasons.
        clock: seconds. sleep: waits for seconds.
    """

    def __init__(
        self,
        counters: Sequence[EnergyCounter],
        missing: Sequence[str] = (),
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._counters = list(counters)
        self.counters = tuple(counter.name for counter in self._counters)
        self.missing = tuple(missing)
        self.idle_watts: float | None = None
        self._clock, self._sleep = clock, sleep

    def __bool__(self) -> bool:
        """Whether there is a counter."""
        return bool(self._counters)

    def __repr__(self) -> str:
        return f"<energy meter of {', '.join(self.counters) or 'no counter'}>"

    def describe(self) -> str:
        """The counters, or why there are none, in words."""
        if self._counters:
            return f"{' and '.join(self.counters)}, idle power subtracted"
        return "no counter: " + ("; ".join(self.missing) or "none was asked for")

    def rest(self, seconds: float = LEAST_SECONDS) -> float | None:
        """Measure the idle machine.

        Args:
            seconds: to wait.

        Returns:
            float: watts, also ``idle_watts``; None without a counter.

        Raises:
            ValueError: unless seconds > 0.
        """
        _check_seconds("rest", seconds)
        if not self._counters:
            return None
        begun = self._begin()
        self._sleep(seconds)
        spent = self._joules()
        self.idle_watts = spent / (self._clock() - begun)
        return self.idle_watts

    def measure(
        self, run: Callable[[], Any], seconds: float = LEAST_SECONDS, *, runs: int = 1
    ) -> Energy | None:
        """What one run costs, of as many as last for some seconds.

        Args:
            run: the computation; one that leaves work on a device has to wait for it.
            seconds: the runs last at least so long in all. Counters move in steps of milliseconds:
                ten seconds or more make that small.
            runs: at least so many.

        Returns:
            Energy: None without a counter. The idle machine is measured first, for as long, if it
            was not yet.

        Raises:
            ValueError: unless seconds > 0 and runs >= 1.
            RuntimeError: if a counter can no longer be read.
        """
        _check_seconds("measure", seconds)
        if runs < 1:
            raise ValueError(f"[energy] expected runs >= 1; found {runs}")
        if not self._counters:
            return None
        if self.idle_watts is None:
            self.rest(seconds)
        begun, spent, done = self._begin(), 0.0, 0
        passed = 0.0
        while done < runs or passed < seconds:
            run()
            done += 1
            # After each run, so that no counter wraps twice unseen.
            spent += self._joules()
            passed = self._clock() - begun
        idle = (self.idle_watts or 0.0) * passed
        return Energy((spent - idle) / done, idle / done, passed / done, done, self.counters)

    def _begin(self) -> float:
        self._joules()
        return self._clock()

    def _joules(self) -> float:
        return sum(counter.joules() for counter in self._counters)


def _check_seconds(operation: str, seconds: float) -> None:
    if not seconds > 0:
        raise ValueError(f"[energy] expected {operation} for more than 0 seconds; found {seconds}")


def energy_meter(folder: str = POWERCAP) -> Meter:
    """A meter of whatever this machine counts: processors by RAPL, graphics processors by NVML.

    Args:
        folder: of the power-capping interface of Linux.

    Returns:
        Meter: false, and ``measure`` gives None, where the machine shows no counter; then
        ``describe()`` says why, and FLOPs and bytes are all there is to report.

    Example:
        >>> meter = headkit.energy_meter("nowhere")
        >>> "RAPL" in meter.counters
        False
        >>> used = meter.measure(lambda: sum(range(1000)), seconds=0.01)
        >>> used is None or used.runs >= 1
        True
    """
    counters: list[EnergyCounter] = []
    missing = []
    for opened in (lambda: RaplCounter(folder), NvmlCounter):
        try:
            counters.append(opened())
        except RuntimeError as error:
            missing.append(str(error))
    return Meter(counters, missing)
