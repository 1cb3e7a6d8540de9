"""The dynamic study as tables and pictures."""

from pathlib import Path
from typing import Any

from headkit.plotting import COLOURS, DENSE, RANDOM, pyplot_for, save_figure
from headkit.studies.tables import interval, signed, table

PICTURES = ("dynamic_time.svg", "dynamic_flops.svg")
KEPT = "dynamic_kept.svg"
WAYS = (
    *("static", "escalation", "reactivation", "linear gate", "layer gate"),
    *("escalation, oracle", "random"),
)
MARKERS = "osD^vPX*"


def dynamic_parts(report: dict[str, Any]) -> dict[str, str]:
    """The report as Markdown tables, by name; the same names whatever was found."""
    return {
        "setting": _setting(report),
        "arms": _by_task(report, _arms),
        "time": _by_task(report, lambda task: _comparisons(task, "time")),
        "flops": _by_task(report, lambda task: _comparisons(task, "flops")),
        "pictures": "\n".join(
            f"![agreement by {what}]({name})"
            for what, name in zip(("time", "FLOPs"), PICTURES, strict=True)
        ),
        "inputs": _by_task(report, _inputs),
        "stages": _by_task(report, _stages),
        "oracle": _by_task(report, _oracle),
        "drift": _by_task(report, _drift),
        "promise": _by_task(report, _promise),
        "kept": _kept(report),
        "refused": _by_task(report, _refused),
    }


def dynamic_markdown(report: dict[str, Any]) -> str:
    """All tables, each under its name."""
    parts = dynamic_parts(report)
    return "\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items()) + "\n"


def _by_task(report: dict[str, Any], part: Any) -> str:
    return "\n\n".join(f"**{name}**\n\n{part(task)}" for name, task in report["tasks"].items())


def _setting(report: dict[str, Any]) -> str:
    lines = []
    for name, task in report["tasks"].items():
        seconds = task["reference_seconds"]
        time = "" if seconds is None else f"; dense transformers needs {seconds:.1f} s for them"
        seeds = len(task["seeds"])
        lines.append(
            f"- {name}: {seeds} seed{'s' if seeds > 1 else ''}, {task['examples']} test "
            f"examples{time}"
        )
    threads = report["machine"]["threads"]
    return "\n".join([*lines, f"- {threads} thread{'s' if threads > 1 else ''}"])


def _percent(found: dict[str, float]) -> str:
    return interval(found["mean"], found["lower"], found["upper"])


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _named(row: dict[str, Any]) -> str:
    return f"{row['arm']} (bound)" if row["kind"] == "bound" else row["arm"]


def _arms(task: dict[str, Any]) -> str:
    what = "agreement" if task["classifies"] else "cosine"
    loss = "KL" if task["classifies"] else "1 - cosine"
    head = ["arm", "FLOPs", "time", "heads", f"{what}, %", loss]
    head += ["accuracy, %"] if task["classifies"] else []
    body = []
    for row in sorted(task["rows"], key=lambda row: (row["trained"], row["way"], -row["flops"])):
        cells = [
            _named(row), _share(row["flops"]), _share(row["time"]), f"{row['heads']:.1f}",
            _percent(row["agreement"]), f"{row['divergence']['mean']:.4f}",
        ]  # fmt: skip
        body.append(cells + ([_percent(row["accuracy"])] if task["classifies"] else []))
    return table(head, body)


def _comparisons(task: dict[str, Any], cost: str) -> str:
    body = []
    for found in task["comparisons"]:
        if found["cost"] != cost:
            continue
        agreement, loss = found["agreement"], found["divergence"]
        inside = all(agreement["inside"])
        body.append(
            [
                found["arm"] + ("" if inside else " *"),
                f"{found['at']:.2f}" + (" s" if cost == "time" else ""),
                signed(agreement["difference"], agreement["lower"], agreement["upper"]),
                f"{loss['difference']:+.4f} ({loss['lower']:+.4f}..{loss['upper']:+.4f})",
            ]
        )
    if not body:
        return "Not measured."
    loss = "KL" if task["classifies"] else "1 - cosine"
    return table(["arm", cost, "points of agreement over static", f"{loss} below static"], body)


def _inputs(task: dict[str, Any]) -> str:
    if not task["inputs"]:
        return "No dynamic arm yet."
    body = []
    for found in task["inputs"]:
        low, middle, high = found["heads"]
        rank = ["" if found[n] is None else f"{found[n]:+.2f}" for n in ("length", "confidence")]
        by_class = " / ".join(f"{value:.2f}" for value in found["by_class"])
        cells = [found["arm"], f"{low:.0f} / {middle:.0f} / {high:.0f}", str(found["different"])]
        body.append([*cells, f"{100 * found['cheapest']:.0f}", *rank, by_class])
    head = ["arm", "heads at 5 / 50 / 95 %", "different", "% of inputs at the cheapest"]
    return table([*head, "with length", "with confidence", "FLOPs by class"], body)


def _stages(task: dict[str, Any]) -> str:
    """Static arms with a stage left out, beside the whole one of the same budget."""
    left_out = [row for row in task["rows"] if row["way"].startswith("static,")]
    if not left_out:
        return "Not run."
    budgets = {row["budget"] for row in left_out}
    whole = [row for row in task["rows"] if row["way"] == "static" and row["budget"] in budgets]
    body = [
        [row["arm"], _share(row["flops"]), _percent(row["agreement"]),
         f"{row['divergence']['mean']:.4f}"]
        for row in [*whole, *left_out]
    ]  # fmt: skip
    return table(["arm", "FLOPs", "agreement, %", "divergence"], body)


