"""The questions of docs/faq.md quote what users really get to read."""

import pathlib
import re

import pytest
import torch
import transformers

import headkit as hk
from headkit.torch_version import check_torch

FAQ = pathlib.Path(__file__).resolve().parents[2] / "docs" / "faq.md"
LAYERS, HEADS = 2, 4


def bert(**settings):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=48,
        **settings,
    )
    return transformers.BertForSequenceClassification(config).eval()


def batch(examples=3):
    return {"input_ids": torch.arange(4).repeat(examples, 1), "labels": torch.arange(examples) % 2}


def attached(**settings):
    model = bert()
    hk.attach(model, **settings)
    return model


def under(gates, model=None):
    model = model or attached()
    with hk.gates(model, gates):
        model(**batch())


def generate_data():
    yield batch()


def load_into_another(folder):
    hk.save(attached(), folder)
    hk.load(folder, bert(max_position_embeddings=64))


def cuda_forced(monkeypatch):
    model = attached()
    monkeypatch.setenv("HEADKIT_BACKEND", "cuda")
    model(**batch())


def mask_of_all():
    return hk.MaskPolicy(hk.HeadMask.all(LAYERS, HEADS))


QUESTIONS = [
    lambda **_: under(torch.ones(LAYERS, HEADS), bert()),
    lambda **_: hk.attach(torch.nn.Linear(2, 2)),
    lambda **_: attached()(**batch(), head_mask=torch.ones(LAYERS, HEADS)),
    lambda **_: under(torch.ones(LAYERS, 5)),
    lambda **_: under(torch.ones(2, LAYERS, HEADS)),
    lambda **_: under(torch.full((LAYERS, HEADS), torch.nan)),
    lambda **_: under(hk.GateSet(blocks=torch.ones(LAYERS, 2))),
    lambda **_: hk.score(attached(), generate_data()),
    lambda **_: hk.score(attached(), [{"input_ids": torch.arange(4)[None]}]),
    lambda **_: hk.score(attached(), [batch()], objective="kl_to_dense"),
    lambda **_: hk.prune(attached(), 0.5, "magnitude", [batch()]),
    lambda **_: hk.prune(attached(), 0.5),
    lambda **_: hk.prune(attached(), 0.3, "kwon", [batch()], neurons=False),
    lambda **_: hk.calibrate(attached(), mask_of_all(), [batch()], risk=0.1),
    lambda folder, **_: load_into_another(folder),
    lambda **_: check_torch("2.15.0", "2.16.0"),
    lambda monkeypatch, **_: cuda_forced(monkeypatch),
]


def quoted():
    """What the page quotes, in its order."""
    return re.findall(r"^```text\n(\[.*?)\n```$", FAQ.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("place", range(len(QUESTIONS)))
def test_a_quoted_error_is_the_one_that_users_get(place, tmp_path, monkeypatch):
    with pytest.raises((ValueError, RuntimeError, ImportError)) as raised:
        QUESTIONS[place](folder=tmp_path / "folder", monkeypatch=monkeypatch)
    pattern = ".*".join(re.escape(part.strip()) for part in quoted()[place].split("..."))
    assert re.match(pattern, str(raised.value), re.DOTALL), raised.value


def test_every_quoted_error_is_provoked():
    assert len(quoted()) == len(QUESTIONS)
