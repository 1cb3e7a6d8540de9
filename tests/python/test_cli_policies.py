"""fit and run with policies, budgets, records and audits, and silly mistakes."""

import json

import pytest
import torch
import transformers

import headkit as hk

from .cli_models import WORDS, refused, said, told
from .cli_models import call as call_command


@pytest.fixture
def classifier(tiny, tmp_path):
    folder = tmp_path / "classifier"
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tiny.make("Bert", "SequenceClassification").save_pretrained(folder)
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.tsv"
    lines = [f"{WORDS[n % 50]} {WORDS[(7 * n) % 50]} w1\t{n % 2}" for n in range(120)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("policy", ["layer-gate", "escalation", "reactivation"])
def test_a_policy_is_fitted_with_a_promise_and_run_under_a_budget(
    classifier, data, tmp_path, policy
):
    out, records = tmp_path / "gated", tmp_path / "records.jsonl"
    fitted = told(
        "fit", "--model", classifier, "--data", data, "--out", out, "--policy", policy,
        "--mean-heads", 7, "--risk", 0.2,
    )  # fmt: skip
    assert fitted["policy"] == policy.replace("-", "_")
    assert fitted["arms"]["policy"]["heads"] <= 7
    assert (fitted["fitted_examples"], fitted["calibration_examples"]) == (60, 30)
    assert fitted["promise"]["examples"] == 30
    if not fitted["promise"]["budget_unmet"]:
        assert fitted["mean_heads"] == pytest.approx(fitted["arms"]["policy"]["heads"], rel=1e-4)

    ran = told(
        "run", "--model", out, "--data", data, "--budget", "heads:9", "--records", records,
        "--audit", 1,
    )  # fmt: skip
    assert ran["budget"]["unit"] == "heads" and ran["audit"]["audited"] == 120
    assert ran["budget"]["lambda"] >= fitted["promise"]["lambda"] - 1e-6
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert sorted(int(line["run_time"]["request_id"]) for line in lines) == list(range(120))
    by_place = {int(line["run_time"]["request_id"]): line for line in lines}
    for place, row in enumerate(ran["inputs"]):
        assert by_place[place]["budget"]["heads_run"] == row["heads_run"]
    assert ran["records"]["written"] == 120
    plain = told("run", "--model", out, "--data", data, "--records", records)
    assert plain["records"]["written"] == 120 and len(records.read_text().splitlines()) == 240
    share = told("run", "--model", out, "--data", data, "--budget", "flops:0.9")
    assert share["budget"]["target"] == 0.9 and 0 < share["budget"]["measured"] < 3
    assert "budget: unit ms" in said(
        call_command("run", "--model", out, "--data", data, "--budget", "ms:1000")
    )


def test_rungs_with_neurons_are_trained(classifier, data, tmp_path):
    out = tmp_path / "gated"
    fitted = told(
        "fit", "--model", classifier, "--data", data, "--out", out, "--policy", "escalation",
        "--flops", 0.8, "--train", 2,
    )  # fmt: skip
    assert fitted["arms"]["policy"]["flops"] <= 0.8 and "top rung" in fitted["arms"]
    model, policy = hk.load(out), hk.load_policy(out)
    row = told("run", "--model", out, "--text", "w1 w2")["inputs"][0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    result = hk.run(model, dict(tokenizer("w1 w2", return_tensors="pt")), policy)
    assert row["heads_run"] == int(result.heads_run)
    assert torch.isfinite(result.output).all()


def test_silly_mistakes(classifier, data, tmp_path):
    fit = ("fit", "--model", classifier, "--data", data, "--out", tmp_path / "x")
    refused("linear-gate, layer-gate", *fit, "--policy", "magic")
    refused("found both", *fit, "--mean-heads", 5, "--flops", 0.5)
    refused("at most 1", *fit, "--flops", 50)
    refused("below 1", *fit, "--risk", 2)
    refused("at least 396 examples", *fit, "--risk", 0.01)
    refused("at most 12", *fit, "--policy", "escalation", "--mean-heads", 13)
    refused("at least 3 heads", *fit, "--policy", "escalation", "--mean-heads", 1)
    assert not (tmp_path / "x").exists()
    run = ("run", "--model", classifier, "--text", "w1 w2")
    refused("heads:NUMBER", *run, "--budget", "36")
    refused("heads:NUMBER", *run, "--budget", "watts:3")
    refused("heads:NUMBER", *run, "--budget", "heads:-3")
    refused("0 to 1", *run, "--audit", 3)
    refused("with a lambda", *run, "--budget", "heads:4", "--records", tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()
    told(*fit, "--mean-heads", 6)
    refused("--risk", "run", "--model", tmp_path / "x", "--text", "w1", "--audit", 0.5)
