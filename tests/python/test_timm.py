"""Attention of timm's vision transformers: masks, and relatives that compute more."""

import pytest
import torch
from torch import nn

import headkit as hk

from .families import HEADS, WIDTH, pixels, randomise
from .hand_built import TimmAttention, TimmVisionTransformer

TOKENS = 4


def made(**options):
    model = TimmVisionTransformer(**options).eval()
    randomise(model)
    return model


def test_masks_equal_those_of_the_original():
    generator = torch.Generator().manual_seed(0)
    inputs = pixels(3, "none")
    square = torch.randn(TOKENS, TOKENS, generator=generator)
    keys = torch.ones(3, 1, 1, TOKENS, dtype=torch.bool)
    keys[1, ..., 2:] = False
    heads = torch.randn(3, HEADS, TOKENS, TOKENS, generator=generator)
    model = made()
    with torch.no_grad():
        for mask in (square, (square > 0) | torch.eye(TOKENS, dtype=torch.bool), keys, heads):
            expected = model(**inputs, attn_mask=mask)
            hk.attach(model)
            found = model(**inputs, attn_mask=mask)
            hk.detach(model)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        x = torch.randn(2, TOKENS, WIDTH, generator=generator)
        attention = model.blocks[0].attn
        expected = attention(x, is_causal=True)
        hk.attach(model)
        torch.testing.assert_close(attention(x, is_causal=True), expected, atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match="attn_mask or is_causal"):
            attention(x, square, is_causal=True)


@pytest.mark.parametrize(
    ("name", "part", "reason"),
    [
        ("norm", nn.LayerNorm(WIDTH), "a norm before its output projection"),
        ("gate", nn.Linear(WIDTH, WIDTH), "modules gate"),
        ("q_norm", nn.LayerNorm(6), "LayerNorm and Identity"),
        ("relative", nn.Embedding(9, HEADS), "modules relative"),
    ],
)
def test_what_computes_more_is_refused(name, part, reason):
    model = made()
    attention = model.blocks[1].attn
    if name in vars(attention):
        delattr(attention, name)
    setattr(attention, name, part)
    with pytest.raises(ValueError, match=f"found TimmAttention with .*{reason}"):
        hk.attach(model)


class OlderAttention(TimmAttention):
    """Heads are as wide together as the input."""

    def __init__(self):
        super().__init__(norms=False)
        del self.attn_dim

    def forward(self, x, attn_mask=None):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        context = nn.functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        return self.proj(context.transpose(1, 2).reshape(batch, tokens, width))


def test_older_attention_stays_attached_when_pruned():
    model = TimmVisionTransformer().eval()
    for block in model.blocks:
        block.attn = OlderAttention()
    randomise(model)
    inputs = pixels(2, "none")
    keep = torch.ones(3, HEADS)
    keep[1, 2] = 0
    with torch.no_grad():
        expected = model(**inputs)
        hk.attach(model)
        torch.testing.assert_close(model(**inputs), expected, atol=1e-5, rtol=0)
        with hk.gates(model, keep):
            expected = model(**inputs)
        hk.apply(model, keep)
        with pytest.raises(ValueError, match="found 3 of 4 heads"):
            hk.detach(model)
        torch.testing.assert_close(model(**inputs), expected, atol=1e-5, rtol=0)
