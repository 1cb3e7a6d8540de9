"""``headkit explain``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from headkit.cli.options import Audio, Image, Json, Limit, ModelName, TaskName, Text
from headkit.cli.terminal import exit_codes, print_json, quiet_transformers, shown_progress

SIGNS = {"on": "+", "off": "-", "always_on": "A", "pruned": "x", "collapsed": "c"}
SHOWN_PARTS = 3


def explain(
    model: ModelName,
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Many inputs, as for run: which heads they run, and when."),
    ] = None,
    task: TaskName = None,
    closest: Annotated[
        int,
        typer.Option(
            "--closest",
            min=0,
            help="Heads shown in detail: closest decisions; with --data those whose use goes most "
            "with a property of the inputs.",
        ),
    ] = 10,
    compare: Annotated[
        str | None,
        typer.Option("--compare", help="A second input of the same kind, for the report."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="JSON of a policy, in place of the saved one."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A file *.html: the report, with effects of heads; *.json: the decision record.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="With --data: draw how often each head runs.")
    ] = None,
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Show which heads one input runs, and why, or which heads a data set runs, and when."""
    with exit_codes():
        from headkit.cli.inputs import prepare
        from headkit.cli.records import record_input
        from headkit.files import write_json

        if out is not None and out.suffix not in (".json", ".html"):
            raise ValueError(
                f"[explain] expected a file named *.html or *.json as --out; found {out.name}"
            )
        if compare is not None and (out is None or out.suffix != ".html"):
            raise ValueError("[explain] expected --out FILE.html with --compare; found none")
        given = {"text": text, "image": image, "audio": audio}
        if data is not None:
            from headkit.cli.usage_tables import explain_data, print_usage

            if out is not None and out.suffix != ".json":
                raise ValueError(
                    f"[explain] expected a file named *.json as --out with --data; found {out.name}"
                )
            with quiet_transformers(), shown_progress() as show:
                many = prepare("explain", model, task, given, data, policy is not None, show, limit)
                many = _under(many, policy)
                usage = explain_data(many, show, out, plot)
            print_usage(usage, closest, as_json)
            return
        if plot is not None:
            raise ValueError("[explain] expected --data beside --plot; found one input")
        with quiet_transformers(), shown_progress() as show:
            prepared = prepare("explain", model, task, given, None, policy is not None, show)
            prepared = _under(prepared, policy)
            record, units = record_input(prepared)
            show("deciding", 1, 1)
            if out is not None and out.suffix == ".html":
                from headkit.cli.reports import explain_inputs

                if compare is not None:
                    value = compare if prepared.task.INPUT == "text" else Path(compare)
                    second = prepared.task.given(value)
                    prepared = replace(prepared, examples=[*prepared.examples, second])
                explain_inputs(prepared, show).to_html(out)
        content = {**json.loads(record.to_json()), "units": units}
        if out is not None and out.suffix == ".json":
            write_json(out, content)
        if as_json:
            print_json(content)
            return
        console = Console(highlight=False)
        console.print(_grid(record))
        console.print("+ on   - off: for this input   A always on   x pruned: for every input\n")
        for line in _words(record, prepared.saved_policy):
            console.print(line, markup=False)
        scored = sorted(
            (
                head
                for head in record.heads
                if head.state in ("on", "off") and head.margin is not None
            ),
            key=lambda head: abs(head.margin),
        )
        if scored and closest:
            console.print(_details(scored[:closest], units))
        if out is not None:
            console.print(str(out))


def _under(prepared: Any, path: Path | None) -> Any:
    """The same under the policy of a file."""
    if path is None:
        return prepared
    from headkit import policy_from_json

    try:
        policy = policy_from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"[explain] expected a policy in {path}; found: {error}") from error
    return replace(prepared, policy=policy, saved_policy=True)


def _grid(record: Any) -> Table:
    """A sign for each head, layer 0 at the bottom."""
    table = Table(title=f"{record.policy}, {record.tokens} tokens", box=box.SIMPLE_HEAD)
    table.add_column("")
    heads = record.layout.heads
    for head in range(heads):
        table.add_column(f"H{head}", justify="right")
    for layer in reversed(range(record.layout.layers)):
        row = record.heads[layer * heads : (layer + 1) * heads]
        table.add_row(f"L{layer}", *(SIGNS[head.state] for head in row))
    return table


def _words(record: Any, saved_policy: bool) -> list[str]:
    counts: dict[tuple[str, str], int] = {}
    for head in record.heads:
        key = (head.state.replace("_", " "), head.reason)
        counts[key] = counts.get(key, 0) + 1
    lines = [f"{record.heads_run} of {len(record.heads)} heads run"]
    lines += [f"  {count} {state} by {reason}" for (state, reason), count in counts.items()]
    if not saved_policy:
        lines.append("no policy is saved with the model: every head that is there runs")
    if record.calibration:
        lines.append(f"threshold: {record.calibration}")
    if record.confidence is not None:
        lines.append(f"confidence of the first run {record.confidence:.3f}")
    return lines


def _details(heads: list[Any], units: list[str]) -> Table:
    table = Table(title="closest decisions", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("head")
    table.add_column("state")
    table.add_column("reason")
    for name in ("logit", "threshold", "margin", "base"):
        table.add_column(name, justify="right")
    table.add_column("largest parts")
    for head in heads:
        parts = ", ".join(
            f"{part.feature or units[part.token].strip()} {part.value:+.3f}"
            for part in head.parts[:SHOWN_PARTS]
        )
        numbers = (head.logit, head.threshold, head.margin, head.base)
        cells = ["" if number is None else f"{number:.3f}" for number in numbers]
        name = f"L{head.layer} H{head.head}"
        table.add_row(name, head.state, head.reason, *cells, escape(parts))
    return table
