"""What is reported of a peer."""

from __future__ import annotations

import dataclasses
import statistics

from headkit.bench.peer import HEADKIT, Case, Setting
from headkit.bench.rounds import Rounds


@dataclasses.dataclass(frozen=True)
class Row:
    """One peer in one case.

    Attributes:
        routine: what was measured.
        setting: sizes and dtype of the case.
        threads: it ran on.
        name: ``headkit`` or the peer.
        share: open heads or neurons over all.
        milliseconds: median over the rounds, and their minimum.
        flops: useful FLOPs, and the least bytes to move: see ``Work``.
        of_peak: useful FLOP/s over the probe of the same round, median; None where nothing counts.
        of_copy: least bytes a second over the copy probe.
        times_headkit: its time over headkit's at share 1 in the same round, median.
        of_ideal: of headkit, time at share 1 in proportion to the useful FLOPs, over its time.
        max_error: largest difference from the float64 reference.
        rounds: rounds that count, and how many were disturbed and measured again.
        peak_flops: median of the probe, and its spread over the rounds that count.
        copy_bytes_per_second: of the copy probe.
        processor_share: processor time that the probe's threads got, over the time that passed.
        void: the machine did other things in too many rounds: do not quote this row.
        note: what a reader should know, or "".
    """

    routine: str
    setting: Setting
    threads: int
    name: str
    share: float
    milliseconds: float
    min_milliseconds: float
    flops: float
    bytes: float
    of_peak: float | None
    of_copy: float
    times_headkit: float
    of_ideal: float | None
    max_error: float
    rounds: int
    repeated_rounds: int
    peak_flops: float
    peak_spread: float
    copy_bytes_per_second: float
    processor_share: float
    void: bool
    note: str = ""

    @property
    def case(self) -> tuple[object, ...]:
        """What rows that were measured side by side have in common."""
        return (self.routine, tuple(sorted(self.setting.items())), self.threads)


def _median_ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def rows_of(
    case: Case,
    measured: Rounds,
    *,
    routine: str,
    setting: Setting,
    threads: int,
    copy: float,
) -> list[Row]:
    """The rows of a case from its rounds.

    Args:
        case: its peers.
        measured: their seconds.
        routine: name of the routine.
        setting: sizes and dtype.
        threads: they ran on.
        copy: the copy probe, bytes a second.
    """
    probes = measured.probes
    dense = measured.seconds[HEADKIT, 1.0]
    dense_flops = next(p.work.flops for p in case.peers if (p.name, p.share) == (HEADKIT, 1.0))
    rows = []
    for peer in case.peers:
        seconds, flops = measured.seconds[peer.name, peer.share], peer.work.flops
        of_peak = of_ideal = None
        if flops:
            of_peak = statistics.median(flops / s / p for s, p in zip(seconds, probes, strict=True))
            if peer.name == HEADKIT:
                of_ideal = flops / dense_flops * _median_ratio(dense, seconds)
        rows.append(
            Row(
                routine=routine,
                setting=setting,
                threads=threads,
                name=peer.name,
                share=peer.share,
                milliseconds=1e3 * statistics.median(seconds),
                min_milliseconds=1e3 * min(seconds),
                flops=flops,
                bytes=peer.work.bytes,
                of_peak=of_peak,
                of_copy=peer.work.bytes / statistics.median(seconds) / copy,
                times_headkit=_median_ratio(seconds, dense),
                of_ideal=of_ideal,
                max_error=peer.max_error,
                rounds=len(seconds),
                repeated_rounds=measured.repeated,
                peak_flops=statistics.median(probes),
                peak_spread=1.0 - min(probes) / max(probes),
                copy_bytes_per_second=copy,
                void=measured.void,
                processor_share=statistics.median(measured.shares),
                note=case.note,
            )
        )
    return rows
