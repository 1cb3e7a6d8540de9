"""The command ``headkit bench``."""

from __future__ import annotations

import typer

from headkit.bench.attention import Attention
from headkit.cli.bench import options
from headkit.cli.bench.options import fractions, numbers, words
from headkit.cli.bench.outcome import Wishes, carry_out
from headkit.cli.terminal import exit_codes

app = typer.Typer(
    help="Measure headkit beside its peers.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
def attention(
    batch: options.Batch = 8,
    length: options.Lengths = "128,512",
    dim: options.Dim = 768,
    heads: options.Heads = 12,
    dtype: options.Dtype = "float32",
    measure: options.Measures = "forward",
    shares: options.Shares = "0.75,0.5,0.25,1/12",
    gates: options.Gates = "equal",
    peers: options.Peers = "dense,compiled,sparse",
    seed: options.Seed = 0,
    threads: options.Threads = "1,all",
    rounds: options.RoundCount = 15,
    isa: options.Isa = None,
    as_json: options.Json = False,
    out: options.Out = None,
    baseline: options.Baseline = None,
    tolerance: options.Tolerance = 0.05,
    plot: options.Plot = None,
    roofline: options.Roofline = None,
) -> None:
    """Time one attention layer against dense, compiled and sparse peers.

    compiled: torch.compile and FlexAttention, some seconds a case. sparse: heads multiplied by 0,
    rows gathered by open head, weights without the closed heads.
    """
    with exit_codes():
        routine = Attention(
            batch=batch,
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
        carry_out(
            [routine],
            Wishes(threads, rounds, isa, as_json, out, baseline, tolerance, plot, roofline),
        )
