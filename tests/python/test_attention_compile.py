"""The gated attention operator under PyTorch's own machinery: opcheck, compile, export, vmap."""

import pytest
import torch
from attention_problem import CASES, OPERATOR, Case, Problem

import headkit as hk


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(dtype):
    problem = Problem(2, 4, 3, 2)
    keywords = {name: value.to(dtype).requires_grad_() for name, value in problem.biases.items()}
    keywords |= {
        "gate": problem.gate.to(dtype).requires_grad_(),
        "key_padding_mask": problem.mask,
        "attn_bias": problem.attn_bias.to(dtype).requires_grad_(),
        "dropped_output": problem.dropped_output.to(dtype).requires_grad_(),
    }
    arguments = [problem.x.to(dtype).requires_grad_()]
    arguments += [w.to(dtype).requires_grad_() for w in problem.weights.values()]
    torch.library.opcheck(OPERATOR.default, (*arguments, 3), keywords)


def test_opcheck_of_the_backward():
    problem = Problem(2, 4, 3, 2)
    wanted = [n in (0, 4, 5, 6, 7, 12) for n in range(17)]  # x, weights, gate
    torch.library.opcheck(
        torch.ops.headkit.gated_attention_backward.default,
        (problem.x, problem.x, *problem.weights.values(), 3),
        {"gate": problem.gate.double(), "output_mask": wanted},
    )


@pytest.mark.parametrize("case", ["all, self", "all, cross"])
def test_opcheck_of_every_kind(case):
    problem = Case(**(CASES[case] | {"batch": 2, "length": 3, "rotary_batch": 2}))
    given = {n: t.clone().requires_grad_(n not in Case.FIXED) for n, t in problem.tensors.items()}
    positional = [given.pop(name) for name in Case.POSITIONAL]
    keywords = given | problem.settings | {"gate": problem.gate.double().requires_grad_()}
    torch.library.opcheck(OPERATOR.default, (*positional, problem.heads), keywords)


@pytest.mark.parametrize(
    "case", ["cross", "grouped", "uneven map", "rotary", "norms", "window, causal", "all, self"]
)
def test_every_kind_compiles_forward_and_backward(case):
    torch._dynamo.reset()
    problem = Case(**CASES[case])
    names = [name for name in problem.tensors if name not in Case.FIXED]

    def function(gate, *leaves):
        return problem.run(tensors=dict(zip(names, leaves, strict=True)), gate=gate)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    gate = problem.gate.double().requires_grad_()
    inputs = [gate, *(problem.tensors[name].clone().requires_grad_() for name in names)]
    found, truth = (
        torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (compiled, function)
    )
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_forward_and_backward_equal_eager():
    torch.manual_seed(0)
    attention = hk.nn.MultiHeadAttention(12, 3)
    compiled = torch.compile(attention, fullgraph=True)
    for batch, length in ((2, 5), (3, 9), (4, 6)):  # the second size makes the sizes symbolic
        x = torch.randn(batch, length, 12, requires_grad=True)
        gate = torch.rand(batch, 3).round().requires_grad_()
        found, truth = (
            torch.autograd.grad(
                function(x, gate=gate).square().sum(), [x, gate, *attention.parameters()]
            )
            for function in (compiled, attention)
        )
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, gate=gate), attention(x, gate=gate))


def test_export_keeps_batch_and_length_dynamic():
    attention = hk.nn.MultiHeadAttention(12, 3).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    exported = torch.export.export(
        attention,
        (torch.randn(2, 5, 12),),
        {"gate": torch.ones(2, 3)},
        dynamic_shapes={"x": {0: batch, 1: length}, "gate": {0: batch}},
    )
    x, gate = torch.randn(4, 9, 12), torch.rand(4, 3).round()
    assert torch.equal(exported.module()(x, gate=gate), attention(x, gate=gate))


