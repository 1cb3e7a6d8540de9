"""``headkit fit``."""

from typing import Annotated

import typer
from rich.console import Console

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

CALIBRATION = 4


def fit(
    model: ModelName,
    data: DataFile,
    out: NewFolder,
    task: TaskName = None,
    mean_heads: Annotated[
        float | None,
        typer.Option("--mean-heads", help="Heads that run on average; without it half of them."),
    ] = None,
    compensate: Compensate = True,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit a gate that picks heads for each input, and save it with the model.

    The gate reads the input of the first layer and decides for all layers. A quarter of the data,
    drawn by --seed, is kept from fitting: it sets the threshold, and quality is measured on it.
    """
    with exit_codes():
        import random

        import headkit
        from headkit import _C
        from headkit.cli.job import check_new_folder, measure, rounded, save_model, start_job

        check_new_folder("fit", out)
        with quiet_transformers(), shown_progress() as show:
            job = start_job(model, task, data, limit, show)
            kind, gated = job.task, job.opened.gated
            if _C.make_objective(kind.OBJECTIVE).stationary_at_dense:
                raise ValueError(
                    f"[fit] expected a task whose loss has a gradient; found {kind.NAME}, whose "
                    "loss has its minimum at the whole model: give labelled text and --task "
                    "text-classification"
                )
            if len(job.examples) < 2 * CALIBRATION:
                raise ValueError(
                    f"[fit] expected at least {2 * CALIBRATION} examples; found {len(job.examples)}"
                )
            present = gated.heads().count
            wanted = present / 2 if mean_heads is None else mean_heads
            if not 0 < wanted <= present:
                raise ValueError(
                    f"[fit] expected --mean-heads above 0, at most {present}; found {wanted:g}"
                )
            order = list(job.examples)
            random.Random(seed).shuffle(order)
            cut = len(order) // CALIBRATION
            train = kind.batches(job.opened, order[cut:])
            calibration = kind.batches(job.opened, order[:cut])
            headed, head = kind.headed(job.opened, train)
            tensors = [batch.tensors for batch in train]
            dropped = None
            if compensate:
                dropped = headkit.mean_head_outputs(
                    gated, tensors, progress=lambda n, of: show("mean outputs", n, of)
                )
            gate, report = headkit.fit_linear_gate(
                headed,
                tensors,
                [batch.tensors for batch in calibration],
                mean_heads=wanted,
                objective=kind.OBJECTIVE,
                dropped_output=dropped,
                progress=lambda n, of: show("fitting the gate", n, of),
            )
            if compensate:
                # What a head gives where the gate closes it is not what it gives on the whole.
                dropped = _C.mean_head_outputs(
                    gated,
                    tensors,
                    decide=lambda state: gate.decide(state.hidden, state.attention_mask),
                )
                gate = gate.with_dropped_output(dropped)
            before = measure(
                kind, headed, calibration, lambda n, of: show("measuring: all heads", n, of)
            )
            after = measure(
                kind,
                headed,
                calibration,
                lambda n, of: show("measuring: the gate", n, of),
                policy=gate,
            )
            save_model(job.opened, out, gate)
        result = {
            "folder": str(out),
            "task": kind.NAME,
            "policy": gate.name,
            "heads": present,
            "mean_heads": rounded(after.mean_heads),
            "contested": report.contested,
            "input_variance": rounded(report.input_variance),
            "fitted_examples": report.fitted_examples,
            "calibration_examples": report.calibration_examples,
            "compensated": compensate,
            "quality": kind.QUALITY,
            "all_heads": rounded(before.quality),
            "gated": rounded(after.quality),
        }
        if as_json:
            print_json(result)
            return
        console = Console(highlight=False)
        console.print(
            f"{after.mean_heads:.1f} of {present} heads run on average, {report.contested} of them "
            f"for some inputs only: {out}"
        )
        console.print(
            f"{kind.QUALITY} on {report.calibration_examples} examples kept from fitting, "
            f"{head}: {before.quality:.4g} with all heads, {after.quality:.4g} with the gate"
        )
