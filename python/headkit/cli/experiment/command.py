"""The command ``headkit experiment``: studies that go on where they were cut off."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markdown import Markdown

from headkit.cli.options import Json
from headkit.cli.terminal import (
    errors,
    exit_codes,
    print_json,
    quiet_transformers,
    shown_progress,
)

app = typer.Typer(no_args_is_help=True)

Data = Annotated[
    Path,
    typer.Option("--data", help="Folder with train.tsv and dev.tsv, or a file text<TAB>label."),
]
Test = Annotated[
    Path | None, typer.Option("--test", help="Test file; without it dev.tsv of the folder.")
]
Cache = Annotated[Path, typer.Option("--cache", help="Folder of results; a run goes on from it.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="Model folder, owner/name on the hub, minilm (from its package), small-gpt2 or "
        "small-distilbert (trained from configuration).",
    ),
]
Page = Annotated[
    Path | None,
    typer.Option("--page", help="Fill the places of this page, and put pictures beside it."),
]
FoundOnly = Annotated[
    bool, typer.Option("--found-only", help="Compute nothing: report what is there.")
]
Calibration = Annotated[
    int, typer.Option("--calibration", min=8, help="Training sentences that heads are scored on.")
]
Validation = Annotated[
    int, typer.Option("--validation", min=8, help="Training sentences that settings need.")
]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Of fine-tuning; without it by the model.")
]
Rate = Annotated[
    float | None, typer.Option("--learning-rate", help="Of fine-tuning; without it by the model.")
]
Again = Annotated[
    int, typer.Option("--again", min=0, help="Epochs after pruning, in all arms; 0 = none.")
]
Draws = Annotated[int, typer.Option("--draws", help="Random masks for each seed, at least 5.")]


@app.callback()
def _group() -> None:
    """Experiments on heads that are removed, with every rule of a fair comparison.

    Calibration and validation data are cut from the training data before fine-tuning; the test data
    are only reported on. All arms share data, allocation and steps. Every result is kept in --cache
    as soon as it is there.
    """


@contextmanager
def _resumable() -> Iterator[None]:
    """As ``exit_codes``; what was computed before an interruption is kept."""
    with exit_codes():
        try:
            yield
        except KeyboardInterrupt as error:
            errors.print("interrupted: the same command goes on from here")
            raise typer.Exit(130) from error


def _numbers(text: str, kind: type, option: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"[experiment] expected numbers with commas as {option}; found {text!r}"
        ) from error


def _recipe(model: str, epochs: int | None, rate: float | None) -> Any:
    from headkit.studies.recipe import FROM_SCRATCH, Recipe
    from headkit.studies.subject import is_small

    recipe = FROM_SCRATCH if is_small(model) else Recipe()
    return recipe.again(epochs or recipe.epochs, rate or recipe.learning_rate)


class Shown(NamedTuple):
    """How a report is shown: its tables, the parts of its page, its pictures in a folder."""

    markdown: Callable[[dict[str, Any]], str]
    parts: Callable[[dict[str, Any]], dict[str, str]]
    plot: Callable[[dict[str, Any], Path], None]


def _publish(
    name: str, report: dict[str, Any], shown: Shown, out: Path | None, page: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Write NAME.json, tables.md and pictures to ``out``, fill the page, print the tables."""
    from headkit.files import write_json, write_text
    from headkit.studies.tables import fill

    tables = shown.markdown(report)
    if out is not None:
        write_json(out / f"{name}.json", report)
        write_text(out / "tables.md", tables)
        shown.plot(report, out)
    if page is not None:
        write_text(page, fill(page.read_text(encoding="utf-8"), shown.parts(report)))
        shown.plot(report, page.parent)
    if as_json:
        print_json(report)
    else:
        Console().print(Markdown(tables))


