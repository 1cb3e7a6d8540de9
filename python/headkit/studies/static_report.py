"""The static study as tables and pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from headkit.agreements import agreement, plot_agreement
from headkit.plotting import COLOURS, DENSE, RANDOM, pyplot_for, save_figure
from headkit.studies.methods import MICHEL
from headkit.studies.tables import interval, signed, table

LEVEL = 0.05
MARKERS = "osD^vPX*"
PICTURES = ("static_accuracy.svg", "static_kl.svg", "static_agreement.svg")


def static_parts(report: dict[str, Any]) -> dict[str, str]:
    """The report as Markdown tables, by name."""
    return {
        "setting": _setting(report),
        "accuracy": _rows(report, _accuracy),
        "pictures": _pictures(report),
        "agrees": _rows(report, lambda row: f"{100 * (1 - row['flips']):.1f}"),
        "kl": _rows(report, lambda row: f"{row['kl']:.3f}"),
        "random": _against(report, "random"),
        "michel": _against(report, MICHEL),
        "tuned": _tuned(report),
        "latency": _latency(report),
        "agreement": _agreement(report),
        "stability": _stability(report),
        "cost": _cost(report),
        "refused": _refused(report),
    }


def static_markdown(report: dict[str, Any]) -> str:
    """All tables, each under its name."""
    parts = static_parts(report)
    return "\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items()) + "\n"


def _pictures(report: dict[str, Any]) -> str:
    shown = PICTURES if report["agreement"] is not None else PICTURES[:2]
    titles = ("accuracy by share", "KL by share", "agreement of metrics")
    return "\n".join(f"![{title}]({name})" for title, name in zip(titles, shown, strict=False))


def _setting(report: dict[str, Any]) -> str:
    dense, counts = report["dense"], report["sentences"]
    accuracy = interval(dense["accuracy"], dense["lower"], dense["upper"])
    return (
        f"{len(report['seeds'])} seeds; {counts['train']} sentences to train on, "
        f"{counts['calibration']} to score on, {counts['validation']} to choose on, "
        f"{counts['test']} to report on. Dense: {accuracy} % right."
    )


def _accuracy(row: dict[str, Any]) -> str:
    return interval(row["accuracy"], row["lower"], row["upper"])


def _labels(report: dict[str, Any]) -> list[str]:
    """Methods, the best at half of the heads first."""
    half = min(report["asked"]["keeps"], key=lambda keep: abs(keep - 0.5))
    value = {row["method"]: row["accuracy"] for row in report["rows"] if row["keep"] == half}
    names = dict.fromkeys(row["method"] for row in report["rows"])
    return sorted(names, key=lambda name: -value.get(name, 0))


Cells = dict[tuple[str, float], str]  # by method and share


def _grid(report: dict[str, Any], cells: Cells) -> str:
    """A row for each method that has a cell, the best first, and a column for each share."""
    keeps = report["asked"]["keeps"]
    budgets = {row["method"]: row["budget"].split(",")[0] for row in report["rows"]}
    named = {name for name, _ in cells}
    body = []
    for name in (label for label in _labels(report) if label in named):
        of = "" if budgets[name] == "heads" else f" ({budgets[name]})"
        body.append([f"`{name}`{of}", *(cells.get((name, keep), "") for keep in keeps)])
    return table(["method", *(f"{100 * keep:g} %" for keep in keeps)], body)


def _rows(report: dict[str, Any], cell: Callable[[dict[str, Any]], str]) -> str:
    return _grid(report, {(row["method"], row["keep"]): cell(row) for row in report["rows"]})


def _against(report: dict[str, Any], other: str) -> str:
    points: Cells = {}
    below: Cells = {}
    for row in report["rows"]:
        found = row.get(f"against_{other}")
        if found is None:
            continue
        place = row["method"], row["keep"]
        sure = "*" if found["holm_p"] < LEVEL else ""
        points[place] = signed(found["difference"], found["lower"], found["upper"]) + sure
        below[place] = "{difference:+.3f} ({lower:+.3f}..{upper:+.3f})".format(**found["kl_below"])
    return (
        f"Points of accuracy over `{other}`; `*`: p below {LEVEL} (Holm):\n\n"
        f"{_grid(report, points)}\n\nKL below that of `{other}`:\n\n{_grid(report, below)}"
    )


def _tuned(report: dict[str, Any]) -> str:
    if report["tuned"] is None:
        return "Not run."
    body = []
    for row in report["tuned"]["rows"]:
        found = row.get("against_dense")
        body.append(
            [
                f"`{row['method']}`",
                f"{100 * row['keep']:g} %",
                _accuracy(row),
                ""
                if found is None
                else signed(found["difference"], found["lower"], found["upper"]),
                f"{row['kl']:.3f}",
            ]
        )
    return table(["method", "keeps", "accuracy", "points to dense", "KL"], body)


def _latency(report: dict[str, Any]) -> str:
    if not report["latency"]:
        return "Not measured."
    parts = []
    for size in dict.fromkeys(each["batch"] for each in report["latency"]):
        rows = [each for each in report["latency"] if each["batch"] == size]
        dense = " / ".join(f"{each['ms']['dense']:.1f}" for each in rows)
        cells = {
            (name, each["keep"]): f"{each['ms']['dense'] / ms:.2f}x"
            for each in rows
            for name, ms in each["ms"].items()
            if name != "dense"
        }
        parts.append(
            f"Batches of {size}; dense {dense} ms beside each share:\n\n{_grid(report, cells)}"
        )
    return "\n\n".join(parts)


def _agreement(report: dict[str, Any]) -> str:
    found = report["agreement"]
    if found is None:
        return "Fewer than two metrics."
    names, values = found["names"], found["spearman"]["values"]
    body = []
    for place, name in enumerate(names):
        own = found["between_runs"][place]
        cells = ["" if value is None else f"{value:.2f}" for value in values[place]]
        body.append([f"`{name}`", "" if own is None else f"{own:.2f}", *cells])
    return table(["Spearman", "between seeds", *(f"`{name}`" for name in names)], body)


def _stability(report: dict[str, Any]) -> str:
    return _grid(
        report,
        {
            (row["method"], row["keep"]): f"{row['nogueira']:.2f} "
            f"({row['lower']:.2f}..{row['upper']:.2f})"
            for row in report["stability"]
        },
    )


def _cost(report: dict[str, Any]) -> str:
    def seconds(row: dict[str, Any]) -> str:
        return f"{row['seconds']:.1f}"

    def left(row: dict[str, Any]) -> str:
        return f"{row['kept_heads']:.0f} / {row['parameters'] / 1e6:.2f}"

    return (
        f"Processor seconds to decide:\n\n{_rows(report, seconds)}\n\n"
        f"Heads that are left / 10^6 parameters:\n\n{_rows(report, left)}"
    )


def _refused(report: dict[str, Any]) -> str:
    if not report["refused"]:
        return "None."
    body = [
        [f"`{each['method']}`", f"{100 * each['keep']:g} %", each["reason"]]
        for each in report["refused"]
    ]
    return table(["method", "keeps", "why not"], body)


def plot_static(report: dict[str, Any], folder: Path) -> None:
    """Draw accuracy and KL against the share that stays, and the agreement of metrics.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    _plot_shares(report, folder / PICTURES[0], "accuracy", "test accuracy")
    _plot_shares(report, folder / PICTURES[1], "kl", "KL to dense")
    if report["agreement"] is not None:
        scores = {
            name: [torch.tensor(run) for run in runs] for name, runs in report["scores"].items()
        }
        plot_agreement(agreement(scores), folder / PICTURES[2])


