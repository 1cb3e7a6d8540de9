"""``headkit score`` and ``headkit prune``."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from headkit.cli.options import (
    Compensate,
    DataFile,
    Json,
    Limit,
    ModelName,
    NewFolder,
    Seed,
    TaskName,
)
from headkit.cli.processes import joined_processes
from headkit.cli.terminal import exit_codes, print_json, quiet_transformers, shown_progress

Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="A name in headkit.scorers(); a wrong one shows them all. Without it ablation for "
        "embedding, whose gradients are 0, and gate_gradient for the rest.",
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="How it is decided what stays, a name in headkit.pruners(): a metric of score, "
        "iterative, backward_elimination, kwon, flap_joint, obs ...; without it as --metric of "
        "score.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of the metric or method as NAME=VALUE, may be repeated; what there is to "
        "set is in headkit.scorers() and headkit.pruners(); an unknown name is answered with it.",
    ),
]


def score(
    model: ModelName,
    data: DataFile,
    task: TaskName = None,
    metric: Metric = None,
    settings: Settings = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw a heat map into this file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the scores to this file.")
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            help="Keep what was measured in this file; the same command goes on from there.",
        ),
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score every head of a model from data.

    What the loss reads: the model's own logits; for text-classification with a model that has no
    classifier a probe fitted on the data. Started by torchrun (torchrun --nproc-per-node 4 -m
    headkit.cli score ...), processes share the work.
    """
    with exit_codes():
        import headkit
        from headkit.cli.job import start_job
        from headkit.files import write_text

        _check_metric("score", metric, headkit.scorers())
        with quiet_transformers(), joined_processes() as tells, shown_progress(tells) as show:
            job = start_job(model, task, data, limit, show)
            headed, head = job.headed
            given = {**_settings("score", settings), "journal": journal}
            scores = _score(job, headed, metric, seed, show, given)
        if not tells:
            return
        if plot is not None:
            scores.plot(plot)
        if out is not None:
            write_text(out, scores.to_json() + "\n")
        if as_json:
            print(scores.to_json())
            return
        console = Console()
        console.print(_scores_table(scores))
        console.print(f"percent of the largest score; output: {head}", highlight=False)
        if out is not None:
            console.print(str(out), highlight=False)


def prune(
    model: ModelName,
    data: DataFile,
    out: NewFolder,
    task: TaskName = None,
    keep: Annotated[
        float,
        typer.Option(
            "--keep",
            help="Share that stays, 0 to 1: of heads; of multiply-accumulates with kwon, "
            "bottom_up and obs; of weights with flap_joint and cofi.",
        ),
    ] = 0.5,
    method: Method = None,
    settings: Settings = None,
    compensate: Compensate = True,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Remove what matters least, physically, and save what is left.

    Quality before and after is that on the same data: a look, not a test.
    """
    with exit_codes():
        import headkit
        from headkit.cli.job import check_new_folder, measure, rounded, save_model, start_job

        _check_metric("prune", method, headkit.pruners())
        if not 0 <= keep <= 1:
            raise ValueError(f"[prune] expected --keep from 0 to 1; found {keep}")
        given = _settings("prune", settings)
        check_new_folder("prune", out)
        with quiet_transformers(), shown_progress() as show:
            job = start_job(model, task, data, limit, show)
            headed, head = job.headed
            gated = job.opened.gated
            method = method or job.task.METRIC
            if "seed" in headkit.pruners()[method]["settings"] or method in headkit.scorers():
                given = {"seed": seed, **given}
            found = headkit.prune(
                headed,
                keep,
                method,
                job.tensors,
                objective=job.task.OBJECTIVE,
                compensate=compensate,
                progress=lambda n, of: show(f"pruning: {method}", n, of),
                **given,
            )
            mask = found if isinstance(found, headkit.HeadMask) else found.heads
            before = measure(
                job.task, headed, job.batches, lambda n, of: show("measuring: before", n, of)
            )
            headkit.apply(gated, found)
            after = measure(
                job.task,
                headed,
                job.batches,
                lambda n, of: show("measuring: after", n, of),
                dense=before.outputs,
            )
            save_model(job.opened, out)
        result = {
            "folder": str(out),
            "task": job.task.NAME,
            "kept": mask.count,
            "heads": mask.layers * mask.heads,
            "mask": json.loads(mask.to_json()),
            "neurons": _neurons(found),
            "method": method,
            "settings": given,
            "compensated": compensate,
            "data_hash": headkit.data_hash(job.tensors),
            "quality": job.task.QUALITY,
            "before": rounded(before.quality),
            "after": rounded(after.quality),
        }
        if as_json:
            print_json(result)
            return
        console = Console(highlight=False)
        left = f"{mask.count} of {mask.layers * mask.heads} heads"
        if result["neurons"] is not None:
            left += " and {} of {} neurons".format(*result["neurons"])
        console.print(f"{left} stay: {out}")
        console.print(
            f"{job.task.QUALITY} on these data, {head}: {before.quality:.4g} before, "
            f"{after.quality:.4g} after"
        )


def _check_metric(operation: str, metric: str | None, known: Iterable[str]) -> None:
    if metric is not None and metric not in known:
        raise ValueError(f"[{operation}] expected a metric of {', '.join(known)}; found {metric!r}")


def _settings(operation: str, given: list[str] | None) -> dict[str, Any]:
    """``NAME=VALUE`` entries: numbers, true, false and lists as JSON, all else as text."""
    settings = {}
    for entry in given or ():
        name, equals, value = entry.partition("=")
        if not name.isidentifier() or not equals:
            raise ValueError(f"[{operation}] expected --set NAME=VALUE; found {entry!r}")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def _neurons(found: Any) -> list[int] | None:
    """Neurons that stay and neurons in all; None where all do."""
    gates = getattr(found, "gates", None)
    if gates is None or gates.neurons is None:
        return None
    return [int(gates.neurons.ne(0).sum()), gates.neurons.numel()]


def _score(
    job: Any,
    headed: Any,
    metric: str | None,
    seed: int,
    show: Any,
    settings: dict[str, Any] | None = None,
) -> Any:
    import headkit

    return headkit.score(
        headed,
        job.tensors,
        metric or job.task.METRIC,
        job.task.OBJECTIVE,
        seed=seed,
        progress=lambda done, total: show("scoring heads", done, total),
        **(settings or {}),
    )


def _scores_table(scores: Any) -> Table:
    """Scores as percentages of the largest, layer 0 at the bottom."""
    values = scores.values
    table = Table(title=f"{scores.metric} of {scores.objective}, {scores.samples} examples")
    table.add_column("")
    for head in range(values.shape[1]):
        table.add_column(f"H{head}", justify="right")
    largest = float(values.abs().max()) or 1.0
    for layer in reversed(range(values.shape[0])):
        table.add_row(f"L{layer}", *(f"{100 * v / largest:.0f}" for v in values[layer].tolist()))
    return table
