"""Keys and values apart from attention: project_kv and attend."""

import functools

import pytest
import torch
from attention_problem import (
    CASES,
    Case,
    plain_attend,
    plain_project_kv,
)

import headkit as hk

PROJECT_KV = torch.ops.headkit.project_kv
ATTEND = torch.ops.headkit.attend
OF_KEYS = ("k_bias", "v_bias", "rotary_cos", "rotary_sin", "k_norm_weight")


def project(case, function=PROJECT_KV, dtype=torch.float64, tensors=None, **more):
    """Of the keys and values of a case."""
    given = {n: t.to(dtype) for n, t in case.tensors.items()} | (tensors or {})
    keywords = {name: given[name] for name in OF_KEYS if name in given}
    return function(
        given.get("kv", given["x"]), given["k_weight"], given["v_weight"], case.kv_heads,
        norm_eps=case.settings["norm_eps"], **keywords, **more,
    )  # fmt: skip


def attend(case, k, v, function=ATTEND, dtype=torch.float64, tensors=None, **more):
    given = {n: t.to(dtype) for n, t in case.tensors.items()} | (tensors or {})
    for name in ("kv", "k_weight", "v_weight", "k_bias", "v_bias", "k_norm_weight"):
        given.pop(name, None)
    positional = [given.pop(name) for name in ("x", "q_weight", "o_weight")]
    settings = {n: s for n, s in case.settings.items() if n != "num_kv_heads"} | more
    x, q_weight, o_weight = positional
    return function(x, k, v, q_weight, o_weight, case.heads, **given, **settings)


def open_kv_heads(case, gate):
    """Where any query head is open, [B, Hkv]."""
    keep = torch.zeros(case.batch, case.kv_heads)
    for head, kv_head in enumerate(case.kv_head):
        keep[:, kv_head] += gate[:, head]
    return keep


@pytest.mark.parametrize("case", CASES)
def test_gated_attention_is_project_kv_then_attend(case):
    problem = Case(**CASES[case])
    k, v = project(problem)
    assert k.shape == v.shape == (problem.batch, problem.kv_heads, problem.keys, k.shape[-1])
    for found, truth in zip((k, v), project(problem, plain_project_kv), strict=True):
        torch.testing.assert_close(found, truth, atol=1e-12, rtol=0)
    for gate in problem.gates().values():
        together = problem.run(gate=gate)
        torch.testing.assert_close(attend(problem, k, v, gate=gate), together, atol=1e-13, rtol=0)
    of_open_heads = project(problem, gate=open_kv_heads(problem, problem.gate))
    together = problem.run(gate=problem.gate)
    found = attend(problem, *of_open_heads, gate=problem.gate)
    torch.testing.assert_close(found, together, atol=1e-13, rtol=0)


