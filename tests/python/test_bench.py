"""The benchmark runs, checks its peers and writes every row."""

import json

import pytest
from typer.testing import CliRunner

from headkit.bench import app
from headkit.bench import attention as attention_bench

TINY = {"batch": 2, "lengths": (8,), "dim": 16, "heads": 4, "threads": (1,), "rounds": 2}


def test_rows_name_every_peer_and_share():
    steps = []
    rows = attention_bench.run(
        attention_bench.Config(**TINY),
        lambda label, done, total: steps.append((label, done, total)),
    )
    shares = {(row.name, row.share) for row in rows}
    assert {("headkit", share) for share in (1.0, 0.75, 0.5, 0.25)} <= shares
    assert {("nn.MultiheadAttention", 1.0), ("linear + SDPA", 1.0)} <= shares
    assert steps[-1][2] == 2
    for row in rows:
        assert row.threads == 1 and row.length == 8
        assert row.useful_flops == 4 * 8 * 4 * (2 * 16 + 8) * 2 * 4 * row.share
        assert row.max_error < 1e-5
        assert (row.of_ideal is None) == (row.name != "headkit")


def test_command_writes_every_row(tmp_path):
    out = tmp_path / "bench" / "rows.json"
    arguments = "attention --batch 1 --length 4,6 --dim 16 --heads 2 --threads 1 --rounds 1 --json"
    result = CliRunner().invoke(app, [*arguments.split(), str(out)])
    assert result.exit_code == 0, result.output
    summary = json.loads(out.read_text())
    assert {row["length"] for row in summary["rows"]} == {4, 6}
    assert summary["config"]["dim"] == 16
    assert summary["machine"]["isa"]
    assert "T=6" in result.output


@pytest.mark.parametrize("arguments", ["--heads 5", "--threads few", "--length x", "--rounds 0"])
def test_command_refuses_nonsense(arguments):
    result = CliRunner().invoke(app, ["attention", "--dim", "16", *arguments.split()])
    assert result.exit_code == 2


def test_a_wrong_peer_is_not_timed(monkeypatch):
    monkeypatch.setattr(
        attention_bench._Layer, "with_linear", lambda self: self.x.mul(2.0), raising=True
    )
    with pytest.raises(RuntimeError, match=r"\[bench\] expected the output of the reference"):
        attention_bench.run(attention_bench.Config(**TINY))


@pytest.mark.parametrize("measure", ["backward", "training"])
def test_gradients_are_checked_and_timed(measure):
    config = attention_bench.Config(**TINY, measure=measure)
    rows = attention_bench.run(config)
    assert {row.name for row in rows} == {"nn.MultiheadAttention", "linear + SDPA", "headkit"}
    of_weights, of_core = (16, 10) if measure == "backward" else (24, 14)
    for row in rows:
        assert row.useful_flops == 8 * 4 * (of_weights * 16 + of_core * 8) * 2 * 4 * row.share
        assert row.max_error < 1e-5
    with pytest.raises(ValueError, match=r"\[bench\] expected measure"):
        attention_bench.Config(measure="sideways")
