"""The gated attention operator: every backend against float64, gradients, PyTorch's own checks."""

import inspect
import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from torch import nn

import headkit as hk

OPERATOR = torch.ops.headkit.gated_attention
BACKENDS = ["cpu", "aten"]
NAMES = ["q", "k", "v", "o"]


class Problem:
    """A random layer and input in float64; `arguments` casts it."""

    def __init__(self, batch, length, heads, head_dim, width=None, *, seed=0, bias=True):
        generator = torch.Generator().manual_seed(seed)
        width = width or heads * head_dim + 3
        inner = heads * head_dim

        def normal(*shape, scale=1.0):
            return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

        self.heads, self.length, self.width = heads, length, width
        self.x = normal(batch, length, width)
        shapes = {name: (inner, width) for name in "qkv"} | {"o": (width, inner)}
        self.weights = {n: normal(*s, scale=max(1, s[1]) ** -0.5) for n, s in shapes.items()}
        self.biases = {f"{n}_bias": normal(s[0], scale=0.3) for n, s in shapes.items()}
        if not bias:
            self.biases = dict.fromkeys(self.biases)
        self.gate = torch.rand(batch, heads, generator=generator) + 0.5
        for row in self.gate:  # 0 to H heads open in each sample
            closed = torch.randint(heads + 1, (), generator=generator)
            row[torch.randperm(heads, generator=generator)[:closed]] = 0.0
        self.mask = torch.rand(batch, length, generator=generator) > 0.3
        if batch:
            self.mask[0] = False  # a sample without any admissible key
            self.mask[-1] = torch.arange(length) < max(1, length // 2)
        self.attn_bias = normal(1, heads, length, length)
        self.dropped_output = normal(heads, width)

    def value(self, dtype=torch.float64):
        cast = {n: None if t is None else t.to(dtype) for n, t in self.biases.items()}
        return hk.AttentionWeights(*(self.weights[n].to(dtype) for n in NAMES), **cast)

    def arguments(self, dtype=torch.float64):
        return self.x.to(dtype), self.value(dtype), self.heads

    def run(self, function=hk.gated_attention, dtype=torch.float64, **keywords):
        for name in ("attn_bias", "dropped_output"):
            if keywords.get(name) is not None:
                keywords[name] = keywords[name].to(dtype)
        return function(*self.arguments(dtype), **keywords)


def exact(problem, **keywords):
    return problem.run(hk.reference_attention, **keywords)


def assert_close_to_exact(problem, dtype, **keywords):
    """Error at most twice that of dense PyTorch in the same precision, plus a floor."""
    truth = exact(problem, **keywords)
    if truth.numel() == 0:
        return
    dense = problem.run(hk.reference_attention, dtype, **keywords)
    found = problem.run(dtype=dtype, **keywords)
    assert found.dtype == dtype and found.is_contiguous()
    allowed = 2 * (dense - truth).abs().max() + 2 * torch.finfo(dtype).eps * truth.abs().max()
    assert (found - truth).abs().max() <= allowed


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", request.param)
    return request.param


def naive_attention(problem, gate, mask=None, *, causal=False, bias=None, dropped=None):
    """One head of one sample at a time, as the papers write it."""
    heads = problem.heads
    head_dim = problem.weights["q"].shape[0] // heads
    batch, length, width = problem.x.shape
    y = torch.zeros(batch, length, width, dtype=torch.float64)
    for b, h in itertools.product(range(batch), range(heads)):
        rows = slice(h * head_dim, (h + 1) * head_dim)
        q, k, v = (
            problem.x[b] @ problem.weights[n][rows].T + problem.biases[f"{n}_bias"][rows]
            for n in "qkv"
        )
        for t in range(length):
            keys = [
                s for s in range(length) if (mask is None or mask[b, s]) and not (causal and s > t)
            ]
            score = torch.stack([q[t] @ k[s] for s in keys]) if keys else torch.zeros(0)
            score = score * head_dim**-0.5
            if bias is not None and keys:
                score = score + bias.expand(batch, heads, length, length)[b, h, t, keys]
            context = score.softmax(0).double() @ v[keys] if keys else torch.zeros(head_dim)
            output = problem.weights["o"][:, rows] @ context.double()
            g = gate[b, t, h] if gate.dim() == 3 else gate[b, h]
            y[b, t] += g * output
            if dropped is not None:
                y[b, t] += (1 - g) * dropped[h]
    return y + problem.biases["o_bias"]


# The reference.


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_reference_equals_torch(causal, masked):
    torch.manual_seed(0)
    original = nn.MultiheadAttention(15, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(original.in_proj_bias)
    nn.init.normal_(original.out_proj.bias)
    x = torch.randn(4, 7, 15, dtype=torch.float64)
    mask = torch.rand(4, 7) > 0.4
    mask[:, 0] = True
    truth, _ = original(
        x,
        x,
        x,
        key_padding_mask=~mask if masked else None,
        attn_mask=nn.Transformer.generate_square_subsequent_mask(7).isinf() if causal else None,
        need_weights=False,
    )
    weights = hk.nn.MultiHeadAttention.from_torch(original).weights()
    found = hk.reference_attention(
        x, weights, 3, key_padding_mask=mask if masked else None, is_causal=causal
    )
    torch.testing.assert_close(found, truth, atol=1e-14, rtol=1e-13)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("per_token", [False, True])
def test_reference_equals_one_head_at_a_time(causal, per_token):
    problem = Problem(3, 5, 3, 4, seed=1)
    gate = problem.gate.double()
    if per_token:
        gate = gate[:, None, :] * (torch.rand(3, 5, 3) > 0.4)
    keywords = {"gate": gate, "attn_bias": problem.attn_bias}
    found = exact(
        problem,
        **keywords,
        key_padding_mask=problem.mask,
        is_causal=causal,
        dropped_output=problem.dropped_output,
    )
    truth = naive_attention(
        problem,
        gate,
        problem.mask,
        causal=causal,
        bias=problem.attn_bias,
        dropped=problem.dropped_output,
    )
    torch.testing.assert_close(found, truth, atol=1e-13, rtol=1e-12)


def test_head_contexts_make_the_output():
    problem = Problem(2, 6, 3, 4)
    context = problem.run(hk.head_contexts, key_padding_mask=problem.mask)
    assert context.shape == (2, 6, 3, 4)
    y = context.flatten(2) @ problem.weights["o"].T + problem.biases["o_bias"]
    torch.testing.assert_close(y, exact(problem, key_padding_mask=problem.mask))


# Values of every backend.

SIZES = [
    (5, 1, 3, 8),
    (4, 97, 5, 32),
    (3, 128, 3, 64),
    (2, 257, 3, 80),
    (1, 512, 2, 128),
    (1, 1025, 1, 64),
    (3, 33, 7, 7),
    (0, 5, 3, 8),
    (3, 0, 3, 8),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_float32_is_as_exact_as_dense_torch(backend, size, causal):
    problem = Problem(*size, seed=2)
    assert_close_to_exact(
        problem,
        torch.float32,
        gate=problem.gate,
        key_padding_mask=problem.mask,
        is_causal=causal,
    )


@pytest.mark.parametrize("seed", range(12))
def test_float32_on_random_ragged_problems(backend, seed):
    draw = torch.Generator().manual_seed(100 + seed)

    def pick(*values):
        return values[int(torch.randint(len(values), (), generator=draw))]

    problem = Problem(
        pick(1, 2, 3, 6), pick(1, 2, 13, 49), pick(1, 2, 5), pick(3, 8, 16), seed=seed,
        bias=pick(True, False),
    )  # fmt: skip
    gate = pick(None, problem.gate[0], problem.gate, problem.gate.bool().float())
    assert_close_to_exact(
        problem,
        torch.float32,
        gate=gate,
        skip=pick(True, False),
        key_padding_mask=pick(None, problem.mask),
        is_causal=pick(True, False),
        dropped_output=pick(None, problem.dropped_output),
        scale=pick(None, 0.7, 0.0, -1.0),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(4, 97, 5, 32), (2, 257, 3, 80)], ids=str)
def test_reduced_precision_is_as_exact_as_dense_torch(dtype, size):
    problem = Problem(*size, seed=3)
    assert_close_to_exact(
        problem,
        dtype,
        gate=problem.gate,
        key_padding_mask=problem.mask,
        dropped_output=problem.dropped_output,
    )


@pytest.mark.parametrize(
    "shape", [(), (9,), (9, 9), (1, 9, 9), (3, 1, 9), (4, 1, 1, 9), (4, 3, 9, 1)], ids=str
)
def test_attn_bias_broadcasts(shape, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "aten")
    problem = Problem(4, 9, 3, 5, seed=4)
    bias = torch.randn(shape, dtype=torch.float64)
    for mask, causal in itertools.product([None, problem.mask], [False, True]):
        keywords = {"gate": problem.gate, "key_padding_mask": mask, "is_causal": causal}
        found = problem.run(attn_bias=bias, **keywords)
        torch.testing.assert_close(found, exact(problem, attn_bias=bias, **keywords))


def test_a_bias_of_minus_infinity_closes_a_key(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "aten")
    problem = Problem(3, 6, 3, 5, seed=5)
    bias = torch.zeros(3, 1, 1, 6, dtype=torch.float64).masked_fill(
        ~problem.mask[:, None, None, :], -torch.inf
    )
    truth = exact(problem, gate=problem.gate, key_padding_mask=problem.mask)
    torch.testing.assert_close(problem.run(gate=problem.gate, attn_bias=bias), truth)


@pytest.mark.parametrize(
    "name, dtype",
    [("cpu", torch.float32), ("aten", torch.float32), ("aten", torch.float64)],
    ids=str,
)
def test_skip_mode_is_mask_mode(name, dtype, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", name)
    problem = Problem(5, 31, 5, 8, seed=6)
    keywords = {"gate": problem.gate, "dropped_output": problem.dropped_output}
    skipped = problem.run(dtype=dtype, skip=True, **keywords)
    masked = problem.run(dtype=dtype, skip=False, **keywords)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(skipped, masked, atol=40 * eps, rtol=40 * eps)


def test_token_gates_skip_where_all_tokens_are_closed(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "aten")
    problem = Problem(4, 9, 3, 5, seed=7)
    gate = problem.gate[:, None, :] * (torch.rand(4, 9, 3) > 0.5)
    keywords = {"gate": gate, "dropped_output": problem.dropped_output}
    torch.testing.assert_close(problem.run(**keywords), exact(problem, **keywords))


def test_all_heads_skipped_leaves_bias_and_compensation(backend):
    problem = Problem(2, 5, 3, 4)
    gate = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    y = problem.run(dtype=torch.float32, gate=gate)
    assert torch.equal(y[0], problem.biases["o_bias"].float().expand(5, -1))
    y = problem.run(dtype=torch.float32, gate=gate, dropped_output=problem.dropped_output)
    truth = problem.biases["o_bias"] + problem.dropped_output.sum(0)
    torch.testing.assert_close(y[0], truth.float().expand(5, -1))


def test_rows_without_admissible_keys_are_zero(backend):
    problem = Problem(3, 5, 3, 4)
    y = problem.run(dtype=torch.float32, key_padding_mask=problem.mask)
    assert torch.equal(y[0], problem.biases["o_bias"].float().expand(5, -1))


def test_a_skipped_head_is_not_computed(backend):
    problem = Problem(2, 5, 3, 4)
    problem.weights["q"][4:8] = torch.nan
    problem.weights["v"][4:8] = torch.nan
    gate = torch.tensor([1.0, 0.0, 1.0])
    assert problem.run(dtype=torch.float32, gate=gate).isfinite().all()


@pytest.mark.parametrize("heads, head_dim", [(0, 8), (3, 0)])
def test_no_heads_is_legal(heads, head_dim):
    problem = Problem(2, 5, heads, head_dim, width=6)
    y = problem.run(dtype=torch.float32, gate=problem.gate)
    torch.testing.assert_close(y, problem.biases["o_bias"].float().expand(2, 5, -1))


def test_strided_inputs(backend):
    problem = Problem(3, 9, 3, 4, seed=8)
    truth = exact(problem, gate=problem.gate).float()
    problem.x = problem.x.transpose(0, 1).contiguous().transpose(0, 1)
    problem.weights = {n: w.T.contiguous().T for n, w in problem.weights.items()}
    gate = torch.stack([problem.gate, problem.gate], -1)[..., 0]
    found = problem.run(dtype=torch.float32, gate=gate)
    torch.testing.assert_close(found, truth, atol=2e-6, rtol=2e-6)


# Dropout.


def test_dropout_is_a_matter_of_the_seed(monkeypatch):
    problem = Problem(3, 40, 3, 4, seed=9)
    keywords = {"gate": problem.gate, "dropout_p": 0.3}
    truth = exact(problem, dropout_seed=5, **keywords)
    monkeypatch.setenv("HEADKIT_BACKEND", "aten")
    torch.testing.assert_close(problem.run(dropout_seed=5, **keywords), truth)
    assert not torch.allclose(exact(problem, dropout_seed=6, **keywords), truth)


def test_dropout_keeps_the_expected_share():
    # One head whose weights are uniform over 64 keys and whose values are all 1: its output is the
    # mean of the kept keys' factors.
    length, seeds = 64, 40
    weights = hk.AttentionWeights(
        torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1)
    )
    x = torch.ones(2, length, 1)
    for p in (0.1, 0.5):
        y = torch.stack(
            [
                hk.reference_attention(x, weights, 1, dropout_p=p, dropout_seed=seed)
                for seed in range(seeds)
            ]
        )
        draws = y.numel() * length
        assert abs(y.mean() - 1.0) < 5 * (p / (1 - p) / draws) ** 0.5
        # Rows must be independent: variance of a mean of `length` Bernoulli factors.
        expected = p / (1 - p) / length
        assert abs(y.var() - expected) < 0.1 * expected
        kept = (y[:-1] - 1) * (y[1:] - 1)
        assert abs(kept.mean()) < 5 * expected / kept.numel() ** 0.5


# Errors and choices.


def small_call(**changes):
    tensors = {"x": torch.randn(2, 4, 6)}
    tensors |= {f"{n}_weight": torch.randn(6, 6) for n in NAMES}
    call = tensors | {"num_heads": 3} | changes
    positional = [call.pop(name) for name in [*tensors, "num_heads"]]
    return OPERATOR(*positional, **call)


ERRORS = {
    "x of shape": {"x": torch.randn(4, 6)},
    "x of dtype": {"x": torch.ones(2, 4, 6, dtype=torch.int32)},
    "num_heads >= 0": {"num_heads": -1},
    r"q_weight of shape \[H \* dh, D\]": {"num_heads": 4},
    "k_weight of shape": {"k_weight": torch.randn(5, 6)},
    "v_weight of the dtype of x": {"v_weight": torch.randn(6, 6).double()},
    "k_weight on the device of x": {"k_weight": torch.randn(6, 6, device="meta")},
    r"o_weight of shape \[D, H \* dh\]": {"o_weight": torch.randn(6, 3)},
    r"q_bias of shape \[H \* dh\]": {"q_bias": torch.randn(5)},
    r"o_bias of shape \[D\]": {"o_bias": torch.randn(5)},
    r"gate of shape \[H\], \[B, H\] or \[B, T, H\]; found shape \[2, 4\]": {
        "gate": torch.ones(2, 4)
    },
    "gate of dtype Float": {"gate": torch.ones(3).double()},
    "finite gates": {"gate": torch.tensor([1.0, torch.inf, 0.0])},
    "key_padding_mask": {"key_padding_mask": torch.ones(2, 4)},
    "attn_bias broadcastable": {"attn_bias": torch.ones(2, 4)},
    "attn_bias of the dtype": {"attn_bias": torch.ones(4, 4, dtype=torch.bool)},
    r"dropped_output of shape \[H, D\]": {"dropped_output": torch.ones(6)},
    "a finite scale": {"scale": float("nan")},
    r"dropout_p in \[0, 1\)": {"dropout_p": 1.0},
    "num_kv_heads": {"num_kv_heads": 1},
    "kv to be unset": {"kv": torch.randn(2, 4, 6)},
    "rotary_cos to be unset": {"rotary_cos": torch.randn(2, 4, 2)},
    "rotary_sin to be unset": {"rotary_sin": torch.randn(2, 4, 2)},
    "q_norm_weight to be unset": {"q_norm_weight": torch.ones(2)},
    "k_norm_weight to be unset": {"k_norm_weight": torch.ones(2)},
    "window to be unset": {"window": 2},
}


@pytest.mark.parametrize("message, changes", ERRORS.items(), ids=ERRORS)
def test_errors(message, changes):
    with pytest.raises(ValueError, match=rf"^\[gated_attention\] expected .*{message}"):
        small_call(**changes)
    if not any(isinstance(value, float) for value in changes.values()) and "finite" not in message:
        moved = {
            name: value.to("meta") if isinstance(value, torch.Tensor) else value
            for name, value in changes.items()
            if "device" not in message
        }
        if moved:
            meta = {"x": torch.empty(2, 4, 6, device="meta")}
            meta |= {f"{n}_weight": torch.empty(6, 6, device="meta") for n in NAMES}
            with pytest.raises(ValueError, match=message):
                small_call(**(meta | moved))


def test_the_choice_of_backend(monkeypatch):
    problem = Problem(2, 5, 3, 4)
    monkeypatch.delenv("HEADKIT_BACKEND", raising=False)
    assert problem.run(hk.attention_backend, torch.float32).name == "cpu"
    choice = problem.run(hk.attention_backend, torch.bfloat16)
    assert choice.name == "aten" and "float32" in choice.reason
    monkeypatch.setenv("HEADKIT_BACKEND", "reference")
    assert problem.run(hk.attention_backend, torch.float32).name == "reference"
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    with pytest.raises(RuntimeError, match="HEADKIT_BACKEND=cpu"):
        problem.run(dtype=torch.float64)
    monkeypatch.setenv("HEADKIT_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="HEADKIT_BACKEND=cuda"):
        problem.run(dtype=torch.float32)
    monkeypatch.setenv("HEADKIT_BACKEND", "fast")
    with pytest.raises(RuntimeError, match='to be cpu, aten, reference or cuda; found "fast"'):
        problem.run(dtype=torch.float32)


# Bit for bit.


def test_cpu_results_do_not_depend_on_the_batch(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    problem = Problem(6, 67, 5, 16, seed=10)
    keywords = {"gate": problem.gate, "key_padding_mask": problem.mask}
    together = problem.run(dtype=torch.float32, **keywords)
    for chosen in ([0], [5], [1, 2], [4, 0, 3]):
        part = hk.gated_attention(
            problem.x[chosen].float(),
            problem.value(torch.float32),
            problem.heads,
            **{name: value[chosen] for name, value in keywords.items()},
        )
        assert torch.equal(part, together[chosen])


LEVEL_SCRIPT = """
import hashlib, json, torch, headkit
torch.manual_seed(0)
weights = headkit.AttentionWeights(*torch.randn(4, 96, 96).div(10))
x = torch.randn(5, 131, 96)
gate = torch.rand(5, 6) * (torch.rand(5, 6) > 0.5)
mask = torch.rand(5, 131) > 0.2
found = {}
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    y = headkit.gated_attention(x, weights, 6, gate=gate, key_padding_mask=mask)
    found[threads] = hashlib.sha256(y.numpy().tobytes()).hexdigest()
truth = headkit.reference_attention(
    x.double(),
    headkit.AttentionWeights(*(getattr(weights, n).double() for n in "qkvo")),
    6, gate=gate, key_padding_mask=mask)
dense = headkit.reference_attention(x, weights, 6, gate=gate, key_padding_mask=mask)
error = ((y - truth).abs().max() / (dense - truth).abs().max()).item()
backend = headkit.attention_backend(x, weights, 6, gate=gate).name
print(json.dumps({"digests": sorted(set(found.values())), "error": error, "backend": backend}))
"""


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
def test_cpu_results_do_not_depend_on_the_threads(level):
    package = str(pathlib.Path(hk.__file__).parents[1])
    environment = os.environ | {
        "HEADKIT_ISA": level,
        "HEADKIT_BACKEND": "cpu",
        "PYTHONPATH": package,
    }
    if level not in hk._C.available_isas():
        pytest.skip(f"this machine or build lacks {level}")
    shown = subprocess.run(
        [sys.executable, "-c", LEVEL_SCRIPT], env=environment, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["backend"] == "cpu"
    assert len(found["digests"]) == 1
    assert found["error"] <= 2.0


# Gradients.


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


# PyTorch's own machinery.


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
    wanted = [True] * 5 + [False] * 4 + [True] + [False] * 2
    torch.library.opcheck(
        torch.ops.headkit.gated_attention_backward.default,
        (problem.x, problem.x, *problem.weights.values(), 3),
        {"gate": problem.gate.double(), "output_mask": wanted},
    )


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


# The module.


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
        ({"embed_dim": 12, "num_heads": 3, "num_kv_heads": 1}, "num_kv_heads"),
        ({"embed_dim": -1, "num_heads": 3}, "at least 0"),
        ({"embed_dim": 12, "num_heads": 3, "dropout": 1.0}, "dropout"),
    ]:
        with pytest.raises(ValueError, match=rf"\[MultiHeadAttention\] expected .*{message}"):
            hk.nn.MultiHeadAttention(**arguments)
    with pytest.raises(ValueError, match="kv to be unset"):
        with_bias(torch.randn(2, 4, 12), kv=torch.randn(2, 4, 12))


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
