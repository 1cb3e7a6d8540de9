"""The top-k experiment as tables and a picture."""

from pathlib import Path
from typing import Any

from headkit.plotting import COLOURS, DENSE, RANDOM, pyplot_for, save_figure
from headkit.studies.tables import interval, p_value, signed, table

ARM_COLOURS = {
    "removes top": COLOURS[5],
    "removes bottom": COLOURS[0],
    "removes random": RANDOM,
}


def topk_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: accuracies, paired comparisons, single heads, the end point."""
    parts = []
    for trained in sorted({row["trained"] for row in report["rows"]}):
        title = "After training on" if trained else "Without training"
        rows = [row for row in report["rows"] if row["trained"] == trained]
        pairs = [each for each in report["comparisons"] if each["trained"] == trained]
        parts += [f"### {title}", _accuracies(rows), _comparisons(pairs)]
    if "single_head" in report:
        parts += ["### One head in place of many", _single(report["single_head"])]
    ends = report["no_heads"]
    parts.append(
        "Without any head: accuracy "
        + ", ".join(f"{value:.3f}" for value in ends["accuracy"])
        + "; share of the sentences that get one class "
        + ", ".join(f"{value:.3f}" for value in ends["share_of_one_class"])
        + "."
    )
    return "\n\n".join(parts) + "\n"


def _accuracies(rows: list[dict[str, Any]]) -> str:
    body = [
        [row["arm"], str(row["k"] or ""), interval(row["accuracy"], row["lower"], row["upper"])]
        for row in rows
    ]
    return table(["arm", "K", "accuracy"], body)


def _comparisons(pairs: list[dict[str, Any]]) -> str:
    body = []
    for each in pairs:
        mcnemar = each["mcnemar_p"]
        body.append(
            [
                f"{each['b']} - {each['a']}",
                str(each["k"]),
                signed(each["difference"], each["lower"], each["upper"]),
                p_value(each["holm_p"]),
                "" if mcnemar is None else ", ".join(p_value(p) for p in mcnemar),
            ]
        )
    return table(["removed", "K", "points", "p (Holm)", "McNemar p by seed"], body)


def _single(found: dict[str, Any]) -> str:
    layers = [
        [
            str(each["layer"]),
            ", ".join(str(head) for head in each["heads"]),
            signed(each["difference"], each["lower"], each["upper"]),
        ]
        for each in found["one_layer"]
    ]
    everywhere = []
    for each in found["all_layers"]:
        for arm in ("dense", "best", "random"):
            row = each[arm]
            everywhere.append(
                [
                    arm,
                    "after training on" if each["trained"] else "without training",
                    interval(row["accuracy"], row["lower"], row["upper"]),
                ]
            )
    return "\n\n".join(
        (
            table(["layer with one head", "best head by seed", "points to dense"], layers),
            table(["one head in every layer", "", "accuracy"], everywhere),
        )
    )


def plot_topk(report: dict[str, Any], path: Path) -> None:
    """Draw accuracy against K for every arm, without and with training on.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    pyplot = pyplot_for("experiment")
    stages = sorted({row["trained"] for row in report["rows"]})
    figure, panels = pyplot.subplots(
        1,
        len(stages),
        figsize=(4.2 * len(stages), 3.2),
        squeeze=False,
        sharey=True,
        constrained_layout=True,
    )
    for axes, trained in zip(panels[0], stages, strict=True):
        rows = [row for row in report["rows"] if row["trained"] == trained]
        dense = next(row for row in rows if row["arm"] == "dense")
        axes.axhline(dense["accuracy"], color=DENSE, linewidth=1, label="dense")
        axes.axhspan(dense["lower"], dense["upper"], color=DENSE, alpha=0.08)
        for arm, colour in ARM_COLOURS.items():
            own = [row for row in rows if row["arm"] == arm]
            ks = [row["k"] for row in own]
            axes.plot(ks, [row["accuracy"] for row in own], "o-", color=colour, label=arm)
            low, high = ([row[end] for row in own] for end in ("lower", "upper"))
            axes.fill_between(ks, low, high, color=colour, alpha=0.15)
        axes.set_xlabel(f"K of {report['heads']} heads for each layer")
        axes.set_title("after training on" if trained else "without training")
    panels[0][0].set_ylabel("test accuracy")
    panels[0][0].legend(frameon=False)
    save_figure(pyplot, figure, path)
