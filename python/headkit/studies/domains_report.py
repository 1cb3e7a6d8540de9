"""The cross-domain study as tables and a picture."""

from pathlib import Path
from typing import Any

from headkit.plotting import COLOURS, DENSE, RANDOM, pyplot_for, save_figure
from headkit.studies.dynamic_report import dynamic_parts
from headkit.studies.tables import table

PICTURE = "cross_domain.svg"
PERCENT = ("word error rate", "accuracy", "share of atoms mapped right")


def domains_parts(report: dict[str, Any]) -> dict[str, str]:
    """The report as Markdown tables, by name; the same names whatever was found."""
    ladders = report["ladders"]
    shown = {} if ladders is None else dynamic_parts(ladders)
    return {
        "setting": _setting(report),
        "quality": _by_domain(report, _quality),
        "picture": f"![quality by share of open heads]({PICTURE})",
        "comparisons": _by_domain(report, _comparisons),
        "inputs": _by_domain(report, _inputs),
        "cost": _by_domain(report, _cost),
        "generation": _generation(report),
        "alignment": _alignment(report),
        "ladders": shown.get("arms", "Not run."),
        "ladders_time": shown.get("time", "Not run."),
    }


def domains_markdown(report: dict[str, Any]) -> str:
    """All tables, each under its name."""
    parts = domains_parts(report)
    return "\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items()) + "\n"


def _by_domain(report: dict[str, Any], part: Any) -> str:
    return "\n\n".join(
        f"**{name}**, {domain['model']}\n\n{part(domain)}"
        for name, domain in report["domains"].items()
    )


def _setting(report: dict[str, Any]) -> str:
    lines = []
    for name, domain in report["domains"].items():
        seeds = len(domain["seeds"])
        lines.append(
            f"- {name}: {domain['model']}, {domain['layers']} x {domain['heads']} heads, "
            f"{domain['examples']} test examples, {seeds} seed{'s' if seeds > 1 else ''}"
        )
    machine = report["machine"]
    threads = machine["threads"]
    lines.append(f"- {threads} thread{'s' if threads > 1 else ''}")
    lines.append(f"- energy: {machine['energy']}")
    return "\n".join(lines)


def _value(domain: dict[str, Any], row: dict[str, Any]) -> str:
    scale = 100 if domain["measure"] in PERCENT else 1
    digits = 1 if scale == 100 else (2 if domain["measure"] == "perplexity" else 3)
    value, lower, upper = (scale * row[name] for name in ("quality", "lower", "upper"))
    return f"{value:.{digits}f} ({lower:.{digits}f}..{upper:.{digits}f})"


def _quality(domain: dict[str, Any]) -> str:
    unit = ", %" if domain["measure"] in PERCENT else ""
    better = "higher" if domain["higher"] else "lower"
    body = [
        [
            row["way"], f"{100 * row['open']:.0f}", _value(domain, row),
            "" if row["flops"] is None else f"{row['flops']:.2f}",
        ]
        for row in domain["rows"]
    ]  # fmt: skip
    return table(
        ["heads", "% open", f"{domain['measure']}{unit} ({better} is better)", "FLOPs"], body
    )


def _comparisons(domain: dict[str, Any]) -> str:
    scale = 100 if domain["measure"] in PERCENT else 1
    digits = 1 if scale == 100 else 4
    body = []
    for row in domain["comparisons"]:
        value, lower, upper = (scale * row[name] for name in ("difference", "lower", "upper"))
        body.append(
            [
                f"{row['way']} - {row['against']}", f"{100 * row['share']:.0f}",
                f"{value:+.{digits}f} ({lower:+.{digits}f}..{upper:+.{digits}f})",
            ]
        )  # fmt: skip
    if not body:
        return "Not run."
    what = "log perplexity" if domain["measure"] == "perplexity" else domain["measure"]
    unit = ", points" if scale == 100 else ""
    return table(["difference", "% open", f"{what}{unit}"], body)


