"""The module around the gated feed-forward operator."""

import pytest
import torch
from feed_forward_problem import ACTIVATIONS
from torch import nn

import headkit as hk


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_module_is_its_linears(activation, gated):
    layer = hk.nn.FeedForward(6, 70, activation=activation, gated=gated)
    x = torch.randn(2, 5, 6)
    hidden = ACTIVATIONS[activation](layer.in_proj(x))
    if gated:
        hidden = hidden * layer.up_proj(x)
    torch.testing.assert_close(layer(x), layer.out_proj(hidden))
    closed = layer(x, gate=torch.zeros(layer.num_blocks))
    assert torch.equal(closed, layer.out_proj.bias.expand(2, 5, 6))


def test_from_linears_takes_the_modules_themselves():
    inner, outer, up = nn.Linear(6, 70), nn.Linear(70, 6, bias=False), nn.Linear(6, 70)
    layer = hk.nn.FeedForward.from_linears(inner, outer, up_proj=up, activation="silu")
    assert layer.in_proj is inner and layer.up_proj is up and layer.out_proj is outer
    layer(torch.randn(1, 2, 6), prefix=torch.tensor([1])).sum().backward()
    assert inner.weight.grad[:32].abs().sum() > 0
    assert inner.weight.grad[32:].abs().sum() == 0


def test_refusals():
    with pytest.raises(ValueError, match="activation gelu, gelu_tanh, relu, silu"):
        hk.nn.FeedForward(6, 8, activation="tanh")
    with pytest.raises(ValueError, match="block_size of at least 1"):
        hk.nn.FeedForward(6, 8, block_size=0)
    with pytest.raises(ValueError, match="num_neurons of at least 0"):
        hk.nn.FeedForward(6, -1)
    with pytest.raises(ValueError, match="projections between 6 and 8"):
        hk.nn.FeedForward.from_linears(nn.Linear(6, 8), nn.Linear(9, 6))
