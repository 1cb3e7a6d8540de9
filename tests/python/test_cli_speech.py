"""The commands on speech."""

import math

import pytest
import torch
import transformers

import headkit as hk

from .cli_models import (
    refused,
    speech_model,
    told,
    write_sound,
)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    return speech_model(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def speech(tmp_path):
    lines = []
    for number in range(8):
        write_sound(tmp_path / f"{number}.wav", number)
        lines.append(f"{number}.wav\t{'hello you and all of us'.split()[number % 6]}")
    path = tmp_path / "speech.tsv"
    path.write_text("\n".join(lines))
    return path


def test_speech_is_scored_pruned_gated_and_written_down(whisper, speech, tmp_path):
    scores = told("score", "--model", whisper, "--data", speech)
    assert scores["objective"] == "seq2seq" and scores["samples"] == 8
    out = tmp_path / "pruned"
    result = told("prune", "--model", whisper, "--data", speech, "--out", out, "--keep", 0.75)
    plain = transformers.WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    processor = transformers.AutoProcessor.from_pretrained(whisper)
    losses = []
    for line in speech.read_text().splitlines():
        name, words = line.split("\t")
        labels = processor.tokenizer(f" {words}", return_tensors="pt")["input_ids"][:, 1:]
        features = features_of(processor, speech.parent / name)
        with torch.no_grad():
            losses.append(float(plain(input_features=features, labels=labels).loss))
    expected = math.exp(sum(losses) / len(losses))
    assert result["before"] == pytest.approx(expected, rel=1e-4)

    sound = speech.parent / "3.wav"
    ran = told("run", "--model", out, "--audio", sound, "--max-new-tokens", 6)
    model = hk.load(out)
    model.generation_config = plain.generation_config
    new = model.generate(
        input_features=features_of(processor, sound), max_new_tokens=6, do_sample=False
    )
    expected = processor.batch_decode(new, skip_special_tokens=True)[0].strip()
    assert ran["inputs"][0]["output"]["text"] == expected
    assert ran["inputs"][0]["heads_run"] == result["kept"]

    gated = tmp_path / "gated"
    told("fit", "--model", whisper, "--data", speech, "--out", gated, "--mean-heads", 12)
    rows = told("run", "--model", gated, "--data", speech, "--max-new-tokens", 4)["inputs"]
    assert [row["label"] for row in rows][:2] == ["hello", "you"]
    assert all(0 < row["heads_run"] <= 24 for row in rows)
    assert len(told("explain", "--model", gated, "--audio", sound)["units"]) == 50


def features_of(processor, path):
    from headkit.cli.tasks.speech import read_sound

    return processor.feature_extractor(
        read_sound(path), sampling_rate=16000, return_tensors="pt"
    ).input_features


def test_sounds_that_are_none(whisper, tmp_path):
    fake = tmp_path / "fake.wav"
    fake.write_text("no sound at all")
    refused("a WAV file", "run", "--model", whisper, "--audio", fake)
    fake.write_bytes(b"")
    refused("a WAV file", "run", "--model", whisper, "--audio", fake)
    refused("a WAV file", "run", "--model", whisper, "--audio", tmp_path / "missing.wav")
    write_sound(fake, rate=44100)
    refused("44100 Hz", "run", "--model", whisper, "--audio", fake)
    write_sound(fake, channels=2)
    refused("2 of 16 bits", "run", "--model", whisper, "--audio", fake)
    lines = tmp_path / "lines.tsv"
    lines.write_text("fake.wav\n")
    refused("no tab", "score", "--model", whisper, "--data", lines)
    lines.write_text("fake.wav\t \n")
    refused("transcript", "score", "--model", whisper, "--data", lines)
    refused("expected --audio", "run", "--model", whisper, "--text", "hello")
