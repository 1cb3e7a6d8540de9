"""The commands on text: score, prune, fit, run, explain, and silly mistakes."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

import headkit as hk

from .cli_models import WORDS, call, refused, said

PROBED = ("--task", "text-classification")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.tsv"
    lines = [f"{WORDS[n % 50]} {WORDS[(7 * n) % 50]} w1\t{n % 2}" for n in range(40)]
    path.write_text("\n".join(lines) + "\n\n")
    return path


@pytest.fixture
def folders(tiny, tmp_path):
    """A base model and a classifier, with a tokenizer of whole words."""
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
    for command in (
        (),
        ("info",),
        ("demo",),
        ("score",),
        ("prune",),
        ("fit",),
        ("run",),
        ("explain",),
        ("roles",),
        ("bench",),
        ("experiment",),
        ("experiment", "topk"),
        ("experiment", "static"),
    ):
        result = call(*command, "--help")
        assert result.exit_code == 0 and "Usage" in result.output, command


def test_info():
    assert "torch" in call("info").output
    facts = json.loads(call("info", "--json").output)
    assert facts["isa"] in facts["isas"] and "linear_gate" in facts["policies"]


@pytest.mark.parametrize("kind", ["base", "classifier"])
def test_score(folders, data, tmp_path, kind):
    out = tmp_path / "scores.json"
    asked = ("--model", folders[kind], "--data", data, *(PROBED if kind == "base" else ()))
    shown = call("score", *asked, "--out", out)
    assert shown.exit_code == 0, said(shown)
    assert ("probe" if kind == "base" else "own logits") in said(shown)
    scores = hk.HeadScores.from_json(out.read_text())
    assert scores.values.shape == (3, 4) and scores.samples == 40
    again = call("score", *asked, "--json", "--limit", 10)
    assert hk.HeadScores.from_json(again.stdout).samples == 10


def test_score_takes_settings_of_its_metric_and_draws(folders, data, tmp_path):
    asked = ("score", "--model", folders["classifier"], "--data", data, "--limit", 10)
    plot = tmp_path / "scores.svg"
    call(*asked, "--metric", "activation", "--set", "statistic=norm", "--plot", plot)
    assert plot.stat().st_size > 1000
    refused("among statistic", *asked, "--metric", "activation", "--set", "kind=norm")
    refused("NAME=VALUE", *asked, "--metric", "activation", "--set", "norm")


def test_score_under_torchrun_is_that_of_one_process(folders, data, tmp_path):
    asked = ("score", "--model", folders["classifier"], "--data", data, "--metric", "ablation")
    call(*asked, "--out", tmp_path / "one.json")
    shared = [*asked, "--out", tmp_path / "two.json"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "headkit.cli", *map(str, shared)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ablation of cross_entropy") == 1
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()


def test_prune_saves_a_model_that_can_be_loaded_and_scored(folders, data, tmp_path):
    out = tmp_path / "pruned"
    arguments = ("--model", folders["classifier"], "--data", data, "--out", out)
    result = call("prune", *arguments, "--keep", 0.5, "--json")
    assert result.exit_code == 0, said(result)
    told = json.loads(result.stdout)
    assert told["kept"] == 6 and told["quality"] == "accuracy"
    pruned = hk.load(out)
    assert hk.attach(pruned).heads().count == 6
    with torch.no_grad():
        assert pruned(torch.tensor([[2, 7, 3]])).logits.shape == (1, 5)
    again = call("score", "--model", out, "--data", data, "--json")
    assert again.exit_code == 0, said(again)
    before = sorted(path.name for path in out.iterdir())
    assert call("prune", *arguments).exit_code == 2
    assert sorted(path.name for path in out.iterdir()) == before


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("backward_elimination", {"step": 2, "shortlist": 4}),
        ("kwon", {"ridge": 0.5, "rearrange": False}),
        ("bottom_up", {}),
        ("obs", {"damping": 0.01}),
        ("flap_joint", {"cost": "macs"}),
    ],
)
def test_prune_by_methods_that_search(folders, data, tmp_path, method, settings):
    out = tmp_path / "pruned"
    arguments = ["prune", "--model", folders["classifier"], "--data", data, "--out", out]
    arguments += ["--keep", 0.6, "--method", method]
    for name, value in settings.items():
        arguments += ["--set", f"{name}={json.dumps(value)}"]
    refused("settings of", *arguments, "--set", "magic=1")
    refused("NAME=VALUE", *arguments, "--set", "magic")
    assert not out.exists()
    result = call(*arguments, "--json")
    assert result.exit_code == 0, said(result)
    told = json.loads(result.stdout)
    assert told["method"] == method and told["settings"] == settings
    assert len(told["data_hash"]) == 64
    pruned = hk.load(out)
    gated = hk.attach(pruned)
    assert gated.heads().count == told["kept"]
    if told["neurons"] is not None:
        assert [int(gated.neurons().sum()), gated.neurons().numel()] == told["neurons"]
    assert (method == "backward_elimination") == (told["neurons"] is None)


def test_silly_mistakes_get_an_answer(folders, data, tmp_path):
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
        ("\n \n", "no line"),
        ("a\t0\nb\t9\n", "5 class"),
    ):
        bad = tmp_path / "bad.tsv"
        bad.write_text(text)
        refused(expected, "score", "--model", model, "--data", bad)
    (tmp_path / "bad.tsv").write_bytes(b"\xff\xfe\x00\t1\n")
    refused("UTF-8", "score", "--model", model, "--data", tmp_path / "bad.tsv")


def test_a_file_that_cannot_be_written_is_a_failure(folders, data):
    result = call("score", "--model", folders["classifier"], "--data", data, "--out", "/dev/null/x")
    assert result.exit_code == 1 and "expected to write" in said(result)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "headkit.cli", "--version"], capture_output=True, text=True
    )
    assert done.stdout.split() == ["headkit", hk.__version__], done.stderr


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(f"{WORDS[n]} {WORDS[3 * n % 50]} w1" for n in range(12)))
    return path


def dense_logits(folder, texts):
    """Of the plain model, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return torch.stack(rows)