def test_autocast_casts_everything_but_the_gate():
    problem = Problem(2, 9, 3, 8, seed=17)
    x = problem.x.float().requires_grad_()
    weights = problem.value(torch.float32)
    gate = torch.tensor([[1.0, 1.0 + 2**-12, 0.0], [0.5, 0.0, 1.0]], requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = hk.gated_attention(x, weights, 3, gate=gate)
        rounded = hk.gated_attention(x, weights, 3, gate=gate.detach().bfloat16())
    assert y.dtype == rounded.dtype == torch.bfloat16
    truth = problem.run(hk.reference_attention, gate=gate.detach())
    dense = problem.run(hk.reference_attention, torch.bfloat16, gate=gate.detach())
    assert (y - truth).abs().max() <= 2 * (dense - truth).abs().max() + 0.02 * truth.abs().max()
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and gate.grad.dtype == torch.float32


VMAP_CASES = {
    "everything by sample": ("x gate mask bias", (0, 0, 0, 0)),
    "gates only": ("gate", (1,)),
    "one gate for all samples": ("head_gate bias", (1, 0)),
    "weights": ("x q", (0, 0)),
}
KIND_VMAPS = {
    "all, self": ["x", "q_norm_weight", "rotary_cos rotary_sin", "x k_weight"],
    "all, cross": ["x", "kv", "x kv", "k_norm_weight kv"],
    "rotary": ["x", "rotary_cos rotary_sin"],
}


@pytest.mark.parametrize(
    "case, names", [(c, n) for c, several in KIND_VMAPS.items() for n in several]
)
def test_vmap_of_every_kind_equals_a_loop(case, names):
    torch.manual_seed(0)
    problem = Case(**CASES[case])
    names = names.split()
    inputs = [torch.randn(4, *problem.tensors[name].shape).double() for name in names]

    def function(*values):
        return problem.run(tensors=dict(zip(names, values, strict=True)), gate=problem.gate)

    found = torch.vmap(function)(*inputs)
    truth = torch.stack([function(*(value[i] for value in inputs)) for i in range(4)])
    torch.testing.assert_close(found, truth)


@pytest.mark.parametrize("names, dims", VMAP_CASES.values(), ids=VMAP_CASES)
def test_vmap_equals_a_loop(names, dims):
    torch.manual_seed(0)
    fixed = {
        "x": torch.randn(2, 4, 6).double(),
        "q": torch.randn(6, 6).double(),
        "gate": torch.rand(2, 3).round(),
        "head_gate": None,
        "mask": torch.rand(2, 4) > 0.3,
        "bias": torch.randn(3, 4, 4).double(),
    }
    mapped = {
        "x": torch.randn(5, 2, 4, 6).double(),
        "q": torch.randn(5, 6, 6).double(),
        "gate": torch.rand(5, 2, 3).round(),
        "head_gate": torch.rand(5, 3).round(),
        "mask": torch.rand(5, 2, 4) > 0.3,
        "bias": torch.randn(5, 4).double(),
    }
    weights = torch.randn(3, 6, 6).double()
    names = names.split()

    def function(*values):
        given = fixed | dict(zip(names, values, strict=True))
        gate = given["gate"] if given["head_gate"] is None else given["head_gate"]
        return OPERATOR(
            given["x"], given["q"], *weights, 3, gate=gate, key_padding_mask=given["mask"],
            attn_bias=given["bias"],
        )  # fmt: skip

    inputs = [mapped[name].movedim(0, dim) for name, dim in zip(names, dims, strict=True)]
    found = torch.vmap(function, in_dims=dims)(*inputs)
    truth = torch.stack([function(*(mapped[name][i] for name in names)) for i in range(5)])
    torch.testing.assert_close(found, truth)


def test_gradients_through_vmap_are_right():
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    gate = torch.rand(3, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 6, 6, dtype=torch.float64, requires_grad=True)
    function = lambda x, gate: OPERATOR(x, *weights, 3, gate=gate)
    inputs = [x, gate, weights]
    mapped = torch.vmap(function)(x, gate)
    looped = torch.stack([function(x[i], gate[i]) for i in range(3)])
    direction = torch.randn_like(mapped)
    found = torch.autograd.grad(mapped, inputs, direction)
    truth = torch.autograd.grad(looped, inputs, direction, retain_graph=True)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, b)

    several = torch.randn(4, *looped.shape, dtype=torch.float64)
    backward = lambda d: torch.autograd.grad(looped, inputs, d, retain_graph=True)
    found = torch.vmap(backward)(several)
    for i in range(4):
        for a, b in zip(found, backward(several[i]), strict=True):
            torch.testing.assert_close(a[i], b)


def test_functorch_grad_is_a_clear_error():
    # PyTorch refuses functions with a C++ backward there; silent zeros would be the alternative.
    weights = torch.randn(4, 6, 6)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: OPERATOR(x, *weights, 3).sum())(torch.randn(2, 4, 6))
