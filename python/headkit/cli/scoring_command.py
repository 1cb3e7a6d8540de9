"""``headkit score`` and ``headkit prune``."""

import json
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
from headkit.cli.terminal import exit_codes, print_json, quiet_transformers, shown_progress

Metric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="gate_gradient, ablation or random (headkit.scorers()); without it ablation for "
        "embedding, whose gradients are 0, and gate_gradient for the rest.",
    ),
]
Method = Annotated[
    str | None, typer.Option("--method", help="How heads are ranked, as --metric of score.")
]


def score(
    model: ModelName,
    data: DataFile,
    task: TaskName = None,
    metric: Metric = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the scores to this file.")
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score every head of a model from data.

    What the loss reads: the model's own logits; for text-classification with a model that has no
    classifier a probe fitted on the data.
    """
    with exit_codes():
        from headkit.cli.job import start_job
        from headkit.files import write_text

        _check_metric("score", metric)
        with quiet_transformers(), shown_progress() as show:
            job = start_job(model, task, data, limit, show)
            headed, head = job.headed
            scores = _score(job, headed, metric, seed, show)
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
    keep: Annotated[float, typer.Option("--keep", help="Share of heads that stay, 0 to 1.")] = 0.5,
    method: Method = None,
    compensate: Compensate = True,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Remove the heads that matter least, physically, and save what is left.

    Quality before and after is that on the same data: a look, not a test.
    """
    with exit_codes():
        import headkit
        from headkit.cli.job import check_new_folder, measure, rounded, save_model, start_job

        _check_metric("prune", method)
        if not 0 <= keep <= 1:
            raise ValueError(f"[prune] expected --keep from 0 to 1; found {keep}")
        check_new_folder("prune", out)
        with quiet_transformers(), shown_progress() as show:
            job = start_job(model, task, data, limit, show)
            headed, head = job.headed
            scores = _score(job, headed, method, seed, show)
            gated = job.opened.gated
            mask = headkit.prune(gated, keep, scores=scores).intersect(gated.heads())
            before = measure(
                job.task, headed, job.batches, lambda n, of: show("measuring: before", n, of)
            )
            dropped = None
            if compensate:
                dropped = headkit.mean_head_outputs(
                    gated,
                    job.tensors,
                    gates=mask,
                    progress=lambda n, of: show("mean outputs", n, of),
                )
            headkit.apply(gated, mask, dropped)
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
            "method": scores.metric,
            "compensated": compensate,
            "quality": job.task.QUALITY,
            "before": rounded(before.quality),
            "after": rounded(after.quality),
        }
        if as_json:
            print_json(result)
            return
        console = Console(highlight=False)
        console.print(f"{mask.count} of {mask.layers * mask.heads} heads stay: {out}")
        console.print(
            f"{job.task.QUALITY} on these data, {head}: {before.quality:.4g} before, "
            f"{after.quality:.4g} after"
        )


def _check_metric(operation: str, metric: str | None) -> None:
    import headkit

    if metric is not None and metric not in headkit.scorers():
        known = ", ".join(headkit.scorers())
        raise ValueError(f"[{operation}] expected a metric of {known}; found {metric!r}")


def _score(job: Any, headed: Any, metric: str | None, seed: int, show: Any) -> Any:
    import headkit

    return headkit.score(
        headed,
        job.tensors,
        metric or job.task.METRIC,
        job.task.OBJECTIVE,
        seed=seed,
        progress=lambda done, total: show("scoring heads", done, total),
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