def test_an_embedding_is_scored_by_ablation(folders, sentences, tmp_path):
    out = tmp_path / "pruned"
    scored = call("score", "--model", folders["base"], "--data", sentences, "--json")
    assert scored.exit_code == 0, said(scored)
    assert json.loads(scored.stdout)["metric"] == "ablation"
    arguments = ("--model", folders["base"], "--data", sentences, "--out", out, "--json")
    told = json.loads(call("prune", *arguments, "--keep", 0.75).stdout)
    assert told["kept"] == 9 and told["before"] == 1 and 0 < told["after"] < 1

    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["base"])
    models = transformers.AutoModel.from_pretrained(folders["base"]).eval(), hk.load(out)
    cosines = []
    for text in sentences.read_text().splitlines():
        with torch.no_grad():
            inputs = tokenizer(text, return_tensors="pt")
            means = [model(**inputs).last_hidden_state.mean(1) for model in models]
        cosines.append(float(torch.cosine_similarity(*means)))
    assert told["after"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)

    told = json.loads(call("run", "--model", out, "--text", "w3 w1", "--json").stdout)
    with torch.no_grad():
        mean = models[1](**tokenizer("w3 w1", return_tensors="pt")).last_hidden_state.mean(1)[0]
    found = torch.tensor(told["inputs"][0]["output"]["embedding"])
    torch.testing.assert_close(found, mean / mean.norm(), atol=1e-5, rtol=0)
    refused("minimum", "score", *arguments[:4], "--metric", "gate_gradient")
    refused("--task text-classification", "fit", *arguments[:4], "--out", tmp_path / "gate")


