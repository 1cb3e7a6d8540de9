"""ModernBERT's windows reach the operator as windows."""

import pytest
import torch

import headkit as hk
from headkit.huggingface import attention_block

from .families import FAMILIES, LAYERS


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_no_layer_is_given_a_matrix(attention, padding, monkeypatch):
    family = FAMILIES["ModernBERT"]
    model = family.make(attention)
    hk.attach(model)
    seen = []
    made = attention_block.operator_arguments

    def noted(*args):
        seen.append(made(*args))
        return seen[-1]

    monkeypatch.setattr(attention_block, "operator_arguments", noted)
    with torch.no_grad():
        model(**family.inputs(3, padding))
    assert [call.get("window") for call in seen] == [None] + [3] * (LAYERS - 1)
    assert all(call["attn_bias"] is None for call in seen)
    assert all((call["key_padding_mask"] is None) == (padding == "none") for call in seen)
