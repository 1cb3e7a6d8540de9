"""The static study as tables and pictures."""

from pathlib import Path
from typing import Any

import torch

from headkit.agreements import agreement, plot_agreement
from headkit.plotting import COLOURS, DENSE, RANDOM, pyplot_for, save_figure
from headkit.studies.methods import MICHEL
from headkit.studies.tables import interval, p_value, signed, table

MARKERS = "osD^vPX*"
PICTURES = ("static_accuracy.svg", "static_kl.svg", "static_agreement.svg")


def static_parts(report: dict[str, Any]) -> dict[str, str]:
    """The report as Markdown tables, by name."""
    return {
        "setting": _setting(report),
        "accuracy": _grid(report, _accuracy),
        "pictures": _pictures(report),
        "kl": _grid(report, lambda row: f"{row['kl']:.3f}"),
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


def _grid(report: dict[str, Any], cell: Any) -> str:
    keeps = report["asked"]["keeps"]
    rows = {(row["method"], row["keep"]): row for row in report["rows"]}
    body = []
    for name in _labels(report):
        budget = next(row["budget"] for row in report["rows"] if row["method"] == name)
        cells = [cell(rows[name, keep]) if (name, keep) in rows else "" for keep in keeps]
        of = "" if budget == "heads" else f" ({budget.split(',')[0]})"
        body.append([f"`{name}`{of}", *cells])
    return table(["method", *(f"{100 * keep:g} %" for keep in keeps)], body)


def _against(report: dict[str, Any], other: str) -> str:
    body = []
    for row in report["rows"]:
        found = row.get(f"against_{other}")
        if found is not None:
            body.append(
                [
                    f"`{row['method']}`",
                    f"{100 * row['keep']:g} %",
                    signed(found["difference"], found["lower"], found["upper"]),
                    p_value(found["holm_p"]),
                    "{difference:+.3f} ({lower:+.3f}..{upper:+.3f})".format(**found["kl_below"]),
                ]
            )
    titles = ["method", "keeps", f"points over `{other}`", "p (Holm)", "KL below its"]
    return table(titles, body)


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
    body = []
    for each in report["latency"]:
        dense = each["ms"]["dense"]
        for name, ms in each["ms"].items():
            body.append(
                [
                    f"`{name}`",
                    "100 %" if name == "dense" else f"{100 * each['keep']:g} %",
                    str(each["batch"]),
                    f"{ms:.1f}",
                    f"{dense / ms:.2f}x",
                ]
            )
    return table(["method", "keeps", "batch", "ms", "speed-up"], body)


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
    body = [
        [
            f"`{row['method']}`",
            f"{100 * row['keep']:g} %",
            f"{row['nogueira']:.2f} ({row['lower']:.2f}..{row['upper']:.2f})",
        ]
        for row in report["stability"]
    ]
    return table(["method", "keeps", "Nogueira's index over seeds"], body)


def _cost(report: dict[str, Any]) -> str:
    body = [
        [
            f"`{row['method']}`",
            f"{100 * row['keep']:g} %",
            f"{row['seconds']:.1f}",
            f"{row['kept_heads']:.0f}",
            f"{row['parameters'] / 1e6:.2f}",
        ]
        for row in report["rows"]
    ]
    head = ["method", "keeps", "processor seconds to decide", "heads left", "10^6 parameters"]
    return table(head, body)


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
