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


def fit(
    model: ModelName,
    data: DataFile,
    out: NewFolder,
    task: TaskName = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="linear-gate decides before the first layer, layer-gate before each; escalation "
            "runs unsure inputs again with more, reactivation decides midway how much runs on.",
        ),
    ] = "linear-gate",
    mean_heads: Annotated[
        float | None,
        typer.Option(
            "--mean-heads", help="Heads that run on average; without a budget half of the model."
        ),
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option("--flops", help="Or else FLOPs, as a share of the whole encoder's."),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(
            "--risk",
            help="Promise that at most this share of labels changes; keeps a quarter of the data "
            "for it.",
        ),
    ] = None,
    train: Annotated[
        int,
        typer.Option(
            "--train",
            min=0,
            metavar="STEPS",
            help="Train so many batches: of a ladder the model, of a gate the gate.",
        ),
    ] = 0,
    compensate: Compensate = True,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit a policy that picks heads for each input, and save it with the model.

    A quarter of the data, drawn by --seed, is kept from fitting: it sets the threshold, and quality
    is measured on it.
    """
    with exit_codes():
        from headkit import _C
        from headkit.cli.job import check_new_folder, measure, rounded, save_model, start_job
        from headkit.cli.policy_fit import Wanted, fit_policy, split

        wanted = Wanted(policy, mean_heads, flops, risk, train, compensate, seed)
        wanted.check()
        check_new_folder("fit", out)
        with quiet_transformers(), shown_progress() as show:
            job = start_job(model, task, data, limit, show)
            kind = job.task
            if not wanted.climbs and _C.make_objective(kind.OBJECTIVE).stationary_at_dense:
                raise ValueError(
                    f"[fit] expected a task whose loss has a gradient; found {kind.NAME}, whose "
                    "loss has its minimum at the whole model: give labelled text and --task "
                    "text-classification"
                )
            parts = split(job, wanted)
            headed, head = kind.headed(job.opened, parts.train)
            before = measure(
                kind, headed, parts.held_out, lambda n, of: show("measuring: all heads", n, of)
            )
            fitted, found = fit_policy(job, wanted, headed, parts, show)
            after = measure(
                kind,
                headed,
                parts.held_out,
                lambda n, of: show("measuring: the policy", n, of),
                policy=fitted,
            )
            save_model(job.opened, out, fitted)
        present = job.opened.gated.heads().count
        result = {
            "folder": str(out),
            "task": kind.NAME,
            "policy": policy.replace("-", "_"),
            "heads": present,
            "mean_heads": rounded(after.mean_heads),
            **found,
            "compensated": compensate,
            "quality": kind.QUALITY,
            "all_heads": rounded(before.quality),
            "gated": rounded(after.quality),
        }
        if as_json:
            print_json(result)
            return
        console = Console(highlight=False)
        some = (
            f", {found['contested']} of them for some inputs only" if "contested" in found else ""
        )
        console.print(f"{after.mean_heads:.1f} of {present} heads run on average{some}: {out}")
        console.print(
            f"{kind.QUALITY} on {found['calibration_examples']} examples kept from fitting, "
            f"{head}: {before.quality:.4g} with all heads, {after.quality:.4g} with the policy"
        )
        for stage in found.get("stages", []):
            console.print(f"  {stage}", markup=False)
        for name, arm in found.get("arms", {}).items():
            console.print(
                f"  {name}: {arm['heads']:.4g} heads, {arm['flops']:.3f} of the FLOPs, agreement "
                f"{arm['agreement']:.4g}"
            )
        if "promise" in found:
            unmet = ", which needs more than the budget" if found["promise"]["budget_unmet"] else ""
            console.print(
                f"at most {risk:g} of the labels change on new examples like these{unmet}"
            )
