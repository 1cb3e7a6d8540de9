"""The gated feed-forward operator under PyTorch's machinery: opcheck, compile, vmap, autocast."""

import pytest
import torch
from feed_forward_problem import OPERATOR, Layer, plain_feed_forward


def small_layer(**fixed):
    sizes = {"batch": 2, "length": 3, "width": 5, "neurons": 9, "block_size": 4}
    rest = {"gated": True, "biases": True, "dropped": True, "gate": "soft"}
    return Layer(3, **(sizes | rest | fixed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(dtype):
    layer = small_layer()
    given = {name: value.requires_grad_() for name, value in layer.cast(dtype).items()}
    positional = [given.pop(name) for name in ("x", "in_weight", "out_weight")]
    torch.library.opcheck(OPERATOR.default, positional, given | layer.settings)


def test_opcheck_with_a_prefix():
    layer = small_layer(gate="prefix")
    given = layer.cast(torch.float32)
    positional = [given.pop(name) for name in ("x", "in_weight", "out_weight")]
    torch.library.opcheck(OPERATOR.default, positional, given | layer.settings)


def test_opcheck_of_the_backward():
    layer = small_layer(gated=False, dropped=False)
    given = layer.cast(torch.float32)
    positional = [given.pop(name) for name in ("x", "in_weight", "out_weight")]
    wanted = [number not in (5, 6, 8) for number in range(9)]
    torch.library.opcheck(
        torch.ops.headkit.gated_feed_forward_backward.default,
        (positional[0], *positional),
        given | layer.settings | {"output_mask": wanted},
    )


def test_opcheck_of_what_a_training_forward_calls():
    layer = small_layer(gate="none")
    given = {name: value.requires_grad_() for name, value in layer.cast(torch.float32).items()}
    positional = [given.pop(name) for name in ("x", "in_weight", "out_weight")]
    torch.library.opcheck(
        torch.ops.headkit.gated_feed_forward_keeping.default, positional, given | layer.settings
    )


@pytest.mark.parametrize("gate", ["none", "soft", "prefix"])
def test_compiles_forward_and_backward(gate):
    torch._dynamo.reset()
    layer = small_layer(gate=gate)
    names = list(layer.tensors)

    def function(*leaves):
        return layer.run(tensors=dict(zip(names, leaves, strict=True)))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    inputs = [layer.tensors[name].clone().requires_grad_() for name in names]
    found, truth = (
        torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (compiled, function)
    )
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other)


def test_is_differentiated_once():
    layer = small_layer()
    x = layer.tensors["x"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(layer.run(tensors={"x": x}).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


def test_autocast_casts_all_but_the_gate():
    layer = small_layer()
    given = layer.cast(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.run(dtype=torch.float32)
    assert found.dtype == torch.bfloat16
    tensors = {n: v if n == "gate" else v.bfloat16() for n, v in given.items()}
    assert torch.equal(found, layer.run(dtype=torch.float32, tensors=tensors))


@pytest.mark.parametrize("mapped", ["x", "gate", "in_weight", "dropped_output"])
def test_vmap_is_the_calls_one_by_one(mapped):
    layer = small_layer()
    values = torch.stack([layer.tensors[mapped], 0.5 * layer.tensors[mapped]], 1)

    def function(value):
        return layer.run(tensors={mapped: value})

    found = torch.vmap(function, in_dims=1)(values)
    truth = torch.stack([function(values[:, 0]), function(values[:, 1])])
    torch.testing.assert_close(found, truth)


def test_per_sample_gradients_by_vmap():
    layer = small_layer(gate="none")
    weight = layer.tensors["in_weight"].clone().requires_grad_()
    y = layer.run(tensors={"in_weight": weight})
    directions = torch.randn(3, *y.shape, dtype=y.dtype)

    def gradient(direction):
        return torch.autograd.grad(y, weight, direction, retain_graph=True)[0]

    found = torch.vmap(gradient)(directions)
    truth = torch.stack([gradient(direction) for direction in directions])
    torch.testing.assert_close(found, truth)


def test_float64_agrees_with_the_definition():
    layer = small_layer()
    torch.testing.assert_close(layer.run(), layer.run(plain_feed_forward))
