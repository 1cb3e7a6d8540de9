"""What only some decoders and encoder-decoders have."""

import pytest
import torch

import headkit as hk

from .families import FAMILIES, HEAD_DIM, HEADS, result


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def uneven(family):
    """Two heads of every block, others in each."""
    keep = torch.ones(family.blocks, HEADS)
    for block in range(family.blocks):
        keep[block, [block % HEADS, (block + 1) % HEADS]] = 0
    return keep


@pytest.mark.parametrize("name", ["GPT-2"])
def test_a_pruned_model_runs_by_its_own_code(name):
    family = FAMILIES[name]
    model, twin = family.make(), family.make()
    inputs = family.inputs(2, family.paddings[-1])
    hk.attach(model)
    hk.attach(twin)
    with torch.no_grad(), hk.gates(twin, uneven(family)):
        expected = result(twin, inputs)
        hk.apply(model, uneven(family))
        close(result(hk.detach(model), inputs), expected)


def test_gpt2_says_its_sizes_after_removal():
    family = FAMILIES["GPT-2"]
    model = family.make()
    hk.attach(model)
    hk.apply(model, uneven(family))
    block = model.transformer.h[0].attn
    kept = 2 * HEAD_DIM
    assert (block.c_attn.nf, block.c_proj.nx, block.split_size, block.num_heads) == (
        3 * kept,
        kept,
        kept,
        2,
    )


def test_gpt2_scales_scores_by_layer():
    family = FAMILIES["GPT-2"]
    model = family.make()
    for number, layer in enumerate(model.transformer.h):
        layer.attn.scaling /= number + 1
    inputs = family.inputs(2, "right")
    with torch.no_grad():
        expected = result(model, inputs)
        hk.attach(model)
        close(result(model, inputs), expected)


def test_gpt2_with_scores_in_float32_is_refused():
    model = FAMILIES["GPT-2"].make()
    model.transformer.h[1].attn.reorder_and_upcast_attn = True
    with pytest.raises(ValueError, match="found GPT2Attention with reorder_and_upcast_attn at"):
        hk.attach(model)
