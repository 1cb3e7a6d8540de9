"""What a command shows, and its exit code: 0 = done, 1 = failed, 2 = asked for the impossible."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

errors = Console(stderr=True)


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
def shown_progress(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error for each step; plain lines where that is no terminal.

    Args:
        shown: False for silence.
    """
    if not shown:
        yield lambda text, done, total: None
        return
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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep bars and warnings of transformers out of what a command shows.

    Raises:
        RuntimeError: if it is not installed.
    """
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise RuntimeError(
            f"[model] expected transformers; found: {error} (pip install 'headkit[hf]')"
        ) from error

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def print_json(value: Any) -> None:
    """Write a value to standard output."""
    print(json.dumps(value, indent=1, allow_nan=False))
