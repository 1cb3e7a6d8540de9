"""The commands on language models and pictures."""

import math

import pytest
import torch
import transformers

import headkit as hk

from .cli_models import (
    LAYERS,
    WORDS,
    causal_lm,
    image_classifier,
    refused,
    told,
    write_pictures,
)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return causal_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture
def novel(tmp_path):
    path = tmp_path / "novel.txt"
    words = [WORDS[n * n % 50] for n in range(330)]
    path.write_text("\n\n".join(" ".join(words[n : n + 50]) for n in range(0, 330, 50)))
    return path


def perplexity(model, text, tokenizer, width):
    """Of whole windows, by the model's own loss."""
    ids = tokenizer(text, return_tensors="pt")["input_ids"][0]
    rows = ids[: len(ids) // width * width].view(-1, width)
    with torch.no_grad():
        return math.exp(float(model(input_ids=rows, labels=rows).loss))


def test_a_language_model_is_pruned_for_a_text(lm, novel, tmp_path):
    out = tmp_path / "pruned"
    scores = told("score", "--model", lm, "--data", novel)
    assert scores["objective"] == "next_token" and scores["samples"] == 10
    assert told("score", "--model", lm, "--data", novel, "--limit", 3)["samples"] == 3
    result = told("prune", "--model", lm, "--data", novel, "--out", out)
    assert result["quality"] == "perplexity" and result["kept"] == 6
    tokenizer = transformers.AutoTokenizer.from_pretrained(lm)
    plain = transformers.AutoModelForCausalLM.from_pretrained(lm).eval()
    for model, found in ((plain, result["before"]), (hk.load(out), result["after"])):
        expected = perplexity(model, novel.read_text(), tokenizer, 32)
        assert found == pytest.approx(expected, rel=1e-4)

    ran = told("run", "--model", out, "--text", "w1 w2 w3", "--max-new-tokens", 5)
    with torch.no_grad():
        ids = tokenizer("w1 w2 w3", return_tensors="pt")
        new = hk.load(out).generate(**ids, max_new_tokens=5, do_sample=False)[0, 3:]
    assert ran["inputs"][0]["output"]["text"] == tokenizer.decode(new, skip_special_tokens=True)
    assert ran["inputs"][0]["heads_run"] == 6 and ran["policy"] is None


def test_a_gated_language_model_writes_under_its_gate(lm, novel, tmp_path):
    out = tmp_path / "gated"
    fitted = told("fit", "--model", lm, "--data", novel, "--out", out, "--mean-heads", 8)
    assert fitted["mean_heads"] <= 8 and fitted["calibration_examples"] == 2
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("w1 w2 w3\nw40 w41\n")
    rows = told("run", "--model", out, "--data", prompts, "--max-new-tokens", 6)["inputs"]
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(out), hk.load(out)
    policy = hk.policy_from_json(hk.read_model_folder(out).policy)
    for row, prompt in zip(rows, ("w1 w2 w3", "w40 w41"), strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        inputs = {key: ids[key] for key in ("input_ids", "attention_mask")}
        with hk.gates(model, policy), torch.no_grad():
            new = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        expected = tokenizer.decode(new[0, len(inputs["input_ids"][0]) :], skip_special_tokens=True)
        assert row["output"]["text"] == expected and row["input"] == prompt
        assert row["heads_run"] == int(hk.run(model, inputs, policy).heads_run)
    often = told("run", "--model", out, "--data", prompts, "--max-new-tokens", 6, "--every", 2)
    assert all(0 < row["heads_run"] <= 12 for row in often["inputs"])
    record = told("explain", "--model", out, "--text", "w1 w2 w3")
    assert record["units"] == ["w1", "w2", "w3"] and len(record["heads"]) == LAYERS * 4


def test_a_policy_that_looks_at_the_output_cannot_write(lm, tmp_path):
    model = hk.attach(transformers.AutoModelForCausalLM.from_pretrained(lm)).model
    low = hk.HeadMask(torch.ones(LAYERS, 4))
    hk.save(model, tmp_path / "m", policy=hk.Escalation(low, threshold=1))
    transformers.AutoTokenizer.from_pretrained(lm).save_pretrained(tmp_path / "m")
    refused("escalation", "run", "--model", tmp_path / "m", "--text", "w1")


def test_texts_that_are_none(lm, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    refused("no line", "score", "--model", lm, "--data", empty)
    empty.write_text("w1")
    refused("at least 2 tokens", "score", "--model", lm, "--data", empty)
    empty.write_bytes(b"\xff\xfe\x00")
    refused("UTF-8", "score", "--model", lm, "--data", empty)
    refused("which does causal-lm", "score", "--model", lm, "--data", empty, "--task", "embedding")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return image_classifier(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures")


def test_pictures_are_scored_pruned_gated_and_run(vit, pictures, tmp_path):
    by_folder = told("score", "--model", vit, "--data", pictures)
    assert by_folder["samples"] == 12 and by_folder["objective"] == "cross_entropy"
    listed = tmp_path / "list.tsv"
    files = sorted(pictures.glob("*/*.png"))
    listed.write_text("".join(f"{file}\t{int(file.parent.name == 'light')}\n" for file in files))
    by_file = told("score", "--model", vit, "--data", listed)
    assert by_file["values"] == by_folder["values"]
    assert told("score", "--model", vit, "--data", pictures, "--limit", 4)["samples"] == 4

    rows = told("run", "--model", vit, "--data", pictures)["inputs"]
    plain = transformers.AutoModelForImageClassification.from_pretrained(vit).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(vit)
    from PIL import Image

    right = 0
    for row, file in zip(rows, files, strict=True):
        pixels = processor(images=Image.open(file).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            probabilities = plain(**pixels).logits.softmax(-1)[0]
        assert row["output"]["label"] == int(probabilities.argmax())
        assert row["label"] == int(file.parent.name == "light")
        best = row["output"]["classes"][0]
        assert best["name"] == ("dark", "light")[best["label"]]
        assert best["probability"] == pytest.approx(float(probabilities.max()), abs=1e-5)
        right += best["label"] == row["label"]

    pruned = told("prune", "--model", vit, "--data", pictures, "--out", tmp_path / "pruned")
    assert pruned["before"] == pytest.approx(right / len(files), abs=1e-5)
    gated = tmp_path / "gated"
    told("fit", "--model", vit, "--data", pictures, "--out", gated, "--mean-heads", 6)
    one = told("run", "--model", gated, "--image", files[0])
    assert one["policy"] == "linear_gate" and one["heads"] == 12
    record = told("explain", "--model", gated, "--image", files[0])
    assert record["units"] == ["token 0", "patch 0", "patch 1", "patch 2", "patch 3"]


def test_pictures_that_are_none(vit, pictures, tmp_path):
    fake = tmp_path / "fake.png"
    fake.write_text("no picture")
    refused("a picture in", "run", "--model", vit, "--image", fake)
    refused("missing.png", "run", "--model", vit, "--image", tmp_path / "missing.png")
    refused("expected --image", "run", "--model", vit, "--text", "a cat")
    listed = tmp_path / "list.tsv"
    listed.write_text("fake.png\t0\nfake.png\t1\n")
    refused("a picture in", "score", "--model", vit, "--data", listed)
    listed.write_text(f"{pictures / 'dark' / '0.png'}\n")
    refused("no tab", "score", "--model", vit, "--data", listed)
    refused("a subfolder for each class", "score", "--model", vit, "--data", pictures / "dark")
    third = tmp_path / "three"
    for name in "abc":
        (third / name).mkdir(parents=True)
        (third / name / "0.png").write_bytes((pictures / "dark" / "0.png").read_bytes())
    refused("2 class", "score", "--model", vit, "--data", third)
    (third / "a" / "0.png").unlink()
    refused("pictures in", "score", "--model", vit, "--data", third)
    refused(
        "does text-classification; found ViTForImageClassification",
        "score", "--model", vit, "--data", listed, "--task", "text-classification",
    )  # fmt: skip