@app.command()
def topk(
    data: Data,
    cache: Cache,
    test: Test = None,
    model: Model = "minilm",
    k: Annotated[str, typer.Option("--k", help="Heads for each layer, with commas.")] = "1,2,4,6",
    seeds: Annotated[int, typer.Option("--seeds", help="Of fine-tuning, at least 2.")] = 5,
    metric: Annotated[str, typer.Option("--metric", help="Of headkit.scorers().")] = (
        "gate_gradient"
    ),
    allocation: Annotated[
        str, typer.Option("--allocation", help="global: K * layers heads; layer: K in each layer.")
    ] = "global",
    draws: Draws = 5,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    again: Again = 1,
    single_head: Annotated[
        bool, typer.Option(help="Try one head for each layer in place of many.")
    ] = True,
    calibration: Calibration = 512,
    validation: Validation = 512,
    out: Annotated[Path | None, typer.Option("--out", help="Write the result as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw accuracy against K.")] = None,
    as_json: Json = False,
) -> None:
    """Remove the most important, the least important, or random heads, and compare.

    Heads are scored on the fine-tuned model. An arm removes K heads for each layer, for real; it is
    tested as it is, and after --again epochs that the dense model gets too.
    """
    with _resumable():
        from headkit.files import write_json
        from headkit.studies import Results, read_splits
        from headkit.studies.topk import TopK, run_topk
        from headkit.studies.topk_report import plot_topk, topk_markdown

        recipe = _recipe(model, epochs, learning_rate)
        asked = TopK(
            model=model,
            ks=_numbers(k, int, "--k"),
            seeds=tuple(range(seeds)),
            metric=metric,
            allocation=allocation,
            draws=draws,
            recipe=recipe,
            again=recipe.again(again, 0.5 * recipe.learning_rate) if again else None,
            single_head=single_head,
        )
        asked.check()
        splits = read_splits(data, test, calibration=calibration, validation=validation)
        with quiet_transformers(), shown_progress() as show:
            report = run_topk(asked, splits, Results(cache), show)
        if out is not None:
            write_json(out, report)
        if plot is not None:
            plot_topk(report, plot)
        if as_json:
            print_json(report)
        else:
            Console().print(Markdown(topk_markdown(report)))


@app.command()
def static(
    data: Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder for static.json, tables.md and pictures.")
    ],
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder of results; without it OUT/cache.")
    ] = None,
    test: Test = None,
    model: Model = "minilm",
    keep: Annotated[
        str, typer.Option("--keep", help="Shares that stay, with commas.")
    ] = "0.75,0.5,0.33,0.25",
    seeds: Annotated[int, typer.Option("--seeds", help="Of fine-tuning, at least 3.")] = 3,
    methods: Annotated[
        str | None, typer.Option("--methods", help="With commas; without it all of them.")
    ] = None,
    tuned: Annotated[
        str | None, typer.Option("--tuned", help="Methods that are trained on after pruning.")
    ] = None,
    tuned_keep: Annotated[
        str, typer.Option("--tuned-keep", help="Shares that stay in these.")
    ] = "0.5,0.25",
    draws: Draws = 5,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    again: Annotated[
        int, typer.Option("--again", min=1, help="Epochs after pruning, in all arms.")
    ] = 1,
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Of the measurement of latency; 0 = none.")
    ] = 30,
    calibration: Calibration = 512,
    validation: Validation = 512,
    page: Page = None,
    found_only: FoundOnly = False,
    as_json: Json = False,
) -> None:
    """Run every static pruning method on one fine-tuned model, at several shares and seeds."""
    with _resumable():
        from headkit.studies import Results, read_splits
        from headkit.studies.methods import all_methods, tuned_methods
        from headkit.studies.static import StaticStudy, run_static
        from headkit.studies.static_report import plot_static, static_markdown, static_parts

        recipe = _recipe(model, epochs, learning_rate)
        asked = StaticStudy(
            model=model,
            seeds=tuple(range(seeds)),
            keeps=_numbers(keep, float, "--keep"),
            methods=all_methods() if methods is None else tuple(methods.split(",")),
            draws=draws,
            tuned=tuned_methods() if tuned is None else tuple(filter(None, tuned.split(","))),
            tuned_keeps=_numbers(tuned_keep, float, "--tuned-keep"),
            recipe=recipe,
            again=recipe.again(again, 0.6 * recipe.learning_rate),
            rounds=rounds,
        )
        asked.check()
        splits = read_splits(data, test, calibration=calibration, validation=validation)
        results = Results(out / "cache" if cache is None else cache, frozen=found_only)
        with quiet_transformers(), shown_progress() as show:
            report = run_static(asked, splits, results, show)
        shown = Shown(static_markdown, static_parts, plot_static)
        _publish("static", report, shown, out, page, as_json)


