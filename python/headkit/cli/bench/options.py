"""Options that the commands of ``headkit bench`` share."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer

Batch = Annotated[int, typer.Option(help="Samples in a batch.")]
Batches = Annotated[str, typer.Option("--batch", help="Samples in a batch, with commas.")]
Dim = Annotated[int, typer.Option(help="Width of the layer.")]
Dims = Annotated[str, typer.Option("--dim", help="Widths, multiples of 64, with commas.")]
Layers = Annotated[int, typer.Option(help="Encoder layers.")]
Heads = Annotated[int, typer.Option(help="Heads of the layer.")]
Neurons = Annotated[int, typer.Option(help="Neurons of the layer.")]
Block = Annotated[int, typer.Option(help="Neurons that a gate opens or closes together.")]
KvHeads = Annotated[int, typer.Option(help="Heads of keys and values; 0 = as many as heads.")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Lengths = Annotated[str, typer.Option("--length", help="Tokens in a sample, with commas.")]
Length = Annotated[int, typer.Option(help="Tokens in a sample.")]
CacheLengths = Annotated[
    str, typer.Option("--length", help="Positions in the cache, with commas; the new one included.")
]
ModelName = Annotated[
    str, typer.Option("--model", help="minilm, bert-base (random weights), smollm2, or a folder.")
]
Phases = Annotated[str, typer.Option("--phase", help="encode, prefill or decode, with commas.")]
FeedForward = Annotated[
    bool, typer.Option("--feed-forward", help="Attach the feed-forward blocks too.")
]
Measures = Annotated[
    str, typer.Option("--measure", help="forward, backward or training (both), with commas.")
]
Shares = Annotated[
    str, typer.Option(help="Shares that are open beside 1, as numbers or fractions with commas.")
]
Gates = Annotated[
    str, typer.Option(help="equal: as many open for every sample; skewed: all or none of a sample.")
]
Peers = Annotated[
    str, typer.Option(help="Kinds of peers beside headkit: dense, compiled, sparse, with commas.")
]
Threads = Annotated[str, typer.Option(help="Thread counts with commas; 'all' = all cores.")]
RoundCount = Annotated[int, typer.Option("--rounds", help="Undisturbed rounds to collect.")]
Clock = Annotated[
    str,
    typer.Option(
        "--clock",
        help="wall, or processor: seconds in which one thread had the processor, for a machine "
        "that other programs share.",
    ),
]
Seed = Annotated[int, typer.Option(help="Of inputs, weights and gates.")]
Isa = Annotated[
    str | None,
    typer.Option("--isa", envvar="HEADKIT_ISA", help="Instruction-set level of headkit's kernels."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, nothing else.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the same JSON to this file.")]
Markdown = Annotated[
    Path | None, typer.Option("--markdown", help="Write the tables to this file as Markdown.")
]
Baseline = Annotated[
    Path | None,
    typer.Option("--baseline", help="Compare ratios with this earlier --out; 1 on a regression."),
]
Tolerance = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of a ratio that may be lost.")
]
Plot = Annotated[
    Path | None, typer.Option("--plot", help="Picture of time against the share that is open.")
]
Roofline = Annotated[Path | None, typer.Option("--roofline", help="Picture under both probes.")]


def thread_counts(text: str) -> tuple[int, ...]:
    """Numbers of threads, 0 for all cores.

    Example:
        >>> thread_counts("1,all")
        (1, 0)
    """
    try:
        return tuple(0 if part == "all" else int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers or 'all', with commas; found {text}") from None


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers.

    Example:
        >>> numbers("32,128")
        (32, 128)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers with commas; found {text}") from None


def words(text: str) -> tuple[str, ...]:
    """Names.

    Example:
        >>> words("dense,sparse")
        ('dense', 'sparse')
    """
    return tuple(part.strip() for part in text.split(",") if part.strip())


def fractions(text: str) -> tuple[float, ...]:
    """Shares.

    Example:
        >>> fractions("0.5,1/4")
        (0.5, 0.25)
    """
    try:
        return tuple(float(Fraction(part)) for part in words(text))
    except (ValueError, ZeroDivisionError):
        raise typer.BadParameter(f"expected shares with commas; found {text}") from None
