"""What a command does with its options that all routines share: run, show, keep, compare, draw."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

import headkit
from headkit.bench.baseline import changes
from headkit.bench.plots import plot_roofline, plot_shares
from headkit.bench.routine import Report, Routine, run
from headkit.bench.table import tables
from headkit.cli.bench.options import thread_counts
from headkit.cli.terminal import errors, print_json, shown_progress


@dataclasses.dataclass(frozen=True)
class Wishes:
    """The options that every command of ``headkit bench`` has: see ``options``."""

    threads: str
    rounds: int
    isa: str | None
    as_json: bool
    out: Path | None
    baseline: Path | None
    tolerance: float
    plot: Path | None
    roofline: Path | None


def carry_out(routines: Iterable[Routine], wishes: Wishes) -> None:
    """Run routines and do with the report what was asked for.

    Raises:
        ValueError: if a routine, the level or the baseline cannot be.
        RuntimeError: if a peer's output is wrong, or a ratio worse than in the baseline.
    """
    before = None if wishes.baseline is None else Report.read(wishes.baseline)
    if wishes.isa is not None:
        _choose(wishes.isa)
    with shown_progress() as show:
        report = run(
            routines,
            threads=thread_counts(wishes.threads),
            rounds=wishes.rounds,
            progress=show,
        )
    if wishes.out is not None:
        wishes.out.parent.mkdir(parents=True, exist_ok=True)
        wishes.out.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if wishes.as_json:
        print_json(report.to_dict())
    else:
        console = Console()
        for part in tables(report):
            console.print(part, markup=False, highlight=False)
    if wishes.plot is not None:
        plot_shares(report, wishes.plot)
    if wishes.roofline is not None:
        plot_roofline(report, wishes.roofline)
    if before is not None:
        _compare(report, before, wishes.tolerance)


def _choose(isa: str) -> None:
    os.environ["HEADKIT_ISA"] = isa
    if (active := headkit.active_isa()) != isa:
        raise ValueError(
            f"[bench] expected --isa before a kernel was used; found {active} in use, wanted {isa}"
        )


def _compare(now: Report, before: Report, tolerance: float) -> None:
    found = changes(now, before)
    worse = [change for change in found if change.is_regression(tolerance)]
    for change in worse:
        errors.print(
            f"[red]worse:[/] {change.case}: {change.name}: {change.ratio} {change.before:.3f} -> "
            f"{change.now:.3f} ({change.factor - 1:+.1%})",
            highlight=False,
            soft_wrap=True,
        )
    errors.print(
        f"{len(found)} ratios compared, {len(worse)} worse by more than {tolerance:.0%}; the worst "
        f"is {found[0].factor - 1:+.1%}",
        highlight=False,
        soft_wrap=True,
    )
    if worse:
        raise RuntimeError(
            f"[bench] expected ratios of at least {1 - tolerance:.2f} of the baseline; found "
            f"{len(worse)} that are worse"
        )
