"""The command ``headkit bench``: for each routine its own options."""

from __future__ import annotations

import typer

import headkit
from headkit.bench.attention import Attention
from headkit.bench.decode import Decode
from headkit.bench.feed_forward import FeedForward
from headkit.bench.gate import Gate
from headkit.bench.model import FETCHED, Model
from headkit.bench.plan import Plan
from headkit.bench.routine import Routine
from headkit.cli.bench import options
from headkit.cli.bench.options import fractions, numbers, words
from headkit.cli.bench.outcome import measuring

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure headkit beside its peers, in one process, round by round.

    One thread is pinned to a core. Ratios are medians over rounds of ratios within a round; the
    times of another run are not comparable.

    open: heads or neurons that run. of peak: FLOP/s of what is open over a probe of multiply-adds
    in the same round. of copy: least traffic a second over a probe of copying. x headkit: time over
    headkit's with all open. ideal: 1 = time in proportion to the FLOPs of what is open.
    """


@app.command()
@measuring
def attention(
    batch: options.Batches = "8",
    length: options.Lengths = "128,512",
    dim: options.Dim = 768,
    heads: options.Heads = 12,
    dtype: options.Dtype = "float32",
    measure: options.Measures = "forward",
    shares: options.Shares = "0.75,0.5,0.25,1/12",
    gates: options.Gates = "equal",
    peers: options.Peers = "dense,compiled,sparse",
    seed: options.Seed = 0,
) -> list[Routine]:
    """Time one attention layer against dense, compiled and sparse peers.

    compiled: torch.compile and FlexAttention, some seconds a case. sparse: heads multiplied by 0,
    rows gathered by open head, weights without the closed heads.
    """
    return [
        Attention(
            batches=numbers(batch),
            lengths=numbers(length),
            dim=dim,
            heads=heads,
            dtype=dtype,
            measures=words(measure),
            shares=fractions(shares),
            gates=gates,
            peers=words(peers),
            seed=seed,
        )
    ]


@app.command("feed-forward")
@measuring
def feed_forward(
    batch: options.Batch = 8,
    length: options.Lengths = "128",
    dim: options.Dim = 768,
    neurons: options.Neurons = 3072,
    block: options.Block = 32,
    dtype: options.Dtype = "float32",
    measure: options.Measures = "forward",
    shares: options.Shares = "0.75,0.5,0.25",
    gates: options.Gates = "equal",
    peers: options.Peers = "dense,compiled,sparse",
    seed: options.Seed = 0,
) -> list[Routine]:
    """Time one feed-forward layer against dense, compiled and sparse peers."""
    return [
        FeedForward(
            batch=batch,
            lengths=numbers(length),
            dim=dim,
            neurons=neurons,
            block=block,
            dtype=dtype,
            measures=words(measure),
            shares=fractions(shares),
            gates=gates,
            peers=words(peers),
            seed=seed,
        )
    ]


@app.command()
@measuring
def decode(
    batch: options.Batch = 16,
    length: options.CacheLengths = "512,2048",
    dim: options.Dim = 768,
    heads: options.Heads = 12,
    kv_heads: options.KvHeads = 0,
    dtype: options.Dtype = "float32",
    shares: options.Shares = "0.75,0.5,0.25",
    seed: options.Seed = 0,
) -> list[Routine]:
    """Time one new token of a decoder's attention layer against its cache of keys and values."""
    return [
        Decode(
            batch=batch,
            lengths=numbers(length),
            dim=dim,
            heads=heads,
            kv_heads=kv_heads,
            dtype=dtype,
            shares=fractions(shares),
            seed=seed,
        )
    ]


@app.command()
@measuring
def model(
    model: options.ModelName = "minilm",
    phase: options.Phases = "encode",
    batch: options.Batch = 8,
    length: options.Length = 128,
    dtype: options.Dtype = "float32",
    shares: options.Shares = "0.5,1/12",
    feed_forward: options.FeedForward = False,
    seed: options.Seed = 0,
) -> list[Routine]:
    """Time a whole model of transformers, as it is and attached."""
    _prepare(model)
    return [
        Model(
            model=model,
            phases=words(phase),
            batch=batch,
            length=length,
            dtype=dtype,
            shares=fractions(shares),
            feed_forward=feed_forward,
            seed=seed,
        )
    ]


@app.command()
@measuring
def gate(
    dim: options.Dims = "768,384",
    batch: options.Batch = 8,
    length: options.Length = 128,
    layers: options.Layers = 1,
    shares: options.Shares = "0.95,0.9,0.5",
    seed: options.Seed = 0,
) -> list[Routine]:
    """Time what deciding costs: an encoder under a linear gate that decides at every call.

    Gate tax: x headkit of the policy that drops nothing, less 1. Fraction of ideal: ideal of the
    rows below it. Break-even: the largest open share that is faster than every row at 100 %.
    """
    return [
        Gate(
            dims=numbers(dim),
            batch=batch,
            length=length,
            layers=layers,
            shares=fractions(shares),
            seed=seed,
        )
    ]


@app.command()
@measuring
def plan(
    batch: options.Batches = "8,64",
    length: options.Length = 128,
    dim: options.Dim = 768,
    heads: options.Heads = 12,
    shares: options.Shares = "0.5",
    seed: options.Seed = 0,
) -> list[Routine]:
    """Time making the work list of a gate against the layer that runs it."""
    return [
        Plan(
            batches=numbers(batch),
            length=length,
            dim=dim,
            heads=heads,
            shares=fractions(shares),
            seed=seed,
        )
    ]


@app.command("all")
@measuring
def every(seed: options.Seed = 0) -> list[Routine]:
    """Run every routine at few sizes, without peers that take long to compile."""
    _prepare("minilm")
    peers, shares = ("dense", "sparse"), (0.5, 0.25)
    return [
        Attention(
            lengths=(128,),
            measures=("forward", "training"),
            shares=shares,
            peers=peers,
            seed=seed,
        ),
        FeedForward(shares=shares, peers=peers, seed=seed),
        Decode(lengths=(512,), shares=shares, seed=seed),
        Model(shares=shares, feed_forward=True, seed=seed),
        Gate(dims=(768,), seed=seed),
        Plan(batches=(8,), seed=seed),
    ]


def _prepare(model: str) -> None:
    """Fetch a model before minutes of measuring, not after."""
    if model in FETCHED:
        headkit.assets.fetch(FETCHED[model])
