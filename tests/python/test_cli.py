import json
import re
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import headkit as hk
from headkit.cli import app

WORDS = [f"w{number}" for number in range(55)]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result):
    return re.sub(r"\s+", " ", result.output + result.stderr)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.tsv"
    lines = [f"{WORDS[n % 50]} {WORDS[(7 * n) % 50]} w1\t{n % 2}" for n in range(40)]
    path.write_text("\n".join(lines) + "\n\n")
    return path


@pytest.fixture
def folders(tiny, tmp_path):
    """A base model and a classifier, with a tokenizer of whole words."""
    import transformers

    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = transformers.BertTokenizer(str(vocabulary))
    result = {}
    for name, task in (("base", ""), ("classifier", "SequenceClassification")):
        folder = tmp_path / name
        tiny.make("Bert", task).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        result[name] = folder
    return result


def test_help_and_version_of_every_command():
    assert call("--version").output.split() == ["headkit", hk.__version__]
    for command in ((), ("info",), ("demo",), ("score",), ("prune",), ("bench",)):
        result = call(*command, "--help")
        assert result.exit_code == 0 and "Usage" in result.output, command


def test_info():
    assert "torch" in call("info").output
    facts = json.loads(call("info", "--json").output)
    assert facts["isa"] in facts["isas"] and "linear_gate" in facts["policies"]


@pytest.mark.parametrize("kind", ["base", "classifier"])
def test_score(folders, data, tmp_path, kind):
    out = tmp_path / "scores.json"
    shown = call("score", "--model", folders[kind], "--data", data, "--out", out)
    assert shown.exit_code == 0, said(shown)
    assert ("probe" if kind == "base" else "own logits") in said(shown)
    scores = hk.HeadScores.from_json(out.read_text())
    assert scores.values.shape == (3, 4) and scores.samples == 40
    again = call("score", "--model", folders[kind], "--data", data, "--json", "--limit", 10)
    assert hk.HeadScores.from_json(again.stdout).samples == 10


def test_prune_saves_a_model_that_can_be_loaded_and_scored(folders, data, tmp_path):
    out = tmp_path / "pruned"
    arguments = ("--model", folders["classifier"], "--data", data, "--out", out)
    result = call("prune", *arguments, "--keep", 0.5, "--json")
    assert result.exit_code == 0, said(result)
    assert json.loads(result.stdout)["kept"] == 6
    pruned = hk.load(out)
    assert hk.attach(pruned).heads().count == 6
    with torch.no_grad():
        assert pruned(torch.tensor([[2, 7, 3]])).logits.shape == (1, 5)
    again = call("score", "--model", out, "--data", data, "--json")
    assert again.exit_code == 0, said(again)
    before = sorted(path.name for path in out.iterdir())
    assert call("prune", *arguments).exit_code == 2
    assert sorted(path.name for path in out.iterdir()) == before


def test_silly_mistakes_get_an_answer(folders, data, tmp_path):
    def refused(expected, *arguments):
        result = call(*arguments)
        assert result.exit_code == 2, said(result)
        assert expected in said(result), said(result)
        assert "Traceback" not in said(result)

    model = folders["classifier"]
    refused("no such folder", "score", "--model", "nowhere", "--data", data)
    refused("config.json", "score", "--model", tmp_path, "--data", data)
    refused("missing.tsv", "score", "--model", model, "--data", tmp_path / "missing.tsv")
    refused("gate_gradient", "score", "--model", model, "--data", data, "--metric", "magic")
    refused("--keep", "prune", "--model", model, "--data", data, "--out", "x", "--keep", 2)
    refused("No such option", "score", "--magic")
    refused("a file", "score", "--model", data, "--data", data)
    for text, expected in (
        ("no tab here\n", "line 1"),
        ("fine\t1\nfine\tone\n", "line 2"),
        ("one\t1\ntwo\t1\n", "only label 1"),
        ("", "no line"),
        ("a\t0\nb\t9\n", "5 class"),
    ):
        bad = tmp_path / "bad.tsv"
        bad.write_text(text)
        refused(expected, "score", "--model", model, "--data", bad)
    (tmp_path / "bad.tsv").write_bytes(b"\xff\xfe\x00\t1\n")
    refused("UTF-8", "score", "--model", model, "--data", tmp_path / "bad.tsv")


def test_a_file_that_cannot_be_written_is_a_failure(folders, data):
    result = call("score", "--model", folders["base"], "--data", data, "--out", "/dev/null/x")
    assert result.exit_code == 1 and "expected to write" in said(result)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "headkit.cli", "--version"], capture_output=True, text=True
    )
    assert done.stdout.split() == ["headkit", hk.__version__], done.stderr
