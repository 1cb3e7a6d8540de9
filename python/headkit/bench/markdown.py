"""A report as Markdown, for pages."""

from __future__ import annotations

from itertools import groupby

from headkit.bench.peer import Setting
from headkit.bench.routine import Report
from headkit.bench.row import Row

FACTS = ("cores", "isa", "torch", "load", "clock")


def markdown(report: Report) -> str:
    """A table for each routine, measure and number of threads; its cases are side by side.

    Example:
        >>> print(markdown(Report({"cpu": "some", "load": 0.1}, [], [])))
        some; load 0.1
    """
    about = report.machine
    facts = [str(about["cpu"])]
    facts += [
        f"{key} {about[key]}" for key in ("cores", "isa", "torch", "load", "clock") if key in about
    ]
    parts = ["; ".join(facts)]
    for _, rows in groupby(report.rows, key=_group):
        parts.append(_table(list(rows)))
    return "\n\n".join(parts)


def _group(row: Row) -> tuple[object, ...]:
    words = tuple(value for value in row.setting.values() if isinstance(value, str))
    return (row.routine, words, row.threads)


def _table(rows: list[Row]) -> str:
    cases = [list(found) for _, found in groupby(rows, key=lambda row: row.case)]
    settings = [case[0].setting for case in cases]
    same = {k: v for k, v in settings[0].items() if all(s[k] == v for s in settings)}
    first = rows[0]
    threads = "1 pinned thread" if first.threads == 1 else f"{first.threads} threads"
    title = ", ".join([first.routine, *_sizes(same), threads])
    ceilings = "; ".join(_ceilings(case[0], same) for case in cases)
    notes = "".join(f" {note}" for note in dict.fromkeys(row.note for row in rows if row.note))
    head, rule = ["peer", "open"], ["---", "---:"]
    for setting in settings:
        varied = " ".join(_sizes({k: v for k, v in setting.items() if k not in same}))
        head += [f"{varied} ms".strip(), "of peak", "x headkit (ideal)"]
        rule += ["---:"] * 3
    lines = [f"**{title}.** {ceilings}.{notes}", "", _line(head), _line(rule)]
    found = [{(row.name, row.share): row for row in case} for case in cases]
    for key in dict.fromkeys(key for case in found for key in case):
        cells = [key[0], f"{key[1]:.0%}".replace("%", " %")]
        for case in found:
            cells += _cells(case.get(key))
        lines.append(_line(cells))
    return "\n".join(lines)


def _sizes(setting: Setting) -> list[str]:
    return [f"{key}={value}" if len(key) < 4 else str(value) for key, value in setting.items()]


def _ceilings(row: Row, same: Setting) -> str:
    varied = " ".join(_sizes({k: v for k, v in row.setting.items() if k not in same}))
    state = f"{row.rounds} rounds"
    if row.void:
        state += f", void: had {row.processor_share:.0%} of the processor".replace("%", " %")
    return (
        f"{varied}{': ' if varied else ''}peak {row.peak_flops / 1e9:.0f} GFLOP/s, copy "
        f"{row.copy_bytes_per_second / 1e9:.0f} GB/s, {state}"
    )


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", "", ""]
    ratio = f"{row.times_headkit:.2f}" if row.times_headkit >= 0.1 else f"{row.times_headkit:.1g}"
    if row.of_ideal is not None:
        ratio += f" ({row.of_ideal:.2f})"
    peak = "" if row.of_peak is None else f"{row.of_peak:.2f}"
    time = row.milliseconds
    return [f"{time:.3g}" if time < 1000 else f"{time:.0f}", peak, ratio]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
