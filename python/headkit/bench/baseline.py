"""Whether a run is worse than an earlier one: ratios are compared, never times."""

from __future__ import annotations

import dataclasses

from headkit.bench.peer import HEADKIT
from headkit.bench.routine import Report, title
from headkit.bench.row import Row

OF_HEADKIT = ("of_peak", "of_ideal")
OF_PEERS = ("times_headkit",)


@dataclasses.dataclass(frozen=True)
class Change:
    """A ratio in two runs; more is better for headkit.

    Attributes:
        case: what was measured.
        name: of the peer, with its share.
        ratio: ``of_peak`` and ``of_ideal`` of headkit, ``times_headkit`` of its peers.
        before: in the earlier run.
        now: in this one.
    """

    case: str
    name: str
    ratio: str
    before: float
    now: float

    @property
    def factor(self) -> float:
        """Now over before.

        Example:
            >>> Change("attention", "headkit", "of_peak", 0.9, 0.45).factor
            0.5
        """
        return self.now / self.before

    def is_regression(self, tolerance: float) -> bool:
        """Whether the ratio fell by more than a share of it."""
        return self.factor < 1 - tolerance


def changes(now: Report, before: Report) -> list[Change]:
    """Compare the rows that both runs have; those of a void case do not count.

    Returns:
        list[Change]: the worst first.

    Raises:
        ValueError: if they have no row in common, or were measured on another processor, at
            another instruction-set level or by another clock.
    """
    for key in ("cpu", "isa", "clock"):
        if now.machine[key] != before.machine[key]:
            raise ValueError(
                f"[bench] expected a baseline measured on {now.machine[key]}; found "
                f"{before.machine[key]}"
            )
    earlier = {(row.case, row.name, row.share): row for row in before.rows if not row.void}
    found = []
    for row in now.rows:
        old = earlier.get((row.case, row.name, row.share))
        if old is not None and not row.void:
            found += _changes_of(row, old)
    if not found:
        raise ValueError(
            "[bench] expected a baseline with rows of this run; found none that counts"
        )
    return sorted(found, key=lambda change: change.factor)


def _changes_of(row: Row, old: Row) -> list[Change]:
    ratios = OF_HEADKIT if row.name == HEADKIT else OF_PEERS
    case, name = title(row.routine, row.setting, row.threads), f"{row.name} {row.share:.0%}"
    found = []
    for ratio in ratios:
        before, now = getattr(old, ratio), getattr(row, ratio)
        if before and now:
            found.append(Change(case, name, ratio, before, now))
    return found
