"""Statistics of heads: kernels against plain operators and probabilities written out."""

import math

import pytest
import torch

import headkit as hk

NAMES = ("log_sum_exp", "entropy", "largest_weight", "contribution_norm")


def layer(heads=4, head_dim=8, width=20, kv_heads=None, seed=0):
    torch.manual_seed(seed)
    inner, kv_inner = heads * head_dim, (kv_heads or heads) * head_dim
    return hk.AttentionWeights(
        torch.randn(inner, width),
        torch.randn(kv_inner, width),
        torch.randn(kv_inner, width),
        torch.randn(width, inner),
        q_bias=torch.randn(inner),
        v_bias=torch.randn(kv_inner),
    )


CASES = {
    "plain": {},
    "causal": {"is_causal": True},
    "window": {"is_causal": True, "window": 5},
    "padded": {"key_padding_mask": torch.arange(70) < torch.tensor([[70], [31], [0]])},
    "holes": {"key_padding_mask": torch.arange(70) % 3 != 0},
    "biased": {"attn_bias": torch.linspace(-3, 3, 4 * 70 * 70).view(1, 4, 70, 70)},
    "gated": {"gate": torch.tensor([[1.0, 0, -0.5, 2], [0, 0, 0, 0], [1, 1, 1, 1]])},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kv_heads", [None, 2])
def test_kernels_agree_with_plain_operators_in_float64(case, kv_heads, monkeypatch):
    options = {"num_kv_heads": kv_heads} | CASES[case]
    if "key_padding_mask" in options:
        options["key_padding_mask"] = options["key_padding_mask"].expand(3, 70)
    weights, x = layer(kv_heads=kv_heads), torch.randn(3, 70, 20)
    monkeypatch.delenv("HEADKIT_BACKEND", raising=False)
    found = hk.pair_statistics(x, weights, 4, **options)
    matrices = (getattr(weights, part).double() for part in ("q", "k", "v", "o"))
    biases = {part: getattr(weights, part).double() for part in ("q_bias", "v_bias")}
    wide = hk.AttentionWeights(*matrices, **biases)
    float32_options = dict(options)
    if "attn_bias" in options:
        options["attn_bias"] = options["attn_bias"].double()
    exact = hk.pair_statistics(x.double(), wide, 4, **options)
    monkeypatch.setenv("HEADKIT_BACKEND", "reference")
    plain = hk.pair_statistics(x, weights, 4, **float32_options)
    for name in NAMES:
        value, truth, other = (getattr(each, name) for each in (found, exact, plain))
        assert value.shape == (3, 4, 70) and value.dtype == torch.float32
        assert torch.equal(value.isfinite(), truth.isfinite())
        assert torch.equal(value.isnan(), truth.isnan())
        seen = truth.isfinite()
        allowed = 2 * (other - truth)[seen].abs().max()
        allowed += 2 * torch.finfo(torch.float32).eps * truth[seen].abs().max()
        assert (value - truth)[seen].abs().max() <= allowed, name


def test_plain_operators_agree_with_probabilities_written_out():
    torch.manual_seed(1)
    width, head_dim, heads, length = 6, 3, 2, 5
    matrices = [torch.randn(6, 6, dtype=torch.float64) for _ in range(4)]
    x = torch.randn(1, length, width, dtype=torch.float64)
    found = hk.pair_statistics(x, hk.AttentionWeights(*matrices), heads, is_causal=True)
    for head in range(heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        q, k, v = (x[0] @ w[rows].T for w in matrices[:3])
        for t in range(length):
            scores = [float(q[t] @ k[s]) / math.sqrt(head_dim) for s in range(t + 1)]
            total = sum(map(math.exp, scores))
            weights = [math.exp(score) / total for score in scores]
            y = sum(w * (matrices[3][:, rows] @ v[s]) for s, w in enumerate(weights))
            expected = (
                math.log(total),
                -sum(w * math.log(w) for w in weights),
                max(weights),
                float(y.norm()),
            )
            for name, value in zip(NAMES, expected, strict=True):
                assert getattr(found, name)[0, head, t].item() == pytest.approx(value, abs=1e-9)


def test_closed_heads_and_blind_queries_are_told_apart():
    weights, x = layer(), torch.randn(2, 9, 20)
    mask = torch.tensor([[False] * 9, [True] * 9])
    found = hk.pair_statistics(
        x, weights, 4, gate=torch.tensor([1.0, 0, 1, 1]), key_padding_mask=mask
    )
    assert all(getattr(found, name)[:, 1].isnan().all() for name in NAMES)
    assert found.entropy[1, 0].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gate": torch.ones(2, 9, 4)}, "a gate"), ({"dropout_p": 0.5}, "no dropout")],
)
def test_what_it_cannot_say_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        hk.pair_statistics(torch.randn(2, 9, 20), layer(), 4, **options)
