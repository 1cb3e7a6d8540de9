"""Every kind of attention on the CPU kernels: random problems against float64."""

import random

import pytest
import torch

import headkit  # noqa: F401  registers the operators

OPERATORS = torch.ops.headkit
KINDS = pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("gated_attention", torch.float32),
        ("attend", torch.float32),
        ("project_kv", torch.float32),
        ("gated_attention", torch.bfloat16),
        ("attend", torch.bfloat16),
        ("attend", torch.float16),
        ("project_kv", torch.bfloat16),
    ],
    ids=str,
)


def in_float64(value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def in_dtype(call, dtype):
    """The same call on tensors of `dtype`; a gate stays in float32."""
    operator, positional, options = call

    def cast(value):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floating else value

    options = {n: value if n == "gate" else cast(value) for n, value in options.items()}
    return operator, tuple(map(cast, positional)), options


class Random:
    """One random problem: ``gated_attention``, ``attend`` and ``project_kv`` share its sizes."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        pick = random.Random(seed)
        self.batch, self.length = pick.choice([1, 2, 5]), pick.choice([1, 2, 3, 4, 5, 17, 49])
        self.head_dim = pick.choice([2, 6, 8, 16, 20, 64])
        self.kv_heads = pick.choice([1, 2, 3])
        self.heads = self.kv_heads * pick.choice([1, 1, 2, 3])
        self.width, self.source_width = pick.choice([5, 24, 50]), pick.choice([7, 32])
        self.cross = pick.random() < 0.3
        self.keys = pick.choice([1, 9, 50, 130, 1100]) if self.cross else self.length
        self.given_keys = self.length + pick.choice([0, 1, 30, 600])
        self.options = {"is_causal": pick.random() < 0.5}
        if pick.random() < 0.3:
            self.options["window"] = pick.choice([1, 5, 40])
        gate = torch.rand(self.batch, self.heads) * (torch.rand(self.batch, self.heads) > 0.4)
        if pick.random() < 0.7:
            self.options["gate"] = gate[0] if pick.random() < 0.2 else gate
            if pick.random() < 0.5:
                self.options["dropped_output"] = torch.randn(self.heads, self.width)
        self.rotary = pick.choice([0, self.head_dim // 2 // 2 * 2, self.head_dim])
        if self.rotary and not self.cross:
            rows = (pick.choice([1, self.batch]), self.length, self.rotary)
            self.options |= {"rotary_cos": torch.randn(rows), "rotary_sin": torch.randn(rows)}
        self.norm = pick.random() < 0.3
        if self.norm:
            self.options |= {"q_norm_weight": torch.randn(self.head_dim), "norm_eps": 1e-5}
        self.padding = pick.choice(["none", "none", "right", "left", "holes"])
        self.bias = pick.choice([None, None, None, (0, 0), (1, 0), (0, 1), (1, 1)])
        self.biases = pick.random() < 0.7

    def mask(self, keys):
        if self.padding == "none":
            return {}
        if self.padding == "holes":
            mask = torch.rand(self.batch, keys) > 0.4
        else:
            count = torch.randint(0, keys + 1, (self.batch, 1))
            mask = torch.arange(keys) < count
            mask = mask.flip(1) if self.padding == "left" else mask
        return {"key_padding_mask": mask}

    def attn_bias(self, keys):
        if self.bias is None:
            return {}
        batch = self.batch if self.bias[0] else 1
        heads = self.heads if self.bias[1] else 1
        return {"attn_bias": torch.randn(batch, heads, random.choice([1, self.length]), keys)}

    def weight(self, heads, width):
        return torch.randn(heads * self.head_dim, width) / width**0.5

    def vector(self, name, size):
        return {name: torch.randn(size)} if self.biases else {}

    def gated_attention(self):
        source_width = self.source_width if self.cross else self.width
        inner = self.heads * self.head_dim
        options = self.options | self.mask(self.keys) | self.attn_bias(self.keys)
        if self.norm:
            options["k_norm_weight"] = torch.randn(self.head_dim)
        if self.cross:
            options["kv"] = torch.randn(self.batch, self.keys, source_width)
        options |= self.vector("q_bias", inner) | self.vector("o_bias", self.width)
        options |= self.vector("k_bias", self.kv_heads * self.head_dim)
        options |= {"num_kv_heads": self.kv_heads}
        positional = (
            torch.randn(self.batch, self.length, self.width),
            self.weight(self.heads, self.width),
            self.weight(self.kv_heads, source_width),
            self.weight(self.kv_heads, source_width),
            torch.randn(self.width, inner) / inner**0.5,
            self.heads,
        )
        return OPERATORS.gated_attention, positional, options

    def attend(self):
        inner, keys = self.heads * self.head_dim, self.given_keys
        options = self.options | self.mask(keys) | self.attn_bias(keys)
        options |= {"query_offset": random.choice([0, keys - self.length])}
        options |= self.vector("q_bias", inner) | self.vector("o_bias", self.width)
        shape = (self.batch, self.kv_heads, keys, self.head_dim)
        k, v = torch.randn(shape), torch.randn(shape)
        if random.random() < 0.5:  # as a cache of [B, S, Hkv, dh]
            k, v = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (k, v))
        positional = (
            torch.randn(self.batch, self.length, self.width),
            k,
            v,
            self.weight(self.heads, self.width),
            torch.randn(self.width, inner) / inner**0.5,
            self.heads,
        )
        return OPERATORS.attend, positional, options

    def project_kv(self):
        names = ("rotary_cos", "rotary_sin")
        options = {name: self.options[name] for name in names if name in self.options}
        options |= self.vector("k_bias", self.kv_heads * self.head_dim)
        if "gate" in self.options:
            options["gate"] = (torch.rand(self.batch, self.kv_heads) > 0.4).float()
        if self.norm:
            options["k_norm_weight"] = torch.randn(self.head_dim)
        positional = (
            torch.randn(self.batch, self.length, self.width),
            self.weight(self.kv_heads, self.width),
            self.weight(self.kv_heads, self.width),
            self.kv_heads,
        )
        return OPERATORS.project_kv, positional, options


def run(monkeypatch, backend, call, cast=lambda value: value):
    operator, positional, options = call
    monkeypatch.setenv("HEADKIT_BACKEND", backend)
    found = operator(*map(cast, positional), **{name: cast(v) for name, v in options.items()})
    return found if isinstance(found, tuple) else (found,)


@KINDS
@pytest.mark.parametrize("first", range(0, 120, 20))
def test_random_problems_agree_with_float64(kind, dtype, first, monkeypatch):
    for seed in range(first, first + 20):
        random.seed(seed)
        call = in_dtype(getattr(Random(seed), kind)(), dtype)
        found = run(monkeypatch, "cpu", call)
        exact = run(monkeypatch, "reference", call, in_float64)
        plain = run(monkeypatch, "reference", call)
        for value, truth, other in zip(found, exact, plain, strict=True):
            allowed = (
                2 * (other - truth).abs().max() + 2 * torch.finfo(dtype).eps * truth.abs().max()
            )
            assert (value - truth).abs().max() <= allowed, f"{kind}, problem {seed}"


def sample_of(call, index):
    """The same call for one sample of the batch."""
    operator, positional, options = call
    batch = positional[0].size(0)
    of_batch = {"gate", "key_padding_mask", "attn_bias", "rotary_cos", "rotary_sin", "kv"}

    def part(value):
        return value[index : index + 1] if value.size(0) == batch else value

    narrow = {
        name: part(value) if name in of_batch and (name != "gate" or value.dim() == 2) else value
        for name, value in options.items()
    }
    tensors = 3 if operator is OPERATORS.attend else 1
    return operator, (*map(part, positional[:tensors]), *positional[tensors:]), narrow


@KINDS
def test_a_result_depends_neither_on_threads_nor_on_the_batch(kind, dtype, monkeypatch):
    before = torch.get_num_threads()
    try:
        for seed in range(200, 230):
            random.seed(seed)
            call = in_dtype(getattr(Random(seed), kind)(), dtype)
            torch.set_num_threads(1)
            whole = run(monkeypatch, "cpu", call)
            torch.set_num_threads(3)
            assert all(map(torch.equal, run(monkeypatch, "cpu", call), whole)), f"problem {seed}"
            for index in range(whole[0].size(0)):
                alone = run(monkeypatch, "cpu", sample_of(call, index))
                for one, many in zip(alone, whole, strict=True):
                    assert torch.equal(one[0], many[index]), f"problem {seed}, sample {index}"
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_of_the_lowest_bias_sees_all_keys_alike(dtype, monkeypatch):
    torch.manual_seed(0)
    x, weights = torch.randn(2, 5, 12), torch.randn(4, 12, 12) / 12**0.5
    attn_bias = torch.zeros(1, 1, 5, 5)
    attn_bias[..., 1:, 3:] = torch.finfo(dtype).min
    attn_bias[..., 2, :] = torch.finfo(dtype).min
    attn_bias[..., 4, :] = -torch.inf
    positional, options = (x, *weights.unbind(0), 3), {"attn_bias": attn_bias}
    call = in_dtype((OPERATORS.gated_attention, positional, options), dtype)
    (found,) = run(monkeypatch, "cpu", call)
    (truth,) = run(monkeypatch, "reference", call, in_float64)
    (plain,) = run(monkeypatch, "reference", call)
    allowed = 2 * (plain - truth).abs().max() + 2 * torch.finfo(dtype).eps * truth.abs().max()
    assert (found - truth).abs().max() <= allowed


@pytest.mark.parametrize("length", [0, 1, 4, 5])
def test_given_keys_give_the_same_bits_with_a_graph(length):
    torch.manual_seed(1)
    x, k, v = torch.randn(2, length, 12), torch.randn(2, 2, 30, 6), torch.randn(2, 2, 30, 6)
    q_weight, o_weight = torch.randn(24, 12), torch.randn(12, 24)
    alone = OPERATORS.attend(x, k, v, q_weight, o_weight, 4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with_graph = OPERATORS.attend(x, k, v, q_weight.requires_grad_(), o_weight, 4)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(with_graph, alone)
