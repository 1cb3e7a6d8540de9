"""``headkit explain --data``: which heads a data set runs, and for what kind of input."""

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from headkit.cli.inputs import Prepared
from headkit.cli.job import Show
from headkit.cli.terminal import print_json


def explain_data(
    prepared: Prepared, show: Show, out: Path | None, plot: Path | None
) -> dict[str, Any]:
    """Run the inputs under the policy and count.

    Args:
        prepared: model, policy and inputs.
        show: told of progress.
        out: JSON file to write; None = none.
        plot: picture to write; None = none.

    Returns:
        dict: the CorpusReport and what JSON tells of it.

    Raises:
        ValueError: if policy, model and inputs do not fit.
    """
    from headkit.files import write_json
    from headkit.usage import head_usage, plot_head_usage

    opened = prepared.opened
    if out is not None and out.suffix != ".json":
        raise ValueError(f"[explain] expected a file named *.json as --out; found {out.name}")
    if prepared.task.GENERATES:
        raise ValueError(
            f"[explain] expected a task with one run an input beside --data; found "
            f"{prepared.task.NAME}"
        )
    found = head_usage(
        opened.gated,
        [batch.tensors for batch in prepared.task.batches(opened, prepared.examples)],
        prepared.policy,
        classes=_class_names(opened.model),
        progress=lambda done, total: show("running", done, total),
    )
    content = json.loads(found.to_json())
    if out is not None:
        write_json(out, content)
    if plot is not None:
        plot_head_usage(found, plot)
    return {"found": found, "content": content}


def print_usage(told: dict[str, Any], shown: int, as_json: bool) -> None:
    """Print what ``explain_data`` returned.

    Args:
        told: that.
        shown: heads whose use goes most with a property of the inputs.
        as_json: print JSON and nothing else.
    """
    found = told["found"]
    if as_json:
        print_json(told["content"])
        return
    console = Console(highlight=False)
    console.print(_grid(found))
    console.print("share of inputs that run a head, in %; layer 0 at the bottom\n")
    total = found.layout.total_heads
    console.print(
        f"{found.mean_selected:.1f} of {total} heads run on average (standard deviation "
        f"{found.selected_spread:.1f}) over {found.inputs} inputs"
    )
    for name, count in found.classes.items():
        console.print(
            f"  {name}: {count} inputs, {found.selected_by_class[name]:.1f} heads", markup=False
        )
    if found.same_for_all is not None:
        console.print(f"the same heads for every input: {found.same_for_all:.2f} (1 = static)")
    rows = _strongest(found)[:shown]
    if rows:
        console.print(_table(rows))


def _class_names(model: Any) -> list[str]:
    names = getattr(model.config, "id2label", None) or {}
    classifies = type(model).__name__.endswith("Classification")
    return [str(names[number]) for number in sorted(names)] if classifies and len(names) > 1 else []


def _grid(found: Any) -> Table:
    table = Table(title=f"{found.policy}, {found.inputs} inputs", box=box.SIMPLE_HEAD)
    table.add_column("")
    heads = found.layout.heads
    for head in range(heads):
        table.add_column(f"H{head}", justify="right")
    for layer in reversed(range(found.layout.layers)):
        row = found.heads[layer * heads : (layer + 1) * heads]
        table.add_row(f"L{layer}", *(f"{100 * head.frequency:.0f}" for head in row))
    return table


def _strongest(found: Any) -> list[tuple[Any, Any]]:
    """Heads with the property that they go with most, strongest first."""
    rows = []
    for head in found.heads:
        known = [each for each in head.correlations if each.spearman is not None]
        if known:
            rows.append((head, max(known, key=lambda each: abs(each.spearman))))
    return sorted(rows, key=lambda row: -abs(row[1].spearman))


def _table(rows: list[tuple[Any, Any]]) -> Table:
    table = Table(title="what heads go with", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("head", "inputs", "property", "Spearman", "95 %"):
        table.add_column(name, justify="left" if name in ("head", "property") else "right")
    for head, most in rows:
        table.add_row(
            f"L{head.layer} H{head.head}",
            f"{100 * head.frequency:.0f} %",
            most.property,
            f"{most.spearman:+.2f}",
            "" if most.lower is None else f"{most.lower:+.2f}..{most.upper:+.2f}",
        )
    return table
