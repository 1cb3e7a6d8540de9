"""torch.nn.MultiheadAttention: its calling convention, and the ways that torch takes around it."""

import itertools

import pytest
import torch
from torch import nn

import headkit as hk

from .families import CLASSES, HEADS, NEURONS, WIDTH, randomise, text
from .hand_built import TorchClassifier

TOKENS, BATCH = 5, 3


class Layers(nn.Module):
    """A list with one layer around an attention module."""

    def __init__(self, **options):
        super().__init__()
        self.layers = nn.ModuleList([nn.Module()])
        self.layers[0].attention = nn.MultiheadAttention(WIDTH, HEADS, **options)
        randomise(self)

    @property
    def attention(self):
        return self.layers[0].attention


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def masks(kind, dimensions):
    """A mask [T, T] or [B * H, T, T] that leaves each query its own place."""
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(2)
    shape = (TOKENS, TOKENS) if dimensions == 2 else (BATCH * HEADS, TOKENS, TOKENS)
    values = torch.randn(shape, generator=generator)
    if kind == "float":
        return values
    closed = (values > 0.3) & ~torch.eye(TOKENS, dtype=torch.bool)
    return closed if kind == "bool" else torch.zeros(shape).masked_fill(closed, -torch.inf)


def padding(kind):
    closed = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
    closed[1, -1] = True
    if kind in ("none", "bool"):
        return closed if kind == "bool" else None
    if kind == "float":
        return torch.randn(BATCH, TOKENS, generator=torch.Generator().manual_seed(3))
    return torch.zeros(BATCH, TOKENS).masked_fill(closed, -torch.inf)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["none", "bool", "infinite", "float"])
def test_calls_equal_those_of_torch(batch_first, kind):
    plain, model = Layers(batch_first=batch_first), Layers(batch_first=batch_first)
    hk.attach(model)
    shape = (BATCH, TOKENS, WIDTH) if batch_first else (TOKENS, BATCH, WIDTH)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for dimensions, pad, weights, average in itertools.product(
        (2, 3), ("none", "bool" if kind == "bool" else kind), (False, True), (False, True)
    ):
        asked = {
            "attn_mask": masks(kind, dimensions),
            "key_padding_mask": padding(pad),
            "need_weights": weights,
            "average_attn_weights": average,
        }
        if kind != "float" and dimensions == 2 and pad != "none":
            asked["attn_mask"] = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
            if pad == "infinite":
                asked["attn_mask"] = torch.zeros(TOKENS, TOKENS).masked_fill(
                    asked["attn_mask"], -torch.inf
                )
            asked["is_causal"] = True
        expected = plain.attention(x, x, x, **asked)
        found = model.attention(x, x, x, **asked)
        close(found[0], expected[0])
        assert (found[1] is None) == (expected[1] is None)
        if weights:
            close(found[1], expected[1])


def test_sequences_without_a_batch():
    plain, model = Layers(), Layers()
    hk.attach(model)
    x = torch.randn(TOKENS, WIDTH)
    closed = torch.zeros(TOKENS, dtype=torch.bool)
    closed[-2:] = True
    for asked in ({}, {"key_padding_mask": closed}, {"attn_mask": masks("bool", 2)}):
        for found, expected in zip(
            model.attention(x, x, x, **asked), plain.attention(x, x, x, **asked), strict=True
        ):
            close(found, expected)


def test_what_torch_can_and_the_operator_cannot_is_refused():
    for options in ({"kdim": 8}, {"add_bias_kv": True}, {"add_zero_attn": True}):
        model = Layers(**options)
        with pytest.raises(ValueError, match=r"\[attach\] expected attention as .*; found"):
            hk.attach(model)
    model = Layers(batch_first=True)
    hk.attach(model)
    x = torch.randn(2, TOKENS, WIDTH)
    with pytest.raises(ValueError, match="one sequence as key and value"):
        model.attention(x, x, x + 1)
    with pytest.raises(ValueError, match="attn_mask with is_causal"):
        model.attention(x, x, x, is_causal=True)
    nested = torch.nested.nested_tensor([x[0], x[1, :2]])
    with pytest.raises(ValueError, match="found nested"):
        model.attention(nested, nested, nested)


def test_blocks_that_are_not_in_layers_are_refused():
    alone = nn.MultiheadAttention(WIDTH, HEADS)
    pairs = nn.Module()
    pairs.layers = nn.ModuleList(
        nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS), nn.Linear(WIDTH, WIDTH)])
        for _ in range(2)
    )
    for model in (alone, pairs, nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS)])):
        with pytest.raises(ValueError, match="in a list of layers, each of which is called"):
            hk.attach(model)


def test_an_encoder_between_other_modules_is_found():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, NEURONS, batch_first=True)
    model = nn.Sequential(
        nn.Linear(6, WIDTH), nn.TransformerEncoder(layer, 2), nn.Linear(WIDTH, CLASSES)
    ).eval()
    randomise(model)
    x = torch.randn(2, TOKENS, 6)
    with torch.no_grad():
        expected = model(x)
        gated = hk.attach(model)
        assert gated.layout() == hk.HeadLayout(2, HEADS, 6, WIDTH, NEURONS)
        close(model(x), expected)
        assert model[1].use_nested_tensor is False
        hk.detach(model)
        assert model[1].use_nested_tensor is True


@pytest.mark.parametrize("fast", [False, True])
def test_the_fused_path_of_torch_does_not_pass_the_gates_by(fast):
    model = TorchClassifier(batch_first=True).eval()
    randomise(model)
    inputs = text(3, "right")
    gates = torch.zeros(3, HEADS)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        hk.attach(model)
        with torch.no_grad():
            dense = model(**inputs)
            with hk.gates(model, gates):
                closed = model(**inputs)
        with hk.gates(model, gates):
            close(model(**inputs), closed)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert not torch.allclose(closed, dense)


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_policy_is_shown_samples_and_their_padding(batch_first):
    model = TorchClassifier(batch_first=batch_first).eval()
    randomise(model)
    inputs = text(3, "right")
    generator = torch.Generator().manual_seed(0)
    gate = hk.LinearGate(
        weight=torch.randn(3, HEADS, WIDTH, generator=generator, dtype=torch.float64),
        reference=torch.zeros(WIDTH, dtype=torch.float64),
        static_logits=torch.zeros(3, HEADS, dtype=torch.float64),
        threshold=0.0,
    )
    valid = inputs["attention_mask"].bool()
    gated = hk.attach(model)
    with torch.no_grad():
        decided = gate.decide(model.embedding(inputs["input_ids"]), valid)
        assert torch.equal(gated.embed(inputs).attention_mask, valid)
        with hk.gates(model, decided):
            expected = model(**inputs)[valid]
        with hk.gates(model, gate):
            assert torch.equal(model(**inputs)[valid], expected)
        close(hk.run(gated, inputs, gate).output[valid], expected)
