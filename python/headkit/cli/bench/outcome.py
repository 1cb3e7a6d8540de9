"""What all commands of ``headkit bench`` do with their routines: run, show, keep, compare, draw."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable
from typing import Any, get_type_hints

from rich.console import Console

import headkit
from headkit.bench.baseline import changes
from headkit.bench.markdown import markdown
from headkit.bench.plots import plot_roofline, plot_shares
from headkit.bench.routine import Report, Routine, run
from headkit.bench.table import tables
from headkit.cli.bench import options
from headkit.cli.terminal import errors, exit_codes, print_json, shown_progress


def carry_out(
    routines: list[Routine],
    *,
    threads: options.Threads = "1,all",
    rounds: options.RoundCount = 15,
    clock: options.Clock = "wall",
    isa: options.Isa = None,
    as_json: options.Json = False,
    out: options.Out = None,
    markdown_file: options.Markdown = None,
    baseline: options.Baseline = None,
    tolerance: options.Tolerance = 0.05,
    plot: options.Plot = None,
    roofline: options.Roofline = None,
) -> None:
    """Run routines and do with the report what was asked for.

    Raises:
        ValueError: if a routine, the level or the baseline cannot be.
        RuntimeError: if a peer's output is wrong, or a ratio worse than in the baseline.
    """
    counts = options.thread_counts(threads)
    before = None if baseline is None else Report.read(baseline)
    if isa is not None:
        _choose(isa)
    with shown_progress() as show:
        report = run(routines, threads=counts, rounds=rounds, clock=clock, progress=show)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    if markdown_file is not None:
        markdown_file.parent.mkdir(parents=True, exist_ok=True)
        markdown_file.write_text(markdown(report) + "\n", encoding="utf-8")
    if as_json:
        print_json(report.to_dict())
    else:
        console = Console()
        for part in tables(report):
            console.print(part, markup=False, highlight=False)
    if plot is not None:
        plot_shares(report, plot)
    if roofline is not None:
        plot_roofline(report, roofline)
    if before is not None:
        _compare(report, before, tolerance)


def measuring(routines_of: Callable[..., list[Routine]]) -> Callable[..., None]:
    """Make a command of a function from its own options to routines: it has those of
    ``carry_out`` too."""
    own, shared = _options(routines_of), _options(carry_out)
    del shared["routines"]

    @functools.wraps(routines_of)
    def command(**values: Any) -> None:
        with exit_codes():
            routines = routines_of(**{name: values.pop(name) for name in own})
            carry_out(routines, **values)

    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*own.values(), *shared.values()]
    )
    command.__annotations__ = {name: p.annotation for name, p in {**own, **shared}.items()}
    return command


def _options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(function, include_extras=True)
    return {
        name: p.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, p in inspect.signature(function).parameters.items()
    }


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
