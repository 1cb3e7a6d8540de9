"""``headkit roles``."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from headkit.cli.options import Json, Limit, ModelName, Seed, TaskName
from headkit.cli.terminal import exit_codes, print_json, quiet_transformers, shown_progress


def roles(
    model: ModelName,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Inputs, in the form that the task reads: see headkit score."),
    ] = None,
    conllu: Annotated[
        Path | None,
        typer.Option(
            "--conllu", help="In place of --data a treebank in CoNLL-U: roles of dependencies."
        ),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="With --conllu: fill the places of this page.")
    ] = None,
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

    A role is a description, not an explanation. Labels of the data, if any, are not read. With
    --conllu these are the dependencies that a head follows from word to word, against the best
    fixed offset; heads are chosen on every second sentence and reported on the others.
    """
    with exit_codes():
        from headkit.files import write_text

        if out is not None and out.suffix != ".json":
            raise ValueError(f"[roles] expected a file named *.json as --out; found {out.name}")
        if (data is None) == (conllu is None):
            which = "neither" if data is None else "both"
            raise ValueError(f"[roles] expected --data or --conllu; found {which}")
        if page is not None and conllu is None:
            raise ValueError("[roles] expected --conllu with --page; found --data")
        if conllu is not None:
            found = _syntactic(model, task, conllu, page, limit, seed)
        else:
            found = _text(model, task, data, limit, seed, inactive)
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


def _text(
    model: str, task: str | None, data: Path, limit: int | None, seed: int, inactive: float | None
) -> Any:
    """Roles on data of a task."""
    import headkit
    from headkit.cli.job import start_job

    with quiet_transformers(), shown_progress() as show:
        job = start_job(model, task, data, limit, show)
        return headkit.roles(
            job.opened.gated,
            job.tensors,
            job.opened.processor if job.task.INPUT == "text" else None,
            inactive_threshold=inactive,
            seed=seed,
            progress=lambda done, total: show("looking at heads", done, total),
        )


def _syntactic(
    model: str, task: str | None, conllu: Path, page: Path | None, limit: int | None, seed: int
) -> Any:
    """Roles of dependencies on a treebank; fills the page."""
    import headkit
    from headkit.cli.job import open_model
    from headkit.cli.model_source import find_model
    from headkit.cli.tasks import choose_task
    from headkit.files import write_text
    from headkit.studies.roles_report import roles_parts
    from headkit.studies.tables import fill

    text = None if page is None else page.read_text(encoding="utf-8")
    sentences = headkit.read_conllu(conllu)[:limit]
    with quiet_transformers(), shown_progress() as show:
        source = find_model(model)
        opened = open_model(source, choose_task(source, task), show)
        batches, syntax = headkit.treebank_batches(sentences, opened.processor)
        found = headkit.syntactic_roles(
            opened.gated,
            batches,
            syntax,
            measure=headkit.RoleMeasure(seed=seed),
            progress=lambda done, total: show("looking at words", done, total),
        )
    if page is not None:
        write_text(page, fill(text, roles_parts(found, syntax, model, conllu.name)))
    return found


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
