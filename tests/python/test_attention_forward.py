"""The values of the gated attention operator: every backend against float64, errors, choices."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from attention_problem import (
    BACKENDS,
    CASES,
    NAMES,
    OPERATOR,
    Case,
    Problem,
    assert_close_to_exact,
    exact,
    naive_attention,
    plain_attention,
)
from torch import nn

import headkit as hk


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", request.param)
    return request.param


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
    "attn_bias broadcastable .*shape": {"attn_bias": torch.ones(2, 4)},
    "attn_bias of the dtype": {"attn_bias": torch.ones(4, 4, dtype=torch.bool)},
    r"dropped_output of shape \[H, D\]": {"dropped_output": torch.ones(6)},
    "a finite scale": {"scale": float("nan")},
    r"dropout_p in \[0, 1\)": {"dropout_p": 1.0},
    "num_kv_heads >= 0": {"num_kv_heads": -1},
    "k_weight of shape .* Hkv = 1": {"num_kv_heads": 1},
    "num_heads divisible by num_kv_heads, or kv_head; found num_heads = 3 with 2 KV heads": {
        "num_kv_heads": 2, "k_weight": torch.randn(4, 6), "v_weight": torch.randn(4, 6),
    },
    "kv_head with 3 entries, one for each head; found 2": {"kv_head": [0, 1]},
    r"every kv_head in \[0, Hkv\); found 3 with Hkv = 3": {"kv_head": [0, 3, 1]},
    r"every kv_head in \[0, Hkv\); found -1": {"kv_head": [0, -1, 1]},
    r"kv of shape \[B, S, Dk\]": {"kv": torch.randn(3, 4, 6)},
    "kv of the dtype of x": {"kv": torch.randn(2, 4, 6).double()},
    "k_weight of shape .* x of shape": {"kv": torch.randn(2, 4, 5)},
    r"key_padding_mask \(true = attend\) of shape \[B, S\]": {
        "kv": torch.randn(2, 5, 6), "key_padding_mask": torch.ones(2, 4, dtype=torch.bool),
    },
    r"attn_bias broadcastable to \[B, H, T, S\]": {
        "kv": torch.randn(2, 5, 6), "attn_bias": torch.ones(4, 4),
    },
    "rotary_cos and rotary_sin together; found rotary_cos alone": {
        "rotary_cos": torch.randn(2, 4, 2)
    },
    "rotary_cos and rotary_sin together; found rotary_sin alone": {
        "rotary_sin": torch.randn(2, 4, 2)
    },
    r"rotary_cos of shape \[B or 1, T, dr\] with an even dr": {
        "rotary_cos": torch.randn(2, 4, 1), "rotary_sin": torch.randn(2, 4, 1),
    },
    "rotary_cos of shape .* and dh = 2": {
        "rotary_cos": torch.randn(2, 4, 4), "rotary_sin": torch.randn(2, 4, 4),
    },
    "rotary_sin of shape": {
        "rotary_cos": torch.randn(1, 4, 2), "rotary_sin": torch.randn(2, 4, 2),
    },
    "rotary_cos of the dtype of x": {
        "rotary_cos": torch.randn(1, 4, 2).double(), "rotary_sin": torch.randn(1, 4, 2).double(),
    },
    "rotary embeddings without kv": {
        "rotary_cos": torch.randn(1, 4, 2), "rotary_sin": torch.randn(1, 4, 2),
        "kv": torch.randn(2, 4, 6),
    },
    r"q_norm_weight of shape \[dh\]": {"q_norm_weight": torch.ones(3)},
    r"k_norm_weight of shape \[dh\]": {"k_norm_weight": torch.ones(6)},
    "norm_eps of at least 0": {"norm_eps": -1.0},
    "a window of at least 1": {"window": 0},
}  # fmt: skip


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
    native = hk.active_isa() == "avx512_bf16"
    for dtype, computed in (
        (torch.bfloat16, "bfloat16" if native else "float32"),
        (torch.float16, "float32"),
    ):
        choice = problem.run(hk.attention_backend, dtype)
        assert choice.name == "cpu" and choice.reason.endswith(f"in {computed}")
    choice = problem.run(hk.attention_backend, torch.float64)
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
import hashlib, json, sys, torch, headkit
torch.manual_seed(0)
dtype = getattr(torch, sys.argv[1])
weights = headkit.AttentionWeights(*torch.randn(4, 96, 96).div(10).to(dtype))
x = torch.randn(5, 131, 96).to(dtype)
gate = torch.rand(5, 6) * (torch.rand(5, 6) > 0.5)
mask = torch.rand(5, 131) > 0.2
found = {}
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    y = headkit.gated_attention(x, weights, 6, gate=gate, key_padding_mask=mask)
    found[threads] = hashlib.sha256(y.float().numpy().tobytes()).hexdigest()
truth = headkit.reference_attention(
    x.double(),
    headkit.AttentionWeights(*(getattr(weights, n).double() for n in "qkvo")),
    6, gate=gate, key_padding_mask=mask)
dense = headkit.reference_attention(x, weights, 6, gate=gate, key_padding_mask=mask)
error = ((y - truth).abs().max() / (dense - truth).abs().max()).item()
backend = headkit.attention_backend(x, weights, 6, gate=gate).name
print(json.dumps({"digests": sorted(set(found.values())), "error": error, "backend": backend}))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("level", hk._C.available_isas())
def test_cpu_results_do_not_depend_on_the_threads(level, dtype):
    package = str(pathlib.Path(hk.__file__).parents[1])
    environment = os.environ | {
        "HEADKIT_ISA": level,
        "HEADKIT_BACKEND": "cpu",
        "PYTHONPATH": package,
    }
    shown = subprocess.run(
        [sys.executable, "-c", LEVEL_SCRIPT, dtype], env=environment, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["backend"] == "cpu"
    assert len(found["digests"]) == 1
    assert found["error"] <= 2.0


# Every kind of attention, against plain PyTorch.


@pytest.mark.parametrize("name", ["aten", "reference"])
@pytest.mark.parametrize("gated", ["dense", "head", "sample", "token"])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_equals_plain_torch(case, gated, name, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", name)
    problem = Case(**CASES[case])
    gate = problem.gates()[gated]
    found = problem.run(gate=gate)
    assert found.is_contiguous()
    torch.testing.assert_close(found, problem.run(plain_attention, gate=gate), atol=1e-12, rtol=0)
    if name == "aten":
        masked = problem.run(gate=gate, skip=False)
        torch.testing.assert_close(found, masked, atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_head_contexts_of_every_kind_make_the_output(case):
    problem = Case(**CASES[case])
    context = problem.reference(function=hk.head_contexts, gate=problem.gate)
    assert context.shape == (problem.batch, problem.length, problem.heads, context.shape[-1])
    output = context.flatten(2) @ problem.tensors["o_weight"].T + problem.tensors["o_bias"]
    settings = problem.settings | {"gate": None}
    truth = problem.run(plain_attention, **settings)
    torch.testing.assert_close(output, truth, atol=1e-12, rtol=0)
    torch.testing.assert_close(problem.run(hk._C.head_contexts, gate=problem.gate), context)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["grouped, masked", "uneven map", "all, self", "all, cross"])
def test_every_kind_is_as_exact_as_dense_torch(case, dtype):
    problem = Case(**(CASES[case] | {"length": 33, "head_dim": 16, "seed": 1}))
    for gate in (None, problem.gate):
        truth = problem.run(plain_attention, gate=gate)
        dense = problem.reference(dtype, gate=gate)
        found = problem.run(dtype=dtype, gate=gate)
        assert found.dtype == dtype
        allowed = 2 * (dense - truth).abs().max() + 2 * torch.finfo(dtype).eps * truth.abs().max()
        assert (found - truth).abs().max() <= allowed


def test_dropout_of_every_kind_is_a_matter_of_the_seed():
    keywords = {"dropout_p": 0.3, "dropout_seed": 5}
    for case in ("all, self", "all, cross", "window, causal"):
        problem = Case(**CASES[case])
        for gate in (None, problem.gate):
            truth = problem.reference(gate=gate, **keywords)
            torch.testing.assert_close(problem.run(gate=gate, **keywords), truth)


@pytest.mark.parametrize("case", ["grouped", "uneven map", "all, self", "all, cross"])
def test_a_closed_head_or_kv_head_is_not_computed(case):
    problem = Case(**CASES[case])
    gate = torch.ones(problem.heads)
    dead = problem.kv_head[-1]
    for head, kv_head in enumerate(problem.kv_head):
        gate[head] = float(kv_head != dead)
    gate[0] = 0.0
    truth = problem.run(gate=gate)
    width = problem.head_dim
    broken = {name: tensor.clone() for name, tensor in problem.tensors.items()}
    for name in ("k_weight", "v_weight", "k_bias", "v_bias"):
        broken[name][dead * width : (dead + 1) * width] = torch.nan
    for head in (gate == 0).nonzero().flatten().tolist():
        for name in ("q_weight", "q_bias"):
            broken[name][head * width : (head + 1) * width] = torch.nan
        broken["o_weight"][:, head * width : (head + 1) * width] = torch.nan
    assert torch.equal(problem.run(gate=gate, tensors=broken), truth)


def test_a_kv_head_runs_for_the_samples_of_its_query_heads():
    problem = Case(batch=2, kv_heads=2)
    gate = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 0, 1.0, 0, 1.0, 0]])
    truth = problem.run(gate=gate)
    broken = problem.tensors["v_weight"].clone()
    broken[6:] = torch.nan
    found = problem.run(gate=gate, tensors={"v_weight": broken})
    assert torch.equal(found[0], truth[0]) and found[1].isnan().all()


def test_every_kind_runs_on_the_kernels(monkeypatch):
    monkeypatch.delenv("HEADKIT_BACKEND", raising=False)
    for case, settings in CASES.items():
        choice = Case(**settings).reference(torch.float32, function=hk.attention_backend)
        assert choice.name == "cpu", f"{case}: {choice.reason}"
