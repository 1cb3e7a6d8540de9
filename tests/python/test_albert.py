"""ALBERT's layers share parameters, attached or not."""

import copy

import torch

import headkit as hk

from .families import FAMILIES, HEADS, result


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_layers_share_parameters_until_heads_are_removed(tmp_path):
    family = FAMILIES["ALBERT"]
    model = family.make()
    inputs = family.inputs(2, "right")
    count = sum(parameter.numel() for parameter in model.parameters())
    groups = model.config.num_hidden_groups
    gated = hk.attach(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert sum(value.numel() for _, value in gated.parameters()) == count
    assert model.config.num_hidden_groups == groups
    assert gated.attention(0).q is gated.attention(2).q
    with torch.no_grad():
        model.albert.encoder.albert_layer_groups[1].albert_layers[0].attention.query.bias.add_(1)
        changed = result(model, inputs)
        close(result(hk.detach(model), inputs), changed)
    assert len(model.albert.encoder.albert_layer_groups) == 1

    gated = hk.attach(model)
    keep = torch.ones(family.blocks, HEADS)
    keep[1, 2] = 0
    hk.apply(model, hk.HeadMask(keep))
    assert gated.attention(0).q is gated.attention(2).q
    assert len(gated.attention(1).q) < len(gated.attention(0).q)


def test_state_of_a_plain_model_loads_into_an_attached_one():
    family = FAMILIES["ALBERT with inner groups"]
    model, other = family.make(), family.make(seed=4)
    inputs = family.inputs(2, "right")
    hk.attach(model)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = result(other, inputs)
        model.load_state_dict(other.state_dict())
        close(result(model, inputs), expected)
    other.load_state_dict(before)
