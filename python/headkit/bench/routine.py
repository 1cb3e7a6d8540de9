"""Something to measure at several sizes, and the run that does it."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

from headkit.bench.clock import CLOCKS, PROCESSOR, WALL
from headkit.bench.machine import machine
from headkit.bench.peer import Case, Setting
from headkit.bench.probes import copy_bytes_per_second, has_peak, read_peak
from headkit.bench.rounds import measure, on_threads
from headkit.bench.row import Row, rows_of
from headkit.bench.sizes import require_known

Progress = Callable[[str, int, int], None]


class Routine(abc.ABC):
    """A family of cases."""

    NAME: ClassVar[str]

    @abc.abstractmethod
    def settings(self) -> list[Setting]:
        """The sizes of each case, in the order of measurement."""

    @abc.abstractmethod
    def case(self, setting: Setting) -> Case:
        """Build the peers of one case and check what each of them computes.

        Raises:
            RuntimeError: if a peer's output differs from the float64 reference.
        """


@dataclasses.dataclass(frozen=True)
class AbsentRow:
    """A peer that a case does not have.

    Attributes:
        routine: what was measured.
        setting: sizes of the case.
        threads: it would have run on.
        name: the peer.
        reason: why it is not there.
    """

    routine: str
    setting: Setting
    threads: int
    name: str
    reason: str


@dataclasses.dataclass
class Report:
    """All that a run found.

    Attributes:
        machine: see ``machine``.
        rows: in the order of measurement.
        absent: peers that could not take part.
    """

    machine: dict[str, str | int | float]
    rows: list[Row]
    absent: list[AbsentRow]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what ``--out`` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            rows = [Row(**row) for row in found["rows"]]
            absent = [AbsentRow(**row) for row in found["absent"]]
            return cls(found["machine"], rows, absent)
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"[bench] expected a report that headkit bench --out wrote; found {path} ({error})"
            ) from None


def run(
    routines: Iterable[Routine],
    *,
    threads: tuple[int, ...] = (1, 0),
    rounds: int = 15,
    clock: str = WALL,
    progress: Progress | None = None,
) -> Report:
    """Measure every case of some routines on every number of threads.

    Args:
        routines: what to measure.
        threads: 1 is pinned to one core, 0 stands for all cores.
        rounds: undisturbed rounds to collect.
        clock: ``wall``; or ``processor``, for one thread: seconds in which it had the processor,
            for a machine that other programs share.
        progress: called with (what is measured, rounds done, rounds in all).

    Raises:
        ValueError: if a number of threads is negative, there is no round, or the clock is another
            one or not for so many threads.
        RuntimeError: if a peer's output differs from the float64 reference.
    """
    if rounds < 1 or not threads or min(threads) < 0:
        raise ValueError(
            "[bench] expected at least one round and numbers of threads of at least 0; found "
            f"rounds = {rounds}, threads = {threads}"
        )
    require_known((clock,), CLOCKS)
    if clock == PROCESSOR and set(threads) != {1}:
        raise ValueError(
            f"[bench] expected one thread for the clock of the processor; found threads = {threads}"
        )
    report = Report({**machine(), "clock": clock}, [], [])
    for routine in routines:
        for count in threads:
            for setting in routine.settings():
                with on_threads(count) as used:
                    _measure_case(report, routine, setting, used, rounds, clock, progress)
    return report


def _measure_case(
    report: Report,
    routine: Routine,
    setting: Setting,
    threads: int,
    rounds: int,
    clock: str,
    progress: Progress | None,
) -> None:
    label = title(routine.NAME, setting, threads)

    def show(done: int) -> None:
        if progress is not None:
            progress(label, done, rounds)

    show(0)
    case = routine.case(setting)
    if not has_peak(case.dtype):
        case.note = f"{case.note} Of peak: that of float32.".strip()
    copy = copy_bytes_per_second(clock)
    measured = measure(case.peers, rounds, lambda: read_peak(case.dtype, clock), show, clock)
    report.rows += rows_of(
        case,
        measured,
        routine=routine.NAME,
        setting=setting,
        threads=threads,
        copy=copy,
    )
    report.absent += [
        AbsentRow(routine.NAME, setting, threads, absent.name, absent.reason)
        for absent in case.absent
    ]


def title(routine: str, setting: Setting, threads: int) -> str:
    """One line that names a case.

    Example:
        >>> title("attention", {"B": 8, "T": 128}, 1)
        'attention, B=8, T=128, 1 pinned thread'
    """
    sizes = [f"{key}={value}" if len(key) < 4 else str(value) for key, value in setting.items()]
    ending = "1 pinned thread" if threads == 1 else f"{threads} threads"
    return ", ".join([routine, *sizes, ending])