def _plot_shares(report: dict[str, Any], path: Path, value: str, title: str) -> None:
    pyplot = pyplot_for("experiment")
    figure, axes = pyplot.subplots(figsize=(7, 4.2), constrained_layout=True)
    if value == "accuracy":
        axes.axhline(report["dense"]["accuracy"], color=DENSE, linewidth=1, label="dense")
    others = 0
    for name in _labels(report):
        rows = sorted(
            (row for row in report["rows"] if row["method"] == name), key=lambda row: row["keep"]
        )
        shares = [100 * row["keep"] for row in rows]
        if name == "random":
            style: dict[str, Any] = {"color": RANDOM, "linewidth": 3}
            low, high = ("lower", "upper") if value == "accuracy" else ("kl_lower", "kl_upper")
            ends = ([row[end] for row in rows] for end in (low, high))
            axes.fill_between(shares, *ends, color=RANDOM, alpha=0.2)
        else:
            style = {
                "color": COLOURS[others % len(COLOURS)],
                "marker": MARKERS[others // len(COLOURS) % len(MARKERS)],
                "linewidth": 1,
                "markersize": 4,
            }
            others += 1
        axes.plot(shares, [row[value] for row in rows], label=name, **style)
    axes.set_xlabel("% that stays")
    axes.set_ylabel(title)
    axes.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(pyplot, figure, path)
