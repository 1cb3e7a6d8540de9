"""The module around the gated attention operator."""

import inspect

import pytest
import torch
from attention_problem import OPERATOR, plain_attention
from torch import nn

import headkit as hk


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_from_torch_is_an_exact_copy(bias, dtype):
    torch.manual_seed(0)
    original = nn.MultiheadAttention(12, 3, bias=bias, dtype=dtype)
    if bias:
        nn.init.normal_(original.in_proj_bias)
        nn.init.normal_(original.out_proj.bias)
    copy = hk.nn.MultiHeadAttention.from_torch(original.eval())
    assert not copy.training
    weight = torch.cat([copy.q_proj.weight, copy.k_proj.weight, copy.v_proj.weight])
    assert torch.equal(weight, original.in_proj_weight)
    assert weight.data_ptr() != original.in_proj_weight.data_ptr()
    x = torch.randn(2, 5, 12, dtype=dtype)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]]).bool()
    truth, _ = original(*[x.transpose(0, 1)] * 3, key_padding_mask=~mask)
    torch.testing.assert_close(copy(x, key_padding_mask=mask), truth.transpose(0, 1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"add_bias_kv": True}, "add_bias_kv"),
        ({"add_zero_attn": True}, "add_zero_attn"),
        ({"kdim": 7}, "kdim=7"),
        ({"vdim": 8}, "vdim=8"),
    ],
)
def test_from_torch_refuses_what_we_do_not_have(options, message):
    with pytest.raises(ValueError, match=rf"\[MultiHeadAttention.from_torch\].*found .*{message}"):
        hk.nn.MultiHeadAttention.from_torch(nn.MultiheadAttention(12, 3, **options))


def test_the_module():
    torch.manual_seed(0)
    attention = hk.nn.MultiHeadAttention(10, 3, head_dim=4, bias=False, dtype=torch.float64)
    assert sorted(attention.state_dict()) == [f"{n}_proj.weight" for n in "koqv"]
    assert attention.q_proj.weight.shape == (12, 10) and attention.o_proj.weight.shape == (10, 12)
    assert attention.q_proj.weight.abs().max() <= (6 / 22) ** 0.5
    with_bias = hk.nn.MultiHeadAttention(12, 3)
    assert all((p.bias == 0).all() for p in with_bias.children())
    assert len(with_bias.state_dict()) == 8
    for arguments, message in [
        ({"embed_dim": 10, "num_heads": 3}, "divisible"),
        ({"embed_dim": 12, "num_heads": 3, "num_kv_heads": 2}, "num_kv_heads"),
        ({"embed_dim": 12, "num_heads": 3, "num_kv_heads": 0}, "num_kv_heads"),
        ({"embed_dim": -1, "num_heads": 3}, "at least 0"),
        ({"embed_dim": 12, "num_heads": 3, "dropout": 1.0}, "dropout"),
    ]:
        with pytest.raises(ValueError, match=rf"\[MultiHeadAttention\] expected .*{message}"):
            hk.nn.MultiHeadAttention(**arguments)
    with pytest.raises(ValueError, match=r"kv of shape \[B, S, Dk\]"):
        with_bias(torch.randn(2, 4, 12), kv=torch.randn(3, 4, 12))


def test_the_module_attends_to_another_source_with_grouped_queries():
    torch.manual_seed(0)
    attention = hk.nn.MultiHeadAttention(12, 6, num_kv_heads=2, dtype=torch.float64)
    assert attention.k_proj.weight.shape == (4, 12) and attention.v_proj.weight.shape == (4, 12)
    assert "num_kv_heads=2" in repr(attention)
    x, kv = torch.randn(2, 4, 12).double(), torch.randn(2, 7, 12).double()
    mask, gate = torch.rand(2, 7) > 0.3, torch.rand(2, 6).round()
    parameters = {
        name.replace("_proj.", "_"): value for name, value in attention.named_parameters()
    }
    positional = [parameters.pop(f"{n}_weight") for n in "qkvo"]
    truth = plain_attention(
        x, *positional, 6, num_kv_heads=2, kv=kv, gate=gate, key_padding_mask=mask, **parameters
    )
    found = attention(x, kv=kv, gate=gate, key_padding_mask=mask)
    torch.testing.assert_close(found, truth)


def test_dropout_of_the_module_is_for_training():
    attention = hk.nn.MultiHeadAttention(12, 3, dropout=0.5)
    x = torch.randn(2, 9, 12)
    torch.manual_seed(1)
    first = attention(x)
    assert not torch.allclose(first, attention(x))
    torch.manual_seed(1)
    assert torch.equal(first, attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


def test_the_schema_is_complete():
    schema = str(OPERATOR.default._schema)
    for name in inspect.signature(hk.nn.MultiHeadAttention.forward).parameters:
        assert name == "self" or name in schema
    for name in ("rotary_cos", "rotary_sin", "q_norm_weight", "k_norm_weight", "window"):
        assert name in schema
