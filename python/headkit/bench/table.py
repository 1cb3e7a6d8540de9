"""A report on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich.console import RenderableType
from rich.table import Table

from headkit.bench.routine import Report, title
from headkit.bench.row import Row

COLUMNS = ("peer", "open", "ms", "of peak", "of copy", "x headkit", "ideal")


def tables(report: Report) -> Iterator[RenderableType]:
    """The machine, a table for each case, and the peers that are not there."""
    about = report.machine
    yield (
        f"{about['cpu']}, {about['cores']} cores, {about['isa']}, torch {about['torch']}, load "
        f"{about['load']}, {about['clock']} clock"
    )
    for _, rows in groupby(report.rows, key=lambda row: row.case):
        yield _table(list(rows))
    seen = set()
    for absent in report.absent:
        line = f"not there: {absent.name} ({absent.routine}): {absent.reason}"
        if line not in seen:
            seen.add(line)
            yield line


def _table(rows: list[Row]) -> Table:
    first = rows[0]
    caption = (
        f"peak {first.peak_flops / 1e9:.0f} GFLOP/s, copy "
        f"{first.copy_bytes_per_second / 1e9:.0f} GB/s, {first.rounds} rounds, "
        f"{first.repeated_rounds} repeated"
    )
    if first.void:
        caption += f", [red]void: had {first.processor_share:.0%} of the processor[/red]"
    table = Table(
        title=f"{title(first.routine, first.setting, first.threads)}\n{caption}",
        title_justify="left",
        title_style="",
        caption=first.note or None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in COLUMNS:
        table.add_column(
            column, justify="left" if column == "peer" else "right", no_wrap=column != "peer"
        )
    for row in rows:
        table.add_row(
            row.name,
            f"{row.share:.0%}",
            f"{row.milliseconds:.3g}" if row.milliseconds < 10 else f"{row.milliseconds:.1f}",
            "" if row.of_peak is None else f"{row.of_peak:.2f}",
            f"{row.of_copy:.2f}" if row.bytes else "",
            f"{row.times_headkit:.2f}" if row.times_headkit > 0.1 else f"{row.times_headkit:.1g}",
            "" if row.of_ideal is None else f"{row.of_ideal:.2f}",
        )
    return table