def _oracle(task: dict[str, Any]) -> str:
    found = task["oracle"]
    if found is None:
        return "Not run."
    return table(
        ["heads", "inputs", "static mask", "per-input greedy", "difference"],
        [
            [
                str(found["heads"]), str(found["examples"]), f"{found['static']:.4f}",
                f"{found['oracle']:.4f}",
                f"{found['difference']:+.4f} ({found['lower']:+.4f}..{found['upper']:+.4f})",
            ]
        ],
    )  # fmt: skip


def _drift(task: dict[str, Any]) -> str:
    if not task["drift"]:
        return "No trained ladder yet."
    body = [
        [row["arm"], row["against"], _percent(row["agreement"]),
         f"{row['divergence']['mean']:.4f}"]
        for row in task["drift"]
    ]  # fmt: skip
    return table(["what", "against", "agreement, %", "divergence"], body)


def _promise(task: dict[str, Any]) -> str:
    if not task["promises"]:
        return "No policy that can be wrong about a class."
    body = []
    for row in task["promises"]:
        if "refused" in row:
            body.append([f"{row['promised']:g}", row["refused"], "", "", ""])
            continue
        realised = f"{row['realised']:.4f} ± {row['simulation_error']:.4f}"
        of = f"{row['splits']} x {row['seeds']}"
        cells = [f"{row['promised']:g}", realised, of, f"{row['largest']:.4f}"]
        body.append([*cells, _share(row["flops"])])
    return table(["promised", "realised", "splits x seeds", "worst split", "FLOPs"], body)


def _kept(report: dict[str, Any]) -> str:
    rows = [row for task in report["tasks"].values() for row in task["kept"]]
    if not rows:
        return "Not measured."
    body = [
        [
            f"{row['seed']}", f"{row['share']:g}", f"{row['target']:.3f}", f"{row['mean']:.3f}",
            f"{100 * row['error']:+.1f} ± {100 * row['simulation_error']:.1f}",
            f"{row['lowest']:.3f}", f"{row['floor']:.3f}",
        ]
        for row in rows
    ]  # fmt: skip
    return (
        table(
            [
                "seed",
                "share of dense",
                "target, ms",
                "kept, ms",
                "error, %",
                "lowest knob",
                "floor",
            ],
            body,
        )
        + f"\n\n![milliseconds of an example by batch]({KEPT})"
    )


def _refused(task: dict[str, Any]) -> str:
    if not task["refused"]:
        return "None."
    return table(["arm", "why not"], [list(each) for each in task["refused"]])


def plot_dynamic(report: dict[str, Any], folder: Path) -> None:
    """Draw agreement against measured time and against FLOPs, a panel for each task.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    for name, cost in zip(PICTURES, ("time", "flops"), strict=True):
        _plot(report, folder / name, cost)
    rows = [row for task in report["tasks"].values() for row in task["kept"]]
    if rows:
        _plot_kept(rows, folder / KEPT)


def _plot_kept(rows: list[dict[str, Any]], path: Path) -> None:
    """Moving means of what the batches of the first seed cost, each beside its target."""
    pyplot = pyplot_for("experiment")
    figure, axes = pyplot.subplots(figsize=(6.4, 3.4), constrained_layout=True)
    shown = [row for row in rows if row["seed"] == rows[0]["seed"]]
    for row, colour in zip(shown, COLOURS, strict=False):
        costs = row["milliseconds"]
        means = [sum(costs[max(0, n - 9) : n + 1]) / min(n + 1, 10) for n in range(len(costs))]
        axes.plot(means, color=colour, linewidth=1, label=f"{row['share']:g} of dense")
        axes.axhline(row["target"], color=colour, linewidth=0.8, linestyle="--")
    axes.axhline(rows[0]["dense"], color=DENSE, linewidth=1, label="dense")
    axes.set_xlabel("batch")
    axes.set_ylabel("milliseconds of an example, mean of ten batches")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7)
    save_figure(pyplot, figure, path)


def _plot(report: dict[str, Any], path: Path, cost: str) -> None:
    pyplot = pyplot_for("experiment")
    tasks = report["tasks"]
    figure, panels = pyplot.subplots(
        1, len(tasks), figsize=(4.6 * len(tasks), 3.6), squeeze=False, constrained_layout=True
    )
    for axes, (name, task) in zip(panels[0], tasks.items(), strict=True):
        axes.axhline(1, color=DENSE, linewidth=1, label="dense")
        for place, way in enumerate(WAYS):
            for trained in (False, True):
                rows = [
                    row
                    for row in task["rows"]
                    if row["way"] == way and row["trained"] == trained and row[cost] is not None
                ]
                rows.sort(key=lambda row: row[cost])
                if not rows:
                    continue
                axes.errorbar(
                    [row[cost] for row in rows],
                    [row["agreement"]["mean"] for row in rows],
                    [
                        [row["agreement"]["mean"] - row["agreement"]["lower"] for row in rows],
                        [row["agreement"]["upper"] - row["agreement"]["mean"] for row in rows],
                    ],
                    color=RANDOM if way == "random" else COLOURS[place],
                    marker=MARKERS[place],
                    markersize=4,
                    linewidth=1,
                    elinewidth=0.5,
                    linestyle="-" if trained else "--",
                    label=f"{way}, trained" if trained else way,
                )
        axes.set_xlabel("share of dense " + ("time" if cost == "time" else "FLOPs"))
        axes.set_title(name)
        axes.legend(frameon=False, fontsize=6)
    panels[0][0].set_ylabel("agreement with dense")
    save_figure(pyplot, figure, path)
