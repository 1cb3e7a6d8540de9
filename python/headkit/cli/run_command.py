"""``headkit run``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headkit.cli.options import Audio, Image, Json, Limit, ModelName, TaskName, Text
from headkit.cli.terminal import exit_codes, print_json, quiet_transformers, shown_progress

WIDTH = 40


def run(
    model: ModelName,
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Many inputs: a file as for score, labels not needed."),
    ] = None,
    task: TaskName = None,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Run all heads, whatever policy the folder has.")
    ] = False,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Of causal-lm and speech.")
    ] = 40,
    every: Annotated[
        int | None,
        typer.Option(
            "--every",
            min=1,
            help="Decide anew after so many new tokens; without it what is decided on the prompt "
            "holds.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help="Mean of an input that lambda is steered to: heads:36, flops:0.5 (share of the "
            "whole encoder's), ms:12 or joules:0.3. A calibrated promise goes first.",
        ),
    ] = None,
    records: Annotated[
        Path | None,
        typer.Option("--records", help="Append decision records, a JSON line an input."),
    ] = None,
    audit: Annotated[
        float,
        typer.Option("--audit", help="Share of inputs that also run in full, to watch a promise."),
    ] = 0.0,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Run a model under the policy saved with it, and say how many heads each input used."""
    with exit_codes():
        from headkit.cli.governing import Governing
        from headkit.cli.inputs import prepare
        from headkit.cli.job import rounded
        from headkit.cli.outputs import run_inputs

        governing = Governing.read(budget, records, audit)
        given = {"text": text, "image": image, "audio": audio}
        with quiet_transformers(), shown_progress() as show:
            prepared = prepare("run", model, task, given, data, keep_all, show, limit)
            if every is not None and not prepared.task.GENERATES:
                raise ValueError(
                    f"[run] expected a task that generates beside --every; found "
                    f"{prepared.task.NAME}"
                )
            rows, told = run_inputs(prepared, max_new_tokens, every, show, governing)
        total = prepared.opened.gated.layout().total_heads
        mean = sum(row["heads_run"] for row in rows) / len(rows)
        result = {
            "model": model,
            "task": prepared.task.NAME,
            "policy": prepared.policy.name if prepared.saved_policy else None,
            "heads": total,
            "mean_heads_run": rounded(mean),
            **told,
            "inputs": rows,
        }
        if as_json:
            print_json(result)
            return
        console = Console(highlight=False)
        console.print(_table(prepared.task, rows))
        why = (
            f"policy {prepared.policy.name}"
            if prepared.saved_policy
            else "all heads that are there"
        )
        console.print(f"\n{mean:.1f} of {total} heads run on average: {why}")
        for name, found in told.items():
            words = ", ".join(f"{key} {value}" for key, value in found.items())
            console.print(f"{name}: {words}", markup=False)


def _table(task: Any, rows: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("input", max_width=WIDTH)
    table.add_column("output")
    labelled = any("label" in row for row in rows)
    if labelled:
        table.add_column("label")
    table.add_column("heads", justify="right")
    for row in rows:
        cells = [row["input"], task.summary(row["output"])]
        cells += [str(row.get("label", ""))] if labelled else []
        table.add_row(*(escape(cell) for cell in cells), f"{row['heads_run']:g}")
    return table