def test_a_gate_is_fitted_saved_run_and_explained(folders, data, tmp_path):
    out = tmp_path / "gated"
    arguments = ("--model", folders["classifier"], "--data", data, "--out", out)
    fitted = call("fit", *arguments, "--mean-heads", 7, "--json")
    assert fitted.exit_code == 0, said(fitted)
    told = json.loads(fitted.stdout)
    assert told["mean_heads"] <= 7 and told["policy"] == "linear_gate"
    assert (told["fitted_examples"], told["calibration_examples"]) == (30, 10)

    dense = call("run", "--model", folders["classifier"], "--data", data, "--json")
    assert dense.exit_code == 0, said(dense)
    rows = json.loads(dense.stdout)["inputs"]
    texts = [line.split("\t")[0] for line in data.read_text().splitlines() if line]
    assert [row["input"] for row in rows] == texts
    assert [row["label"] for row in rows] == [n % 2 for n in range(40)]
    expected = dense_logits(folders["classifier"], texts).softmax(-1).max(-1)
    assert [row["output"]["label"] for row in rows] == expected.indices.tolist()
    found = torch.tensor([row["output"]["classes"][0]["probability"] for row in rows])
    torch.testing.assert_close(found, expected.values, atol=1e-5, rtol=0)

    ran = call("run", "--model", out, "--data", data, "--json")
    assert ran.exit_code == 0, said(ran)
    told = json.loads(ran.stdout)
    model, policy = hk.load(out), hk.policy_from_json(hk.read_model_folder(out).policy)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for row in told["inputs"][:8]:
        result = hk.run(model, dict(tokenizer(row["input"], return_tensors="pt")), policy)
        assert row["heads_run"] == int(result.heads_run)
        assert row["output"]["label"] == int(result.output.argmax())
    assert told["mean_heads_run"] < 12
    everything = call("run", "--model", out, "--text", texts[0], "--keep-all", "--json")
    assert json.loads(everything.stdout)["inputs"][0]["heads_run"] == 12
    assert "linear_gate" in said(call("run", "--model", out, "--text", texts[0]))

    file = tmp_path / "record.json"
    told = call("explain", "--model", out, "--text", texts[0], "--json", "--out", file)
    assert told.exit_code == 0, said(told)
    content = json.loads(told.stdout)
    assert content == json.loads(file.read_text())
    record = hk.read_decision_records(json.dumps(content))[0]
    result = hk.run(model, dict(tokenizer(texts[0], return_tensors="pt")), policy)
    assert torch.equal(record.gates(), result.gates.heads[0])
    assert content["units"] == ["[CLS]", *texts[0].split(), "[SEP]"]
    words = said(call("explain", "--model", out, "--text", texts[0]))
    assert f"{record.heads_run} of 12 heads run" in words and "linear_gate" in words

    refused("*.json", "explain", "--model", out, "--text", "w1", "--out", tmp_path / "r.txt")
    refused("new or empty", "fit", *arguments)
    refused("at most 12", "fit", *arguments[:4], "--out", tmp_path / "x", "--mean-heads", 13)


def test_escalation_runs_and_is_explained(folders, data, tmp_path):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folders["classifier"])
    hk.attach(model.eval())
    low = hk.HeadMask(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 1]]))
    hk.save(model, tmp_path / "m", policy=hk.Escalation(low, threshold=1))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["classifier"])
    tokenizer.save_pretrained(tmp_path / "m")
    result = call("run", "--model", tmp_path / "m", "--text", "w1 w2", "--json")
    assert result.exit_code == 0, said(result)
    row = json.loads(result.stdout)["inputs"][0]
    assert row["heads_run"] > 12, "the second run is counted too"
    expected = dense_logits(folders["classifier"], ["w1 w2"])[0].softmax(-1)
    assert row["output"]["classes"][0]["probability"] == pytest.approx(float(expected.max()))
    told = said(call("explain", "--model", tmp_path / "m", "--text", "w1 w2"))
    assert "escalation" in told and "confidence of the first run" in told


def test_a_data_set_is_explained(folders, data, tmp_path):
    out = tmp_path / "gated"
    fitted = call(
        "fit", "--model", folders["classifier"], "--data", data, "--out", out, "--mean-heads", 7
    )
    assert fitted.exit_code == 0, said(fitted)
    file, picture = tmp_path / "usage.json", tmp_path / "usage.svg"
    asked = ("explain", "--model", out, "--data", data)
    told = call(*asked, "--json", "--out", file, "--plot", picture)
    assert told.exit_code == 0, said(told)
    content = json.loads(told.stdout)
    assert content == json.loads(file.read_text()) and picture.stat().st_size > 5000
    ran = json.loads(call("run", "--model", out, "--data", data, "--json").stdout)
    assert content["inputs"] == 40
    assert content["selected"]["mean"] == pytest.approx(ran["mean_heads_run"], abs=0.01)
    assert sum(content["classes"].values()) == 40
    assert set(content["heads"][0]["correlations"]) == {"complexity", "confidence", "length"}
    words = said(call(*asked))
    assert "of 12 heads run on average" in words and "linear_gate, 40 inputs" in words
    refused("--data beside --plot", "explain", "--model", out, "--text", "w1", "--plot", picture)
    refused("*.json", *asked, "--out", tmp_path / "usage.html")


