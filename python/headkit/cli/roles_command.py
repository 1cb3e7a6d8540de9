"""``headkit roles``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from headkit.cli.options import DataFile, Json, Limit, ModelName, Seed, TaskName
from headkit.cli.terminal import exit_codes, print_json, quiet_transformers, shown_progress


def roles(
    model: ModelName,
    data: DataFile,
    task: TaskName = None,
    inactive: Annotated[
        float | None,
        typer.Option(
            "--inactive",
            min=0,
            help="Call a head inactive if what it writes is below this share of its layer's mean.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the labels into this file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write all scores to this JSON file.")
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Describe what every head looks at: roles with their nulls and intervals.

    A role is a description, not an explanation. Labels of the data, if any, are not read.
    """
    with exit_codes():
        import headkit
        from headkit.cli.job import start_job
        from headkit.files import write_text

        if out is not None and out.suffix != ".json":
            raise ValueError(f"[roles] expected a file named *.json as --out; found {out.name}")
        with quiet_transformers(), shown_progress() as show:
            job = start_job(model, task, data, limit, show)
            found = headkit.roles(
                job.opened.gated,
                job.tensors,
                job.opened.processor if job.task.INPUT == "text" else None,
                inactive_threshold=inactive,
                seed=seed,
                progress=lambda done, total: show("looking at heads", done, total),
            )
        if plot is not None:
            found.plot(plot)
        if out is not None:
            write_text(out, found.to_json() + "\n")
        if as_json:
            print_json(json.loads(found.to_json()))
            return
        console = Console(highlight=False)
        console.print(_labels(found))
        unlabelled = sum(
            not found.labels(layer, head)
            for layer in range(found.layout.layers)
            for head in range(found.layout.heads)
        )
        console.print(
            f"{unlabelled} of {found.layout.total_heads} heads have no label, on "
            f"{found.sequences} sequences"
        )
        for warning in found.warnings:
            console.print(f"- {warning}", markup=False)
        if out is not None:
            console.print(str(out))


def _labels(found: Any) -> Table:
    """The labels of every head that has one: null = the best of the nulls, needs = threshold."""
    table = Table(title="roles", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("head", no_wrap=True)
    table.add_column("role", no_wrap=True)
    for name in ("score", "interval", "null", "needs", "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in range(found.layout.layers):
        for head in range(found.layout.heads):
            for score in found.labels(layer, head):
                null = score.best_null
                interval = "" if score.lower is None else f"{score.lower:.2f} to {score.upper:.2f}"
                table.add_row(
                    f"L{layer} H{head}",
                    f"{score.role} {score.variant}".strip(),
                    f"{score.score:.2f}",
                    interval,
                    "" if null is None else f"{null:.2f}",
                    f"{score.threshold:.2f}",
                    str(score.rows),
                )
    return table