def test_a_closed_kv_head_is_zero_and_not_computed():
    problem = Case(kv_heads=3, norms=True, rotary=4)
    truth = project(problem, plain_project_kv)
    broken = {name: problem.tensors[name].clone() for name in ("k_weight", "v_bias")}
    broken["k_weight"][6:12] = torch.nan
    broken["v_bias"][6:12] = torch.nan
    for gate in (torch.tensor([1.0, 0.0, -0.5]), torch.ones(3, 3) * torch.tensor([2.0, 0.0, 1.0])):
        for found, expected in zip(project(problem, gate=gate, tensors=broken), truth, strict=True):
            assert (found[:, 1] == 0).all()
            torch.testing.assert_close(found[:, ::2], expected[:, ::2], atol=1e-12, rtol=0)
    by_sample = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    for found, expected in zip(project(problem, gate=by_sample), truth, strict=True):
        masked = expected * by_sample[..., None, None]
        torch.testing.assert_close(found, masked, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_head", [None, [0, 0, 0, 1, 2, 2]])
def test_tokens_one_by_one_equal_all_at_once(window, kv_head):
    problem = Case(
        length=7, kv_heads=3, kv_head=kv_head, rotary=4, norms=True, causal=True, window=window
    )
    together = problem.run(gate=problem.gate)
    k, v = project(problem)
    chunks = ((0, 3), (3, 4), (4, 5), (5, 7))
    for held in (None, 9):  # a cache that grows, and one of fixed size whose end is not filled yet
        for first, last in chunks:
            cache = [t[:, :, :last] for t in (k, v)]
            if held:
                cache = [
                    torch.cat(
                        [t, torch.full_like(t[:, :, :1], 1e3).expand(-1, -1, held - last, -1)], 2
                    )
                    for t in cache
                ]
            tensors = {"x": problem.tensors["x"][:, first:last]}
            tensors |= {n: problem.tensors[n][:, first:last] for n in Case.FIXED}
            found = attend(problem, *cache, tensors=tensors, query_offset=first, gate=problem.gate)
            torch.testing.assert_close(found, together[:, first:last], atol=1e-12, rtol=0)


@pytest.mark.parametrize("gate", [None, "sample"])
@pytest.mark.parametrize("offset, length", [(0, 1), (4, 1), (8, 1), (3, 4), (0, 9), (20, 2)])
def test_attend_to_given_keys_equals_plain_torch(offset, length, gate):
    problem = Case(length=length, kv_heads=2, rotary=6, seed=3)
    k, v = torch.randn(2, 3, 2, 9, 6, dtype=torch.float64)
    gate = problem.gate if gate else None
    mask = torch.rand(3, 9) > 0.3
    for window in (None, 1, 4):
        for causal in (False, True):
            for padding in (None, mask):
                keywords = {"window": window, "is_causal": causal, "query_offset": offset}
                keywords |= {"gate": gate, "key_padding_mask": padding}
                found = attend(problem, k, v, **keywords)
                truth = attend(problem, k, v, plain_attend, **keywords)
                torch.testing.assert_close(found, truth, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_decoding_is_as_exact_as_dense_torch(dtype):
    problem = Case(length=1, heads=6, head_dim=16, kv_heads=2, rotary=16, seed=4)
    k, v = torch.randn(2, 3, 2, 257, 16, dtype=torch.float64)
    mask = torch.rand(3, 257) > 0.2
    truth = attend(problem, k, v, plain_attend, key_padding_mask=mask)
    narrow = {"k": k.to(dtype), "v": v.to(dtype), "dtype": dtype, "key_padding_mask": mask}
    dense = attend(problem, function=plain_attend, **narrow)
    allowed = 2 * (dense - truth).abs().max() + 2 * torch.finfo(dtype).eps * truth.abs().max()
    assert (attend(problem, **narrow) - truth).abs().max() <= allowed


def largest_allocation(function):
    """In bytes, of any operator within a call."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return max(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_head", [None, [0, 0, 0, 1, 2, 2], [2, 0, 1, 0, 2, 2]], ids=str)
def test_given_keys_are_not_copied(kv_head, dtype):
    problem = Case(length=1, kv_heads=3, kv_head=kv_head)
    k, v = torch.randn(2, 3, 3, 3000, 6, dtype=dtype)
    assert largest_allocation(k.clone) >= k.nbytes
    for settings in ({}, {"is_causal": True, "query_offset": 2000}, {"window": 40}):
        step = functools.partial(attend, problem, k, v, dtype=dtype, **settings)
        assert largest_allocation(step) < k.nbytes / 8


PROJECT_ERRORS = {
    r"kv of shape \[B, S, Dk\]": {"kv": torch.randn(4, 6)},
    "kv of dtype": {"kv": torch.ones(2, 4, 6, dtype=torch.int32)},
    "num_kv_heads >= 0": {"num_kv_heads": -1},
    r"k_weight of shape \[Hkv \* dh, Dk\]; found shape \[6, 6\] with Hkv = 4": {"num_kv_heads": 4},
    "v_weight of shape": {"v_weight": torch.randn(5, 6)},
    "v_weight of the dtype of kv": {"v_weight": torch.randn(6, 6).double()},
    r"k_bias of shape \[Hkv \* dh\]": {"k_bias": torch.randn(5)},
    r"gate of shape \[Hkv\] or \[B, Hkv\]": {"gate": torch.ones(4)},
    "gate of .* floating dtype": {"gate": torch.ones(3, dtype=torch.bool)},
    r"rotary_cos of shape \[B or 1, S, dr\]": {
        "rotary_cos": torch.randn(1, 5, 2), "rotary_sin": torch.randn(1, 5, 2),
    },
    "rotary_cos and rotary_sin together": {"rotary_cos": torch.randn(1, 4, 2)},
    r"k_norm_weight of shape \[dh\]": {"k_norm_weight": torch.ones(3)},
    "norm_eps of at least 0": {"norm_eps": float("nan")},
}  # fmt: skip


@pytest.mark.parametrize("message, changes", PROJECT_ERRORS.items(), ids=PROJECT_ERRORS)
def test_errors_of_project_kv(message, changes):
    call = {"kv": torch.randn(2, 4, 6), "k_weight": torch.randn(6, 6)}
    call |= {"v_weight": torch.randn(6, 6), "num_kv_heads": 3} | changes
    with pytest.raises(ValueError, match=rf"^\[project_kv\] expected .*{message}"):
        PROJECT_KV(**call)


ATTEND_ERRORS = {
    r"x of shape \[B, T, D\]": {"x": torch.randn(4, 6)},
    r"k of shape \[B, Hkv, S, dh\]": {"k": torch.randn(2, 3, 5)},
    r"k of shape \[B, Hkv, S, dh\]; found shape \[1, ": {"k": torch.randn(1, 3, 5, 2)},
    r"v of shape \[B, Hkv, S, dh\]": {"v": torch.randn(2, 3, 4, 2)},
    "v of the dtype of x": {"v": torch.randn(2, 3, 5, 2).double()},
    "num_heads divisible": {"k": torch.randn(2, 2, 5, 2), "v": torch.randn(2, 2, 5, 2)},
    r"every kv_head in \[0, Hkv\)": {"kv_head": [0, 1, 3]},
    r"key_padding_mask \(true = attend\) of shape \[B, S\]": {
        "key_padding_mask": torch.ones(2, 4, dtype=torch.bool)
    },
    r"attn_bias broadcastable to \[B, H, T, S\]": {"attn_bias": torch.randn(4, 4)},
    r"o_weight of shape \[D, H \* dh\]": {"o_weight": torch.randn(6, 4)},
    "query_offset of at least 0": {"query_offset": -1},
    "finite gates": {"gate": torch.tensor([1.0, torch.nan, 0.0])},
}


@pytest.mark.parametrize("message, changes", ATTEND_ERRORS.items(), ids=ATTEND_ERRORS)
def test_errors_of_attend(message, changes):
    call = {"x": torch.randn(2, 4, 6), "k": torch.randn(2, 3, 5, 2), "v": torch.randn(2, 3, 5, 2)}
    call |= {"q_weight": torch.randn(6, 6), "o_weight": torch.randn(6, 6), "num_heads": 3} | changes
    with pytest.raises(ValueError, match=rf"^\[attend\] expected .*{message}"):
        ATTEND(**call)


def test_head_contexts_of_given_keys_make_the_output():
    problem = Case(length=2, kv_heads=2, rotary=4, causal=True)
    k, v = torch.randn(2, 3, 2, 9, 6, dtype=torch.float64)
    tensors = problem.tensors
    context = hk._C.head_contexts(
        tensors["x"], tensors["q_weight"], None, None, tensors["o_weight"], 6, k=k, v=v,
        q_bias=tensors["q_bias"], is_causal=True, query_offset=5,
        rotary_cos=tensors["rotary_cos"], rotary_sin=tensors["rotary_sin"],
    )  # fmt: skip
    output = context.flatten(2) @ tensors["o_weight"].T + tensors["o_bias"]
    truth = attend(problem, k, v, plain_attend, query_offset=5)
    torch.testing.assert_close(output, truth, atol=1e-12, rtol=0)
    for name in ("kv", "num_kv_heads", "k_norm_weight"):
        value = 2 if name == "num_kv_heads" else tensors["x"]
        with pytest.raises(ValueError, match=rf"\[attend\] expected {name} to be unset"):
            hk.reference_attention(
                tensors["x"], hk.AttentionWeights(*[tensors["q_weight"]] * 3, tensors["o_weight"]),
                6, k=k, v=v, **{name: value},
            )  # fmt: skip


# Gradients.


@pytest.mark.parametrize("case", ["grouped, masked", "uneven map", "all, self", "all, cross"])
@pytest.mark.parametrize("gated", ["dense", "head", "sample", "token"])
def test_gradients_equal_those_of_plain_torch(case, gated):
    problem = Case(**CASES[case])
    gate = problem.gates()[gated]

    def gradients(one, two):
        leaves = {n: t.clone().requires_grad_() for n, t in problem.tensors.items()}
        g = None if gate is None else gate.double().requires_grad_()
        k, v = project(problem, one, tensors=leaves)
        k.retain_grad(), v.retain_grad()
        y = attend(problem, k, v, two, tensors=leaves, gate=g)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y))
        found = {n: t.grad for n, t in leaves.items() if n not in Case.FIXED}
        return found | {"k": k.grad, "v": v.grad} | ({} if g is None else {"gate": g.grad})

    found = gradients(PROJECT_KV, ATTEND)
    truth = gradients(plain_project_kv, plain_attend)
    for name, exact in truth.items():
        if exact is None:  # dropped_output without a gate
            exact = torch.zeros_like(problem.tensors[name])
        if name == "gate":
            is_closed = gate == 0
            if gate.dim() == 3:
                is_closed = is_closed.all(1, keepdim=True).expand_as(gate)
            exact = exact.masked_fill(is_closed, 0.0)
        torch.testing.assert_close(found[name], exact, atol=1e-11, rtol=0, msg=name)


@pytest.mark.parametrize("gated", [False, True])
def test_gradcheck_of_project_kv(gated):
    problem = Case(batch=2, length=3, heads=2, head_dim=4, kv_heads=2, rotary=2, norms=True)
    names = ["x", "k_weight", "v_weight", "k_bias", "v_bias", "k_norm_weight"]
    gate = torch.tensor([[1.0, 0.0], [1.0, 1.0]]) if gated else None

    def function(*leaves):
        return project(problem, tensors=dict(zip(names, leaves, strict=True)), gate=gate)

    leaves = [problem.tensors[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves)


def test_gradcheck_of_attend():
    problem = Case(
        batch=2, length=3, heads=4, head_dim=4, kv_heads=2, kv_head=[0, 1, 1, 1], rotary=2,
        norms=True, window=3, causal=True, biased=True, dropped=True,
    )  # fmt: skip
    k, v = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64)
    names = ["x", "q_weight", "o_weight", "q_bias", "o_bias", "q_norm_weight", "attn_bias"]
    names.append("dropped_output")
    gate = problem.gate.double()
    is_open = gate != 0

    def function(k, v, open_gates, *leaves):
        full = torch.zeros_like(gate).masked_scatter(is_open, open_gates)
        return attend(problem, k, v, tensors=dict(zip(names, leaves, strict=True)), gate=full)

    leaves = [k, v, gate[is_open], *(problem.tensors[name] for name in names)]
    assert torch.autograd.gradcheck(function, [t.clone().requires_grad_() for t in leaves])


def test_the_gate_of_project_kv_gets_no_gradient():
    problem = Case(kv_heads=2)
    gate = torch.ones(2, requires_grad=True)
    assert not any(t.requires_grad for t in project(problem, gate=gate))


def test_differentiating_twice_is_a_clear_error():
    problem = Case(kv_heads=2)
    x = problem.tensors["x"].clone().requires_grad_()
    k, v = project(problem, tensors={"x": x})
    (gradient,) = torch.autograd.grad(k.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"\[project_kv\] expected to be differentiated once"):
        gradient.sum().backward()
    y = attend(problem, k.detach(), v.detach(), tensors={"x": x})
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"\[attend\] expected to be differentiated once"):
        gradient.sum().backward()


# PyTorch's own machinery.


def leaves_of(problem, dtype=torch.float64):
    return {
        name: tensor.to(dtype).requires_grad_(name not in Case.FIXED)
        for name, tensor in problem.tensors.items()
    }


def test_opcheck_of_project_kv():
    problem = Case(batch=2, length=3, heads=4, kv_heads=2, rotary=4, norms=True)
    given = leaves_of(problem)
    keywords = {name: given[name] for name in OF_KEYS} | {"gate": torch.tensor([1.0, 0.0])}
    positional = (given["x"], given["k_weight"], given["v_weight"], 2)
    torch.library.opcheck(PROJECT_KV.default, positional, keywords)


def test_opcheck_of_attend():
    problem = Case(
        batch=2, length=3, heads=4, kv_heads=2, kv_head=[1, 0, 0, 1], rotary=4, norms=True,
        window=2, causal=True, masked=True, biased=True, dropped=True,
    )  # fmt: skip
    k, v = (torch.randn(2, 2, 3, 6, dtype=torch.float64, requires_grad=True) for _ in "kv")
    given = leaves_of(problem)
    names = ("q_bias", "o_bias", "rotary_cos", "rotary_sin", "q_norm_weight", "attn_bias")
    keywords = {name: given[name] for name in (*names, "dropped_output")}
    keywords |= {n: s for n, s in problem.settings.items() if n != "num_kv_heads"}
    keywords |= {"gate": problem.gate.double().requires_grad_(), "query_offset": 1}
    positional = (given["x"], k, v, given["q_weight"], given["o_weight"], 4)
    torch.library.opcheck(ATTEND.default, positional, keywords)


def test_a_step_of_decoding_compiles_once():
    problem = Case(length=1, kv_heads=2, causal=True)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def step(k, v, offset):
        return attend(problem, k, v, query_offset=offset)

    k, v = torch.randn(2, 3, 2, 12, 6, dtype=torch.float64)
    for offset in (2, 3, 4, 5, 6):
        torch.testing.assert_close(step(k, v, offset), attend(problem, k, v, query_offset=offset))
    assert counter.frame_count <= 2


def test_autocast_casts_caches_too():
    problem = Case(kv_heads=2, rotary=4, norms=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        k, v = project(problem, dtype=torch.float32)
        assert k.dtype == v.dtype == torch.bfloat16
        y = attend(problem, k.float(), v, dtype=torch.float32, gate=problem.gate)
    assert y.dtype == torch.bfloat16
    truth = problem.run(torch.ops.headkit.gated_attention, gate=problem.gate)
    assert (y - truth).abs().max() <= 0.1 * truth.abs().max()


@pytest.mark.parametrize("names", ["x", "k v", "x k v gate", "q_weight", "rotary_cos rotary_sin"])
def test_vmap_of_attend_equals_a_loop(names):
    problem = Case(length=2, kv_heads=2, rotary=4, masked=False)
    k, v = torch.randn(2, 3, 2, 9, 6, dtype=torch.float64)
    fixed = problem.tensors | {"k": k, "v": v, "gate": problem.gate}
    names = names.split()
    mapped = [torch.randn(4, *fixed[name].shape).to(fixed[name].dtype) for name in names]

    def function(*values):
        given = dict(zip(names, values, strict=True))
        keys = given.pop("k", k), given.pop("v", v)
        gate = given.pop("gate", problem.gate)
        return attend(problem, *keys, tensors=given, gate=gate, is_causal=True, query_offset=3)

    found = torch.vmap(function)(*mapped)
    truth = torch.stack([function(*(m[i] for m in mapped)) for i in range(4)])
    torch.testing.assert_close(found, truth)


def test_vmap_of_project_kv_equals_a_loop():
    problem = Case(kv_heads=2, rotary=4, norms=True)
    names = ("x", "k_weight", "rotary_cos")
    mapped = [torch.randn(4, *problem.tensors[name].shape).double() for name in names]
    function = lambda *values: project(problem, tensors=dict(zip(names, values, strict=True)))
    found = torch.vmap(function)(*mapped)
    for i in range(4):
        for a, b in zip(found, function(*(m[i] for m in mapped)), strict=True):
            torch.testing.assert_close(a[i], b)

    leaf = problem.tensors["x"].clone().requires_grad_()
    k, _ = project(problem, tensors={"x": leaf})
    several = torch.randn(4, *k.shape, dtype=k.dtype)
    backward = lambda d: torch.autograd.grad(k, leaf, d, retain_graph=True)[0]
    found = torch.vmap(backward)(several)
    torch.testing.assert_close(found, torch.stack([backward(d) for d in several]))
