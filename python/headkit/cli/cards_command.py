"""``headkit cards``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from headkit.cli.options import Json, Limit, ModelName, TaskName
from headkit.cli.terminal import exit_codes, print_json, quiet_transformers, shown_progress


def cards(
    model: ModelName,
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="NAME=FILE, in the form that the task reads; several times for several."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Write the cards to this Markdown file.")],
    task: TaskName = None,
    inputs: Annotated[
        int, typer.Option("--inputs", min=0, help="Examples that effects are measured on.")
    ] = 8,
    ablation: Annotated[
        str, typer.Option("--ablation", help="What stands in for a head: zero or mean.")
    ] = "zero",
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Write a card for each head: how often it is on, what it looks at, what it contributes.

    With several --data also how stable each of the three claims is between them. The policy is
    that of the model's folder; without one all heads run.
    """
    with exit_codes():
        if out.suffix != ".md":
            raise ValueError(f"[cards] expected a file named *.md as --out; found {out.name}")
        files = _named(data)
        with quiet_transformers(), shown_progress() as show:
            found = _measured(model, task, files, inputs, ablation, limit, show)
        found.save(out)
        agreement = [
            {
                "tasks": list(each.tasks),
                "selection": each.selection,
                "explanation": each.explanation,
                "effect": each.effect,
            }
            for each in found.agreement
        ]
        if as_json:
            print_json({"out": str(out), "agreement": agreement})
            return
        Console(highlight=False).print(str(out), markup=False)


def _named(data: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for given in data:
        name, equals, path = given.partition("=")
        if not equals or not name or not path or name in found:
            raise ValueError(
                f"[cards] expected different names in --data NAME=FILE; found {given!r}"
            )
        found[name] = Path(path)
    return found


def _measured(
    model: str,
    task: str | None,
    files: dict[str, Path],
    inputs: int,
    ablation: str,
    limit: int | None,
    show: Any,
) -> Any:
    import headkit
    from headkit.cli.inputs import prepare
    from headkit.cli.reports import METRICS

    first = next(iter(files.values()))
    prepared = prepare("cards", model, task, {}, first, False, show, 1)
    kind, opened = prepared.task, prepared.opened
    gated = kind.running(opened)
    tasks = {}
    for name, path in files.items():
        examples = kind.prepare(opened, kind.read(path, limit), limit)
        batches = [batch.tensors for batch in kind.batches(opened, examples)]
        effects = []
        for example in examples[:inputs]:
            effects += headkit.effects(
                gated,
                kind.encode(opened, [example]),
                ablation=ablation,
                metric=METRICS.get(kind.NAME),
                reference=batches if ablation != "zero" else None,
            )
            show(f"{name}: toggling heads", len(effects), min(inputs, len(examples)))
        tasks[name] = headkit.HeadBehaviour(
            usage=headkit.head_usage(opened.gated, batches, prepared.policy),
            roles=_roles(prepared, batches),
            effects=effects,
        )
        show(f"{name}: done", 1, 1)
    return headkit.head_cards(Path(model).name, tasks, tags=[kind.NAME])


def _roles(prepared: Any, batches: list[Any]) -> Any:
    """Roles of text, of patches, or of frames."""
    import headkit

    opened = prepared.opened
    if prepared.task.INPUT == "text":
        return headkit.roles(opened.gated, batches, opened.processor)
    if prepared.task.INPUT == "audio":
        from headkit.studies.forced_alignment import FRAME_SECONDS

        return headkit.audio_roles(opened.gated, batches, FRAME_SECONDS)
    config = opened.model.config
    side = config.image_size // config.patch_size
    grid = headkit.PatchGrid(rows=side, columns=side, patch_size=config.patch_size)
    return headkit.image_roles(opened.gated, batches, grid)
