"""Masks become padding, causality and windows where they are no more than that."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import headkit as hk
from headkit.huggingface.masks import as_bias, read_mask

TOKENS, WINDOW = 7, 3


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_window_is_read_without_a_matrix(causal, padding, kind):
    place = torch.arange(TOKENS)
    seen = (place[:, None] - place).abs() < WINDOW
    seen = (seen.tril() if causal else seen)[None].repeat(2, 1, 1)
    valid = torch.ones(2, TOKENS, dtype=torch.bool)
    if padding != "none":
        valid[1, slice(-4, None) if padding == "right" else slice(4)] = False
    seen = (seen & valid[:, None])[:, None]
    mask = seen
    if kind == "float":
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    read = read_mask(mask, torch.zeros(2, TOKENS, 4), window=WINDOW)
    assert read.bias is None and read.window == WINDOW and read.causal == causal
    assert torch.equal(valid if read.padding is None else read.padding, valid)
    assert torch.equal(
        (as_bias(read, torch.zeros(2, 1, TOKENS, TOKENS)) == 0).expand_as(seen), seen
    )


def test_another_window_or_a_hole_in_it_stays_a_bias():
    place = torch.arange(TOKENS)
    distance = (place[:, None] - place).abs()
    hole = distance < WINDOW
    hole[3, 4] = False
    for seen in (distance < WINDOW + 1, hole):
        read = read_mask(seen[None, None], torch.zeros(1, TOKENS, 4), window=WINDOW)
        assert read.window is None and torch.equal(read.bias[0, 0] == 0, seen)


@pytest.mark.parametrize("decoder", [False, True])
def test_a_noted_mask_is_looked_at_once_in_a_pass(tiny, decoder):
    class Looks(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten.all.default
            return function(*args, **(kwargs or {}))

    def looks(model):
        with torch.no_grad(), Looks() as mode:
            model(**inputs)
        return mode.count

    inputs = tiny.inputs(3)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    model = tiny.make("Bert", is_decoder=decoder, use_cache=False)
    plain = looks(model)
    hk.attach(model)
    assert tiny.layers > 1 and looks(model) <= plain + 1