def test_explain_says_that_there_is_no_policy(folders):
    told = said(call("explain", "--model", folders["classifier"], "--text", "w1 w2"))
    assert "no policy is saved" in told and "12 of 12 heads run" in told


def test_inputs_and_tasks_that_do_not_fit(folders, data, sentences, tmp_path):
    base, classifier = folders["base"], folders["classifier"]
    refused("found none", "run", "--model", classifier)
    refused("--text and --data", "run", "--model", classifier, "--text", "a", "--data", data)
    refused("expected --text", "run", "--model", classifier, "--image", data)
    refused("expected text", "run", "--model", classifier, "--text", " ")
    refused("--every", "run", "--model", classifier, "--text", "a", "--every", 2)
    refused("one of --text", "explain", "--model", classifier)
    refused("with a classifier", "run", "--model", base, "--text", "w1", *PROBED)
    refused("found 'magic'", "score", "--model", base, "--data", data, "--task", "magic")
    for task in ("causal-lm", "image-classification", "speech"):
        refused(
            f"a model that does {task}; found BertModel",
            "score", "--model", base, "--data", data, "--task", task,
        )  # fmt: skip
    refused("take the labels away", "score", "--model", base, "--data", data)
    refused("line 1", "score", "--model", classifier, "--data", sentences)
    few = tmp_path / "few.tsv"
    few.write_text("w1\t0\nw2\t1\n")
    refused("at least 8", "fit", "--model", classifier, "--data", few, "--out", tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_a_folder_of_another_model_or_a_broken_one(folders, data, tmp_path):
    arguments = ("--model", folders["classifier"], "--data", data)
    pruned = tmp_path / "pruned"
    assert call("prune", *arguments, "--out", pruned).exit_code == 0
    right = (pruned / "config.json").read_text()
    (pruned / "config.json").write_text((folders["base"] / "config.json").read_text())
    refused("of one model", "score", "--model", pruned, "--data", data)
    (pruned / "config.json").write_text(right)
    weights = next(pruned.glob("weights-*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    told = call("run", "--model", pruned, "--text", "w1")
    assert told.exit_code == 1 and "Traceback" not in said(told)
    (pruned / "headkit.json").write_text("{")
    refused("headkit.json", "run", "--model", pruned, "--text", "w1")
    (folders["base"] / "config.json").write_text('{"model_type": "nothing"}')
    refused("configuration", "score", "--model", folders["base"], "--data", data)


def test_the_hub_is_asked_last_and_told_apart(data, monkeypatch):
    import huggingface_hub

    asked = []

    def offline(name, **options):
        asked.append(name)
        raise OSError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused("no network", "score", "--model", "owner/name", "--data", data)
    refused("no such folder", "score", "--model", "name", "--data", data)
    assert asked == ["owner/name"]


def test_roles_are_shown_written_and_drawn(folders, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"{WORDS[n % 50]} {WORDS[(7 * n) % 50]} w1" for n in range(12)))
    out, picture = tmp_path / "roles.json", tmp_path / "roles.svg"
    given = ("roles", "--model", folders["base"], "--task", "embedding", "--data", lines)
    result = call(*given, "--limit", 6, "--out", out, "--plot", picture)
    assert result.exit_code == 0, said(result)
    assert "on 6 sequences" in said(result) and "A role is a description" in said(result)
    table = hk.RoleTable.from_json(out.read_text())
    delimiters = {score.variant for score in table.heads[0][0] if score.role == "delimiter"}
    assert {"cls", "sep"} <= delimiters
    assert picture.stat().st_size > 0
    shown = call(*given, "--limit", 6, "--json")
    assert json.loads(shown.stdout) == json.loads(out.read_text())
    refused("*.json", *given, "--out", tmp_path / "roles.txt")