@app.command()
def dynamic(
    cache: Annotated[
        Path,
        typer.Option("--cache", help="Folder of results, that of the static study for its models."),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", help="As for static; not needed by digits alone.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for dynamic.json, tables.md and pictures.")
    ] = None,
    test: Test = None,
    model: Model = "minilm",
    tasks: Annotated[
        str, typer.Option("--tasks", help="Of sst2, embedding, digits, fashion, with commas.")
    ] = "sst2,embedding,digits",
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Of fine-tuning.")] = 3,
    budgets: Annotated[
        str, typer.Option("--budgets", help="Shares of the dense FLOPs, without training.")
    ] = "0.75,0.6,0.5,0.4,0.3",
    trained_budgets: Annotated[
        str, typer.Option("--trained-budgets", help="The same of trained arms; empty = none.")
    ] = "0.5,0.4,0.6",
    orders: Annotated[
        str, typer.Option("--orders", help="Orders in which heads may go, with commas.")
    ] = "michel,ablation,backward_elimination",
    draws: Annotated[int, typer.Option("--draws", min=0, help="Random rungs for each seed.")] = 3,
    oracle: Annotated[
        int, typer.Option("--oracle", min=0, help="Inputs of the greedy oracle; 0 = none.")
    ] = 64,
    epochs: Epochs = None,
    learning_rate: Rate = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Of the measurement of time; 0 = none.")
    ] = 5,
    calibration: Calibration = 512,
    validation: Validation = 512,
    page: Page = None,
    found_only: FoundOnly = False,
    as_json: Json = False,
) -> None:
    """Compare policies that decide by input with static masks at equal measured time."""
    with _resumable():
        from headkit.studies import Results, read_splits
        from headkit.studies.dynamic import IMAGES, DynamicStudy, run_dynamic
        from headkit.studies.dynamic_report import dynamic_markdown, dynamic_parts, plot_dynamic
        from headkit.studies.dynamic_rungs import Choices

        asked = DynamicStudy(
            tasks=tuple(tasks.split(",")),
            model=model,
            seeds=tuple(range(seeds)),
            budgets=_numbers(budgets, float, "--budgets"),
            trained_budgets=(
                _numbers(trained_budgets, float, "--trained-budgets") if trained_budgets else ()
            ),
            draws=draws,
            oracle=oracle,
            rounds=rounds,
            recipe=_recipe(model, epochs, learning_rate),
            choices=Choices(metrics=tuple(orders.split(","))),
        )
        asked.check()
        if data is None and set(asked.tasks) - set(IMAGES):
            raise ValueError("[experiment] expected --data for tasks of sentences; found none")
        splits = None
        if data is not None:
            splits = read_splits(data, test, calibration=calibration, validation=validation)
        with quiet_transformers(), shown_progress() as show:
            report = run_dynamic(asked, splits, Results(cache, frozen=found_only), show)
        shown = Shown(dynamic_markdown, dynamic_parts, plot_dynamic)
        _publish("dynamic", report, shown, out, page, as_json)


@app.command()
def domains(
    cache: Cache,
    names: Annotated[
        str,
        typer.Option("--domains", help="Of text, language, speech, image, chemistry, with commas."),
    ] = "text,language,speech,image,chemistry",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for domains.json, tables.md and a picture.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Of data, random masks and trained models.")
    ] = 3,
    shares: Annotated[
        str, typer.Option("--shares", help="Of the heads that are open, with commas.")
    ] = "0.75,0.5,0.25",
    draws: Annotated[int, typer.Option("--draws", min=0, help="Random masks for each seed.")] = 3,
    metric: Annotated[
        str,
        typer.Option("--metric", help="Orders heads: michel, or of headkit.scorers()."),
    ] = "michel",
    rounds: Annotated[
        int, typer.Option("--rounds", min=0, help="Of the measurement of time; 0 = none.")
    ] = 5,
    joule_seconds: Annotated[
        float, typer.Option("--joule-seconds", min=0, help="Of each measurement of energy.")
    ] = 10.0,
    text: Annotated[
        Path | None, typer.Option("--text", help="For the language model, in place of reviews.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=4, help="Most examples of a part: for a look.")
    ] = None,
    ladders: Annotated[
        bool, typer.Option(help="Compare trained ladders with static masks on images.")
    ] = True,
    page: Page = None,
    found_only: FoundOnly = False,
    as_json: Json = False,
) -> None:
    """Close heads of models of text, language, speech, images and chemistry by the same method.

    Quality against the share of open heads for random, static and dynamic choices, with time,
    FLOPs and, where the machine counts it, energy.
    """
    with _resumable():
        from headkit.studies import Results
        from headkit.studies.domains import DomainsStudy, run_domains
        from headkit.studies.domains_report import domains_markdown, domains_parts, plot_domains

        asked = DomainsStudy(
            domains=tuple(names.split(",")),
            seeds=tuple(range(seeds)),
            shares=_numbers(shares, float, "--shares"),
            draws=draws,
            metric=metric,
            rounds=rounds,
            joule_seconds=joule_seconds,
            text=text,
            limit=limit,
            ladders=ladders,
        )
        asked.check()
        with quiet_transformers(), shown_progress() as show:
            report = run_domains(asked, Results(cache, frozen=found_only), show)
        shown = Shown(domains_markdown, domains_parts, plot_domains)
        _publish("domains", report, shown, out, page, as_json)
