"""The command ``headkit bench``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from headkit.bench import attention as attention_bench

app = typer.Typer(help="Measure headkit beside its peers.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure headkit beside its peers."""


def _threads(text: str) -> tuple[int, ...]:
    try:
        return tuple(0 if part == "all" else int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers or 'all', with commas; found {text}") from None


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers with commas; found {text}") from None


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part)
    except ValueError:
        raise typer.BadParameter(f"expected shares with commas; found {text}") from None


def _table(rows: list[attention_bench.Row]) -> Table:
    first = rows[0]
    threads = "1 pinned thread" if first.threads == 1 else f"{first.threads} threads"
    void = ", [red]void: the probe moved by more than 5 %[/red]" if first.void else ""
    table = Table(
        title=f"{threads}, T={first.length}: probe {first.probe_flops / 1e9:.0f} GFLOP/s, "
        f"{first.rounds} rounds, {first.repeated_rounds} repeated{void}",
        title_justify="left",
    )
    for column in ("peer", "heads", "ms", "of peak", "x headkit", "ideal"):
        table.add_column(column, justify="left" if column == "peer" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.share:.0%}",
            f"{row.milliseconds:.2f}",
            f"{row.of_probe:.2f}",
            f"{row.times_headkit:.2f}",
            "" if row.of_ideal is None else f"{row.of_ideal:.2f}",
        )
    return table


@app.command()
def attention(
    batch: Annotated[int, typer.Option(help="Samples in a batch.")] = 8,
    length: Annotated[
        str, typer.Option(help="Tokens in a sample; several with commas.")
    ] = "128,512",
    dim: Annotated[int, typer.Option(help="Width of the layer.")] = 768,
    heads: Annotated[int, typer.Option(help="Heads of the layer.")] = 12,
    threads: Annotated[str, typer.Option(help="Thread counts with commas; 'all' = all cores.")] = (
        "1,all"
    ),
    rounds: Annotated[int, typer.Option(help="Undisturbed rounds to collect.")] = 15,
    seed: Annotated[int, typer.Option(help="Of inputs, weights and gates.")] = 0,
    measure: Annotated[str, typer.Option(help="forward, backward, or training: both.")] = "forward",
    shares: Annotated[
        str, typer.Option(help="Shares of open heads beside 1, with commas.")
    ] = "0.75,0.5,0.25",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write every row to this file.")
    ] = None,
) -> None:
    """Time one attention layer against dense peers, and against itself with fewer heads.

    One thread is pinned to a core. Ratios are medians over rounds of ratios within a round; the
    times of another run are not comparable.

    heads: open heads. of peak: FLOP/s of the open heads over a probe of multiply-adds in the same
    round. x headkit: time over headkit's with all heads. ideal: 1 = time in proportion to the
    open heads.
    """
    console, errors = Console(), Console(stderr=True)
    try:
        config = attention_bench.Config(
            batch=batch,
            lengths=_numbers(length),
            dim=dim,
            heads=heads,
            threads=_threads(threads),
            rounds=rounds,
            seed=seed,
            measure=measure,
            shares=_shares(shares),
        )
    except ValueError as error:
        errors.print(str(error), style="red", markup=False)
        raise typer.Exit(2) from None
    with Progress(console=errors, transient=True) as bar:
        tasks: dict[str, int] = {}

        def progress(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bar.add_task(label, total=total)
            bar.update(tasks[label], completed=done)

        try:
            rows = attention_bench.run(config, progress)
        except RuntimeError as error:
            errors.print(str(error), style="red", markup=False)
            raise typer.Exit(1) from None
    machine = attention_bench.machine()
    console.print(
        f"{machine['cpu']}, {machine['isa']}, torch {machine['torch']}; "
        f"B={batch}, D={dim}, {heads} heads, float32, {measure}"
    )
    groups: dict[tuple[int, int], list[attention_bench.Row]] = {}
    for row in rows:
        groups.setdefault((row.threads, row.length), []).append(row)
    for group in groups.values():
        console.print(_table(group))
    if json_file is not None:
        summary = {
            "machine": machine,
            "config": dataclasses.asdict(config),
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
