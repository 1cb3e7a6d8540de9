"""Every routine of ``headkit bench`` checks its peers, times them and reports what it found."""

import dataclasses
import json
import time

import pytest
import torch
import transformers
from typer.testing import CliRunner

import headkit
from headkit.bench import (
    Attention,
    Decode,
    FeedForward,
    Gate,
    Model,
    Plan,
    compiled_ways,
    dense_ways,
    routine,
)
from headkit.bench.baseline import changes
from headkit.bench.markdown import markdown
from headkit.bench.open_units import random_gates
from headkit.bench.peer import Peer, Work
from headkit.bench.plots import plot_roofline, plot_shares
from headkit.bench.probes import Reading, read_peak
from headkit.bench.rounds import measure
from headkit.bench.routine import Report, run
from headkit.cli import app
from headkit.cli.bench import outcome

TINY = {"batches": (2,), "lengths": (8,), "dim": 16, "heads": 4, "peers": ("dense", "sparse")}
DENSE = {"nn.MultiheadAttention", "linear + SDPA"}
SPARSE = {"mask multiply", "gather by pair", "gather by head", "pruned, linear + SDPA"}


def rows_by_name(report):
    return {(row.name, row.share): row for row in report.rows}


@pytest.fixture(scope="module", autouse=True)
def steady_probe():
    """No round is disturbed, whatever else the machine does; nothing large is copied."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routine, "read_peak", lambda *given: Reading(1e11, 1.0))
        patch.setattr(routine, "copy_bytes_per_second", lambda *given: 1e10)
        yield


@pytest.fixture(scope="module")
def report(steady_probe):
    return run([Attention(**TINY)], threads=(1,), rounds=2)


def test_a_layer_is_measured_beside_every_peer_and_share(report):
    rows = rows_by_name(report)
    assert {("headkit", share) for share in (1.0, 0.75, 0.5, 0.25)} <= rows.keys()
    assert {(name, 1.0) for name in DENSE} <= rows.keys()
    assert {(name, share) for name in SPARSE for share in (0.75, 0.5, 0.25)} <= rows.keys()
    for row in report.rows:
        assert row.routine == "attention" and row.threads == 1 and row.setting["T"] == 8
        assert row.flops == 4 * 8 * 4 * (2 * 16 + 8) * 2 * 4 * row.share
        assert row.max_error < 1e-5 and row.of_peak > 0 and row.of_copy > 0
        assert (row.of_ideal is None) == (row.name != "headkit")
        # x and output, then the weights of heads open anywhere, in float32.
        assert 0 < row.bytes - 4 * 2 * (2 * 8 * 16) <= 4 * 4 * 16 * 16


@pytest.mark.parametrize(("measure", "flops"), [("backward", (16, 10)), ("training", (24, 14))])
def test_gradients_of_every_peer_are_checked_and_timed(measure, flops):
    report = run([Attention(**TINY, measures=(measure,), gates="skewed")], threads=(1,), rounds=1)
    names = {row.name for row in report.rows}
    assert DENSE | SPARSE | {"headkit"} == names
    assert any("no derivative" in absent.reason for absent in report.absent)
    for row in report.rows:
        assert row.flops == 8 * 4 * (flops[0] * 16 + flops[1] * 8) * 2 * 4 * row.share
        assert row.max_error < 1e-5


def test_reduced_precision_is_held_to_its_own_tolerance():
    report = run([Attention(**TINY, dtype="bfloat16")], threads=(1,), rounds=1)
    assert {row.name for row in report.rows} >= DENSE | SPARSE | {"headkit"}
    assert all(0 < row.max_error < 0.1 for row in report.rows)


def test_a_wrong_peer_is_not_timed(monkeypatch):
    original = dense_ways.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        dense_ways.functional, "scaled_dot_product_attention", lambda *qkv: 2 * original(*qkv)
    )
    with pytest.raises(RuntimeError, match=r"\[bench\] expected the output of the reference"):
        run([Attention(**TINY)], threads=(1,), rounds=1)


def test_peers_that_cannot_be_compiled_are_named_with_the_reason(monkeypatch):
    def no_compiler(*arguments, **options):
        raise RuntimeError("no C++ compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", no_compiler)
    case = Attention(**{**TINY, "peers": ("compiled",), "shares": (0.5,)})
    report = run([case], threads=(1,), rounds=1)
    assert {row.name for row in report.rows} == {"headkit"}
    assert {(absent.name, absent.reason) for absent in report.absent} == {
        (name, "RuntimeError: no C++ compiler")
        for name in (compiled_ways.COMPILED, compiled_ways.FLEX)
    }


@pytest.mark.parametrize(("measure", "factor"), [("forward", 1), ("backward", 2), ("training", 3)])
def test_a_feed_forward_layer_is_measured_beside_every_peer(measure, factor):
    sizes = {"batch": 2, "lengths": (3,), "dim": 6, "neurons": 16, "block": 4}
    kinds = {"shares": (0.5,), "peers": ("dense", "sparse"), "measures": (measure,)}
    rows = rows_by_name(run([FeedForward(**sizes, **kinds)], threads=(1,), rounds=1))
    sparse = {"mask multiply", "gather by sample", "pruned, linear, gelu, linear"}
    packed = {("oneDNN-packed, fused gelu", 1.0), ("pruned, oneDNN-packed", 0.5)}
    assert rows.keys() - packed == {("linear, gelu, linear", 1.0), ("headkit", 1.0)} | {
        (name, 0.5) for name in (*sparse, "headkit")
    }
    for row in rows.values():
        assert row.flops == factor * 2 * 2 * 2 * 3 * 6 * 16 * row.share
        assert row.max_error < 1e-5


@pytest.mark.parametrize("kv_heads", [0, 2])
def test_decoding_is_measured_against_the_cache(kv_heads):
    sizes = {"batch": 2, "lengths": (9,), "dim": 16, "heads": 4, "kv_heads": kv_heads}
    report = run([Decode(**sizes)], threads=(1,), rounds=1)
    rows = rows_by_name(report)
    assert {(name, share) for name in ("mask multiply", "headkit") for share in (0.75, 0.5)} <= (
        rows.keys()
    )
    # Q and O of 8 pairs, K and V of each KV head, the core of 8 pairs.
    kv_pairs = 2 * (kv_heads or 4)
    dense = rows["headkit", 1.0]
    assert dense.flops == 8 * 4 * 4 * 16 + kv_pairs * 4 * 4 * 16 + 8 * 4 * 9 * 4
    assert dense.bytes == 4 * (2 * 16 * 16 + 2 * 16 * kv_pairs * 2 + 2 * 9 * 4 * kv_pairs + 2 * 32)
    assert all(row.max_error < 1e-5 for row in report.rows)


def test_the_work_list_is_measured_beside_the_layer():
    report = run([Plan(batches=(2, 3), length=5, dim=16, heads=4)], threads=(1,), rounds=1)
    assert [(row.setting["B"], row.name, row.share) for row in report.rows] == [
        (batch, name, share)
        for batch in (2, 3)
        for name in ("work list", "headkit")
        for share in (1.0, 0.5)
    ]


def test_what_deciding_costs_is_measured_beside_the_encoder():
    sizes = {"dims": (24,), "head_dim": 6, "batch": 4, "length": 5, "layers": 2}
    rows = rows_by_name(run([Gate(**sizes, shares=(0.5,))], threads=(1,), rounds=1))
    share = next(share for name, share in rows if name == "headkit" and share < 1)
    assert rows.keys() == {
        ("transformers, sdpa", 1.0),
        ("headkit", 1.0),
        ("policy, nothing dropped", 1.0),
        ("headkit", share),
    }
    assert share == pytest.approx(0.5, abs=0.1)
    dense, gated = rows["headkit", 1.0], rows["headkit", share]
    # Of 4 inputs of 5 tokens in 2 layers: heads of width 6, and blocks of 96 neurons.
    head, block = 4 * 5 * 6 * (2 * 24 + 5), 4 * 5 * 24 * 96
    assert gated.flops == pytest.approx(4 * 2 * (4 * share * head + block))
    assert rows["policy, nothing dropped", 1.0].flops == dense.flops
    assert gated.flops < dense.flops and gated.of_ideal > 0 and gated.max_error < 1e-4
    with pytest.raises(ValueError, match="shares between 0 and 1"):
        Gate(shares=(1.5,))


@pytest.fixture(scope="module")
def tiny_folders(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    folder = tmp_path_factory.mktemp("models")
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(folder / "bert")
    llama = transformers.LlamaConfig(**sizes, num_key_value_heads=2)
    transformers.LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    return folder


@pytest.mark.parametrize(
    ("family", "phase"), [("bert", "encode"), ("llama", "prefill"), ("llama", "decode")]
)
def test_a_whole_model_is_measured(tiny_folders, family, phase):
    routine = Model(
        model=str(tiny_folders / family), phases=(phase,), batch=2, length=5, shares=(0.5,)
    )
    rows = rows_by_name(run([routine], threads=(1,), rounds=1))
    assert rows.keys() == {
        ("transformers, sdpa", 1.0),
        ("transformers, mask multiply", 0.5),
        ("headkit", 1.0),
        ("headkit", 0.5),
    }
    dense = rows["headkit", 1.0]
    queries = 1 if phase == "decode" else 5
    keys = {"encode": 5, "prefill": 3, "decode": 6}[phase]
    kv_width, linear_maps = (24, 2) if family == "bert" else (12, 3)
    weights = 2 * 24 * 24 + 2 * 24 * kv_width + linear_maps * 24 * 40
    assert dense.flops == 2 * 2 * 2 * queries * (weights + 2 * keys * 24)
    assert rows["headkit", 0.5].flops < dense.flops
    assert rows["headkit", 0.5].max_error < 1e-4


def test_a_whole_model_is_measured_with_its_feed_forward_blocks(tiny_folders):
    model = Model(
        model=str(tiny_folders / "bert"), batch=2, length=5, shares=(0.5,), feed_forward=True
    )
    rows = rows_by_name(run([model], threads=(1,), rounds=1))
    assert rows["headkit", 0.5].max_error < 1e-4
    # Half of the heads, and one of two blocks of neurons.
    assert rows["headkit", 0.5].flops == rows["headkit", 1.0].flops / 2


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="or the folder of a model"):
        run([Model(model=str(tmp_path))], threads=(1,), rounds=1)
    with pytest.raises(ValueError, match="at least one input"):
        Model(length=0)


@pytest.mark.parametrize(
    "refused",
    [
        {"heads": 5},
        {"batches": ()},
        {"lengths": (0,)},
        {"dtype": "int8"},
        {"measures": ("up",)},
        {"peers": ("x",)},
    ],
)
def test_nonsense_is_refused(refused):
    with pytest.raises(ValueError, match=r"\[bench\] expected"):
        Attention(**{**TINY, **refused})


def test_gates_keep_their_share():
    for kind in ("equal", "skewed"):
        gates = random_gates(3, 8, (0.5, 0.01), kind)
        assert {share: gate.mean().item() for share, gate in gates.items()} == {
            1.0: 1.0,
            0.5: 0.5,
            0.125: 0.125,
        }
    assert sorted(random_gates(4, 8, (0.5,), "skewed")[0.5].sum(1).tolist()) == [0, 0, 8, 8]
    with pytest.raises(ValueError, match="shares between 0 and 1"):
        random_gates(1, 2, (1.5,))


def measured_with(readings):
    """Two rounds of two peers, with two readings a round: (FLOP/s, share of the processor)."""
    given = iter(readings)
    peers = [Peer(name, 1.0, lambda: None, Work(0, 0), 0.0) for name in ("a", "b")]
    return measure(peers, 2, lambda: Reading(*next(given)), lambda done: None)


def test_disturbed_rounds_do_not_count():
    dip, busy, fine = [(100, 1), (90, 1)], [(100, 1), (100, 0.6)], [(100, 1), (98, 0.99)]
    measured = measured_with([*fine, *dip, *busy, *fine])
    assert measured.probes == [98, 98] and measured.repeated == 2 and not measured.void
    assert {key: len(times) for key, times in measured.seconds.items()} == {
        ("a", 1.0): 2,
        ("b", 1.0): 2,
    }


def test_a_busy_machine_makes_rows_void():
    # The probe is steady, but at half of what the processor does alone.
    busy, fine = [(50, 0.5)] * 2, [(100, 1)] * 2
    measured = measured_with([*busy, *busy])
    assert measured.void and measured.probes == [50, 50]
    measured = measured_with([*busy, *fine, *busy, *busy, *busy, *busy])
    assert measured.void and measured.probes == [100] and measured.repeated == 5


def test_the_clock_of_the_processor_is_for_one_thread():
    def wait_and_work():
        time.sleep(0.02)
        sum(range(1000))

    peers = [Peer("a", 1.0, wait_and_work, Work(0, 0), 0.0)]
    seconds = {
        clock: min(
            measure(peers, 1, lambda: Reading(1, 1), lambda done: None, clock).seconds["a", 1.0]
        )
        for clock in ("wall", "processor")
    }
    assert seconds["processor"] < 0.02 <= seconds["wall"]
    reading = read_peak(torch.float32, "processor")
    assert reading.share == 1 and reading.flops > 0
    for refused in ({"clock": "processor", "threads": (2,)}, {"clock": "sun"}):
        with pytest.raises(ValueError, match=r"\[bench\] expected"):
            run([], **refused)


def test_a_report_comes_back_from_its_file(report, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_dict()))
    assert Report.read(path) == report
    path.write_text('{"rows": [{"name": "headkit"}]}')
    with pytest.raises(ValueError, match=r"\[bench\] expected a report that headkit bench"):
        Report.read(path)


def test_the_baseline_compares_ratios_of_rows_that_count(report):
    def altered(**values):
        rows = [dataclasses.replace(row, **values) for row in report.rows if row.name == "headkit"]
        return dataclasses.replace(report, rows=rows)

    slower = altered(of_peak=1e-9)
    worse = [change for change in changes(slower, report) if change.is_regression(0.4)]
    assert {(change.name, change.ratio) for change in worse} == {
        (f"headkit {share}%", "of_peak") for share in (100, 75, 50, 25)
    }
    assert not [change for change in changes(report, slower) if change.is_regression(0.4)]
    with pytest.raises(ValueError, match="none that counts"):
        changes(report, altered(void=True))
    elsewhere = dataclasses.replace(report, machine={**report.machine, "cpu": "another"})
    with pytest.raises(ValueError, match="expected a baseline measured on"):
        changes(report, elsewhere)


def test_pictures_are_drawn(report, tmp_path):
    for draw, name in ((plot_shares, "shares.svg"), (plot_roofline, "roofline.png")):
        draw(report, tmp_path / "new" / name)
        assert (tmp_path / "new" / name).stat().st_size > 1000
    nothing = Report(report.machine, [], [])
    for draw in (plot_shares, plot_roofline):
        with pytest.raises(ValueError, match=r"\[bench\] expected"):
            draw(nothing, tmp_path / "nothing.png")


def test_all_runs_every_routine(monkeypatch):
    made = []
    monkeypatch.setattr(
        outcome, "run", lambda routines, **options: made.extend(routines) or NOTHING
    )
    monkeypatch.setattr(headkit.assets, "fetch", lambda name: name)
    result = CliRunner().invoke(app, ["bench", "all", "--json"])
    assert result.exit_code == 0, result.output
    assert {type(each) for each in made} == set(routine.Routine.__subclasses__())


NOTHING = Report({}, [], [])


def test_markdown_puts_the_lengths_side_by_side(report):
    longer = [
        dataclasses.replace(row, setting={**row.setting, "T": 9}, milliseconds=1.5)
        for row in report.rows
        if row.share == 1
    ]
    text = markdown(dataclasses.replace(report, rows=[*report.rows, *longer]))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {9}
    assert "T=8 ms" in lines[0] and "T=9 ms" in lines[0]
    assert len(lines) == 2 + len(report.rows)
    dense = next(line for line in lines if line.startswith("| headkit | 100 %"))
    assert dense.split("|")[6].strip() == "1.5" and "1.00 (1.00)" in dense


SMALL = (
    "bench attention --batch 1 --length 4,6 --dim 16 --heads 2 --threads 1 --rounds 1 --peers dense"
)


def test_the_command_prints_writes_and_compares(tmp_path):
    out = tmp_path / "bench" / "report.json"
    result = CliRunner().invoke(app, [*SMALL.split(), "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert {row["setting"]["T"] for row in found["rows"]} == {4, 6}
    assert found["machine"]["isa"] in result.stdout and "T=6" in result.stdout

    again = [*SMALL.split(), "--json", "--baseline", str(out), "--tolerance"]
    result = CliRunner().invoke(app, [*again, "1"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"][0]["setting"] == found["rows"][0]["setting"]

    for row in found["rows"]:
        row["of_peak"] *= 1e6
    out.write_text(json.dumps(found))
    result = CliRunner().invoke(app, [*again, "0.5"])
    assert result.exit_code == 1
    assert "worse:" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    ["--heads 5", "--threads few", "--length x", "--rounds 0", "--shares 2", "--shares 1/0"],
)
def test_the_command_refuses_nonsense(arguments):
    result = CliRunner().invoke(app, ["bench", "attention", "--dim", "16", *arguments.split()])
    assert result.exit_code == 2
