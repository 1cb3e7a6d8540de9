"""Pictures of a report; they need matplotlib (extra ``plots``)."""

from __future__ import annotations

import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

from headkit.bench.peer import HEADKIT
from headkit.bench.routine import Report, title
from headkit.bench.row import Row
from headkit.plotting import COLOURS, DENSE, pyplot_for, save_figure

MARKERS = "osD^vPX*"


def _colours(rows: list[Row]) -> dict[str, str]:
    names = sorted({row.name for row in rows} - {HEADKIT})
    found = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    return found | {HEADKIT: DENSE}


def plot_shares(report: Report, path: Path) -> None:
    """Draw time over headkit's at share 1 against the share that is open, a panel a case.

    Args:
        report: with cases that have more than one share.
        path: a file whose ending matplotlib knows.

    Raises:
        RuntimeError: if matplotlib is not installed.
        ValueError: if no case has two shares.
    """
    cases = [list(rows) for _, rows in groupby(report.rows, key=lambda row: row.case)]
    cases = [rows for rows in cases if len({row.share for row in rows}) > 1]
    if not cases:
        raise ValueError("[bench] expected a case with two shares to draw; found none")
    pyplot, colours = pyplot_for("bench"), _colours([row for rows in cases for row in rows])
    columns = min(len(cases), 3)
    lines = -(-len(cases) // columns)
    figure, panels = pyplot.subplots(
        lines, columns, figsize=(max(4.2 * columns, 6.2), 3.8 * lines + 1.2), squeeze=False
    )
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    for panel, rows in zip(panels.flat, cases, strict=False):
        panel.plot([0, 1], [0, 1], color="#999999", linestyle=":", label="in proportion")
        for name in sorted({row.name for row in rows}):
            points = sorted((row.share, row.times_headkit) for row in rows if row.name == name)
            panel.plot(
                *zip(*points, strict=True),
                color=colours[name],
                marker="o" if len(points) > 1 else "D",
                markersize=4,
                linewidth=2 if name == HEADKIT else 1,
                zorder=3 if name == HEADKIT else 2,
                label=name,
            )
        name = title(rows[0].routine, rows[0].setting, rows[0].threads)
        panel.set_title(textwrap.fill(name, 44), fontsize=8)
        panel.set_xlim(0, 1.05)
        panel.set_ylim(0)
        panel.set_xlabel("share that is open")
        panel.set_ylabel("time / headkit, all open")
    _legend(figure, panels.flat[: len(cases)])
    save_figure(pyplot, figure, path)


def plot_roofline(report: Report, path: Path) -> None:
    """Draw useful FLOP/s against useful FLOPs a byte, under both probes.

    Args:
        report: with rows that count FLOPs.
        path: a file whose ending matplotlib knows.

    Raises:
        RuntimeError: if matplotlib is not installed.
        ValueError: if no row counts FLOPs.
    """
    rows = [row for row in report.rows if row.flops]
    if not rows:
        raise ValueError("[bench] expected rows that count FLOPs to draw; found none")
    pyplot, colours = pyplot_for("bench"), _colours(rows)
    threads = sorted({row.threads for row in rows})
    figure, panels = pyplot.subplots(
        1, len(threads), figsize=(6.2 * len(threads), 5.4), squeeze=False
    )
    for panel, count in zip(panels.flat, threads, strict=True):
        _roofline(panel, [row for row in rows if row.threads == count], colours)
        panel.set_title("1 pinned thread" if count == 1 else f"{count} threads")
    _legend(figure, panels.flat)
    save_figure(pyplot, figure, path)


def _roofline(panel: Any, rows: list[Row], colours: dict[str, str]) -> None:
    intensities = [row.flops / row.bytes for row in rows]
    peaks = {str(row.setting.get("dtype", "float32")): row.peak_flops for row in rows}
    copy = max(row.copy_bytes_per_second for row in rows)
    # Both roofs show, wherever the points are.
    low, high = min(*intensities, min(peaks.values()) / copy) / 3, max(intensities) * 2
    for dtype, peak in peaks.items():
        ridge = peak / copy
        xs = [low, ridge, high] if low < ridge < high else [low, high]
        panel.plot(xs, [min(peak, x * copy) / 1e9 for x in xs], color="#5b6470", linewidth=1)
        panel.annotate(f"peak, {dtype}", (high, peak / 1e9), ha="right", va="bottom", fontsize=8)
    shapes = sorted({_shape(row) for row in rows})
    for row in rows:
        panel.plot(
            row.flops / row.bytes,
            row.flops / row.milliseconds / 1e6,
            color=colours[row.name],
            marker=MARKERS[shapes.index(_shape(row)) % len(MARKERS)],
            markersize=7 if row.name == HEADKIT else 5,
            fillstyle="full" if row.share == 1 else "none",
            linestyle="",
            label=row.name,
        )
    for place, shape in enumerate(shapes):
        marker = MARKERS[place % len(MARKERS)]
        panel.plot([], [], color="#999999", marker=marker, linestyle="", label=shape)
    for axis in (panel.xaxis, panel.yaxis):
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    panel.set_xlabel("useful FLOPs / least bytes (hollow: not all open)")
    panel.set_ylabel("useful GFLOP/s")


def _shape(row: Row) -> str:
    sizes = [f"{key}={row.setting[key]}" for key in ("T", "S") if key in row.setting]
    return ", ".join([row.routine, *sizes])


def _legend(figure: Any, panels: Any) -> None:
    found = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = max(1, int(figure.get_figwidth() / 2.9))
    lines = -(-len(found) // columns)
    height = 0.2 * lines / figure.get_figheight() + 0.02
    figure.tight_layout(rect=(0, height, 1, 1))
    figure.legend(found.values(), found.keys(), loc="lower center", ncols=columns, frameon=False)
