"""Gradients of the gated attention operator."""

import pytest
import torch
from attention_problem import BACKENDS, CASES, NAMES, OPERATOR, Case, Problem, plain_attention

import headkit as hk


def gradients(problem, function, dtype, keywords, inputs):
    """Of a fixed random functional of the output, in the order of `inputs`."""
    leaves = {
        name: value.to(torch.float32 if name == "gate" and dtype != torch.float64 else dtype)
        .detach()
        .requires_grad_()
        for name, value in inputs.items()
    }
    weights = hk.AttentionWeights(
        *(leaves[n] for n in NAMES), **{f"{n}_bias": leaves[f"{n}_bias"] for n in NAMES}
    )
    extra = {n: leaves[n] for n in ("gate", "attn_bias", "dropped_output") if n in leaves}
    y = function(leaves["x"], weights, problem.heads, **keywords, **extra)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)
    return dict(zip(leaves, torch.autograd.grad(y, leaves.values(), direction), strict=True))


def gradient_inputs(problem, gate, **more):
    return {"x": problem.x, **problem.weights, **problem.biases, "gate": gate, **more}


def skipped(gate):
    return (gate == 0).all(1, keepdim=True).expand_as(gate) if gate.dim() == 3 else gate == 0


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("gate_dim", [1, 2, 3])
def test_gradients_are_those_of_the_reference(skip, dropout, gate_dim):
    problem = Problem(4, 7, 3, 5, seed=11)
    gate = problem.gate.double()
    gate[:, 1] = 0.0  # one head nowhere active
    gate = {1: gate[3], 2: gate, 3: gate[:, None, :] * (torch.rand(4, 7, 3) > 0.3)}[gate_dim]
    keywords = {
        "skip": skip,
        "dropout_p": dropout,
        "dropout_seed": 3,
        "is_causal": True,
        "key_padding_mask": problem.mask,
    }
    inputs = gradient_inputs(
        problem,
        gate,
        attn_bias=problem.attn_bias[..., :1],
        dropped_output=problem.dropped_output,
    )
    found = gradients(problem, hk.gated_attention, torch.float64, keywords, inputs)
    truth = gradients(problem, hk.reference_attention, torch.float64, keywords, inputs)
    if skip:
        closed = skipped(gate)
        assert closed.any() and (found["gate"][closed] == 0).all()
        truth["gate"][closed] = 0.0
        assert (found["q"][5:10] == 0).all()
    for name in inputs:
        torch.testing.assert_close(found[name], truth[name], msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", [*BACKENDS, "reference"])
def test_float32_gradients_are_as_exact_as_dense_torch(name, monkeypatch):
    problem = Problem(4, 35, 3, 8, seed=12)
    keywords = {"key_padding_mask": problem.mask}
    inputs = gradient_inputs(problem, problem.gate)
    truth = gradients(problem, hk.reference_attention, torch.float64, keywords, inputs)
    dense = gradients(problem, hk.reference_attention, torch.float32, keywords, inputs)
    monkeypatch.setenv("HEADKIT_BACKEND", name)
    found = gradients(problem, hk.gated_attention, torch.float32, keywords, inputs)
    truth["gate"] = truth["gate"] * (problem.gate != 0)
    dense["gate"] = dense["gate"] * (problem.gate != 0)
    for key, exact_value in truth.items():
        # The gradient of k_bias is 0 in theory: what is left of sums as large as those of q_bias.
        size = truth["q_bias" if key == "k_bias" else key].abs().max()
        floor = 2 * torch.finfo(torch.float32).eps * size
        allowed = 2 * (dense[key] - exact_value).abs().max() + floor
        assert (found[key] - exact_value).abs().max() <= allowed, key


def test_bfloat16_gradients_are_as_exact_as_dense_torch():
    problem = Problem(4, 35, 3, 8, seed=13)
    inputs = gradient_inputs(problem, problem.gate)
    truth = gradients(problem, hk.reference_attention, torch.float64, {}, inputs)
    dense = gradients(problem, hk.reference_attention, torch.bfloat16, {}, inputs)
    found = gradients(problem, hk.gated_attention, torch.bfloat16, {}, inputs)
    assert found["gate"].dtype == torch.float32 and found["x"].dtype == torch.bfloat16
    for key, exact_value in truth.items():
        if key == "gate":
            exact_value, dense[key] = (t * (problem.gate != 0) for t in (exact_value, dense[key]))
        size = truth["q_bias" if key == "k_bias" else key].abs().max()
        floor = 2 * torch.finfo(torch.bfloat16).eps * size
        allowed = 2 * (dense[key] - exact_value).abs().max() + floor
        assert (found[key] - exact_value).abs().max() <= allowed, key


def gradcheck_case(seed):
    problem = Problem(3, 4, 3, 2, width=5, seed=seed)
    gate = problem.gate.double()
    gate[0] = 0.0  # an empty sample
    gate[:, 1] = 0.0  # a head nowhere active
    return problem, gate


@pytest.mark.parametrize("causal, padded", [(False, True), (True, False)])
def test_gradcheck_in_mask_mode(causal, padded):
    problem, gate = gradcheck_case(14)
    leaves = [problem.x, *problem.weights.values(), *problem.biases.values(), gate]
    leaves += [problem.attn_bias[..., :1], problem.dropped_output]

    def function(x, q, k, v, o, qb, kb, vb, ob, g, bias, dropped):
        return OPERATOR(
            x, q, k, v, o, 3, q_bias=qb, k_bias=kb, v_bias=vb, o_bias=ob, gate=g, skip=False,
            attn_bias=bias, dropped_output=dropped, is_causal=causal,
            key_padding_mask=problem.mask if padded else None,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, [t.clone().requires_grad_() for t in leaves])


@pytest.mark.parametrize("seed", [15, 16])
def test_gradcheck_in_skip_mode(seed):
    # A gate of exactly 0 is a switch: finite differences see what skip mode leaves out, so only
    # the open gates vary here.
    problem, gate = gradcheck_case(seed)
    is_open = gate != 0

    def function(x, q, k, v, o, open_gates, dropped):
        full = torch.zeros_like(gate).masked_scatter(is_open, open_gates)
        return OPERATOR(
            x, q, k, v, o, 3, gate=full, dropped_output=dropped, key_padding_mask=problem.mask
        )

    leaves = [problem.x, *problem.weights.values(), gate[is_open], problem.dropped_output]
    assert torch.autograd.gradcheck(function, [t.clone().requires_grad_() for t in leaves])


def test_only_what_is_asked_for_gets_a_gradient():
    problem = Problem(2, 4, 3, 2)
    x, weights, heads = problem.arguments()
    gate = problem.gate.double().requires_grad_()
    y = hk.gated_attention(x, weights, heads, gate=gate)
    y.sum().backward()
    assert gate.grad is not None and x.grad is None
    with torch.no_grad():
        assert not hk.gated_attention(x, weights, heads, gate=gate).requires_grad
    with torch.inference_mode():
        assert hk.gated_attention(x, weights, heads, gate=gate).is_inference()


def test_differentiating_twice_is_a_clear_error():
    problem = Problem(2, 4, 3, 2)
    x, weights, heads = problem.arguments()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(
        hk.gated_attention(x, weights, heads).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"\[gated_attention\] expected to be differentiated"):
        gradient.sum().backward()


def test_weights_edited_in_place_are_noticed(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    attention = hk.nn.MultiHeadAttention(12, 3)
    x = torch.randn(2, 5, 12)
    optimiser = torch.optim.SGD(attention.parameters(), lr=0.02)
    for step in range(3):
        with torch.no_grad():
            before = attention(x)
            torch.testing.assert_close(before, hk.reference_attention(x, attention.weights(), 3))
        optimiser.zero_grad()
        attention(x).square().sum().backward()
        optimiser.step()
        with torch.no_grad():
            assert not torch.allclose(attention(x), before), step
    attention.q_proj.weight.data.mul_(2.0)
    hk.refresh()
    with torch.no_grad():
        truth = hk.reference_attention(x, attention.weights(), 3)
        torch.testing.assert_close(attention(x), truth)


# Every kind of attention.


def case_gradients(problem, function, dtype=torch.float64, gate=None, **keywords):
    """Of a fixed functional of the output, by name; a tensor that has no part gets zeros."""
    leaves = {
        name: tensor.to(dtype).detach().requires_grad_()
        for name, tensor in problem.tensors.items()
        if name not in Case.FIXED
    }
    inputs = dict(leaves)
    if gate is not None:
        inputs["gate"] = gate.to(torch.float64 if dtype == torch.float64 else torch.float32)
        inputs["gate"].requires_grad_()
        keywords["gate"] = inputs["gate"]
    y = problem.run(function, dtype, tensors=leaves, **keywords)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)
    found = torch.autograd.grad(y, inputs.values(), direction, allow_unused=True)
    return {
        name: torch.zeros_like(inputs[name]) if gradient is None else gradient
        for name, gradient in zip(inputs, found, strict=True)
    }


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("gated", ["dense", "head", "sample", "token"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_of_every_kind_are_those_of_plain_torch(case, gated, skip):
    problem = Case(**CASES[case])
    gate = problem.gates()[gated]
    found = case_gradients(problem, OPERATOR, gate=gate, skip=skip)
    truth = case_gradients(problem, plain_attention, gate=gate)
    if gate is not None and skip:
        truth["gate"] = truth["gate"].masked_fill(skipped(gate), 0.0)
    for name, exact in truth.items():
        torch.testing.assert_close(found[name], exact, atol=1e-11, rtol=0, msg=name)


@pytest.mark.parametrize("case", ["all, self", "all, cross"])
def test_gradients_through_dropout_are_those_of_the_reference(case, monkeypatch):
    problem = Case(**CASES[case])
    keywords = {"gate": problem.gate, "dropout_p": 0.25, "dropout_seed": 3}
    found = case_gradients(problem, OPERATOR, **keywords)
    monkeypatch.setenv("HEADKIT_BACKEND", "reference")
    for name, exact in case_gradients(problem, OPERATOR, **keywords).items():
        torch.testing.assert_close(found[name], exact, atol=1e-11, rtol=0, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ["grouped, masked", "all, self", "all, cross"])
def test_gradients_of_every_kind_are_as_exact_as_dense_torch(case, dtype):
    # The largest errors of several problems: one alone says little about a largest error.
    errors, dense_errors, sizes = {}, {}, {}
    for seed in range(4):
        problem = Case(**(CASES[case] | {"length": 17, "head_dim": 16, "seed": seed}))
        truth = case_gradients(problem, plain_attention, gate=problem.gate)
        found = case_gradients(problem, OPERATOR, dtype, gate=problem.gate)
        dense = case_gradients(problem, plain_attention, dtype, gate=problem.gate)
        for gradients in (truth, dense):
            gradients["gate"] = gradients["gate"].masked_fill(skipped(problem.gate), 0.0)
        for name, exact in truth.items():
            assert found[name].dtype == (torch.float32 if name == "gate" else dtype)
            for largest, value in (
                (errors, found[name] - exact),
                (dense_errors, dense[name] - exact),
                (sizes, exact),
            ):
                largest[name] = max(largest.get(name, 0.0), value.abs().max().item())
    sizes["k_bias"] = sizes["q_bias"]  # 0 in theory: what is left of sums as large as those
    for name, error in errors.items():
        allowed = 2 * dense_errors[name] + 2 * torch.finfo(dtype).eps * sizes[name]
        assert error <= allowed, name


GRADCHECKS = {
    "self": {
        "kv_heads": 2, "kv_head": [0, 1, 1, 1], "rotary": 2, "norms": True, "window": 2,
        "causal": True, "biased": True, "dropped": True,
    },
    "cross": {"kv_heads": 2, "norms": True, "source": 4, "masked": True, "dropped": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", GRADCHECKS)
def test_gradcheck_of_every_argument(kind):
    problem = Case(batch=2, length=3, heads=4, head_dim=3 - (kind == "self"), **GRADCHECKS[kind])
    gate = problem.gate.double()
    gate[1, 2:] = 1.0
    is_open = gate != 0
    names = [name for name in problem.tensors if name not in Case.FIXED]

    def function(open_gates, *leaves):
        full = torch.zeros_like(gate).masked_scatter(is_open, open_gates)
        return problem.run(tensors=dict(zip(names, leaves, strict=True)), gate=full)

    leaves = [gate[is_open], *(problem.tensors[name] for name in names)]
    assert torch.autograd.gradcheck(function, [t.clone().requires_grad_() for t in leaves])


def test_closed_heads_get_no_gradient_and_no_work():
    problem = Case(kv_heads=3, norms=True, rotary=4)
    gate = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0])  # KV head 1 nowhere active
    broken = {name: tensor.clone() for name, tensor in problem.tensors.items()}
    for name in ("k_weight", "v_weight", "k_bias", "v_bias"):
        broken[name][6:12] = torch.nan
    for name in ("q_weight", "q_bias"):
        broken[name][6:24] = torch.nan
    truth = case_gradients(problem, OPERATOR, gate=gate)
    problem.tensors = broken
    found = case_gradients(problem, OPERATOR, gate=gate)
    for name, exact in truth.items():
        assert torch.equal(found[name], exact), name
    assert (found["k_weight"][6:12] == 0).all() and (found["q_weight"][6:24] == 0).all()


def test_x_as_its_own_source_gets_both_gradients():
    problem = Case(kv_heads=2)
    width = problem.tensors["x"].shape[-1]
    one = problem.tensors["x"].clone().requires_grad_()
    other = problem.tensors["x"].clone().requires_grad_()
    assert problem.tensors["k_weight"].shape[1] == width
    problem.run(tensors={"x": one, "kv": one}).square().sum().backward()
    problem.run(tensors={"x": other}).square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