def _inputs(domain: dict[str, Any]) -> str:
    body = []
    for row in domain["inputs"]:
        low, middle, high = row["heads"]
        body.append(
            [
                f"{100 * row['share']:.0f}", f"{low:.0f} / {middle:.0f} / {high:.0f}",
                str(row["different"]), str(row["always"]), str(row["never"]),
                " ".join(f"{100 * value:.0f}" for value in row["by_layer"]),
            ]
        )  # fmt: skip
    if not body:
        return "No gate yet."
    head = ["% open", "heads at 5 / 50 / 95 %", "different", "always on", "never on"]
    return table([*head, "% open by layer"], body)


def _cost(domain: dict[str, Any]) -> str:
    times, joules = domain["milliseconds"], domain["joules"]
    if not times and not joules:
        return "Not measured."
    whole = times.get("transformers")
    body = [
        [
            name,
            f"{times[name]:.1f}" if name in times else "",
            f"{times[name] / whole:.2f}" if name in times and whole else "",
            f"{joules[name]:.2f}" if name in joules else "no counter",
        ]
        for name in (times or joules)
    ]
    return table(["forward pass", "ms a batch", "of transformers", "joules a batch"], body)


def _generation(report: dict[str, Any]) -> str:
    found = report["domains"].get("language", {}).get("generated")
    if not found:
        return "Not run."
    body = [[name, f"{100 * row['open']:.0f}", f"{row['same']:.1f}"] for name, row in found.items()]
    new = report["asked"]["new_tokens"]
    return table(["heads", "% open", f"of {new} tokens, as the whole model until"], body)


def _alignment(report: dict[str, Any]) -> str:
    found = report["domains"].get("speech", {}).get("alignment")
    if not found:
        return "Not run."
    published = {tuple(head) for head in found["published"]}
    parts = [
        f"{found['recordings']} recordings, {found['tokens']} tokens; chance {found['chance']:.2f}."
    ]
    for name, measured in found["measures"].items():
        body = [
            [f"{layer}"]
            + [
                f"**{value:.3f}**" if (layer, head) in published else f"{value:.3f}"
                for head, value in enumerate(row)
            ]
            for layer, row in enumerate(measured["scores"])
        ]
        heads = [f"head {head}" for head in range(len(measured["scores"][0]))]
        parts.append(
            f"By {name}: average precision {measured['average_precision']:.3f} "
            f"({measured['lower']:.3f}..{measured['upper']:.3f}).\n\n"
            + table(["decoder layer", *heads], body)
        )
    return "\n\n".join(parts)


def plot_domains(report: dict[str, Any], folder: Path) -> None:
    """Draw quality against the share of open heads, a panel for each domain.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    pyplot = pyplot_for("experiment")
    domains = report["domains"]
    figure, panels = pyplot.subplots(
        1, len(domains), figsize=(3.0 * len(domains), 3.0), squeeze=False, constrained_layout=True
    )
    colours = {"random": RANDOM, "static": COLOURS[0], "dynamic": COLOURS[5]}
    for axes, (name, domain) in zip(panels[0], domains.items(), strict=True):
        dense = domain["rows"][0]
        axes.axhline(dense["quality"], color=DENSE, linewidth=1, label="all heads")
        for way, colour in colours.items():
            rows = sorted(
                (row for row in domain["rows"] if row["way"] == way), key=lambda row: row["open"]
            )
            if not rows:
                continue
            middle = [row["quality"] for row in rows]
            # Of draws with unlike qualities the mean of logarithms may leave its own interval.
            below = [max(0.0, row["quality"] - row["lower"]) for row in rows]
            above = [max(0.0, row["upper"] - row["quality"]) for row in rows]
            axes.errorbar(
                [row["open"] for row in rows], middle, [below, above],
                color=colour, marker="o", markersize=3, linewidth=1, elinewidth=0.6, label=way,
            )  # fmt: skip
        axes.set_title(name)
        axes.set_xlabel("share of open heads")
        axes.set_ylabel(domain["measure"])
        if domain["measure"] == "perplexity":
            axes.set_yscale("log")
    panels[0][0].legend(frameon=False, fontsize=6)
    save_figure(pyplot, figure, folder / PICTURE)
