"""Random attention problems, and attention written once more in plain PyTorch."""

import itertools

import torch
from torch.nn import functional

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


# Attention as transformers write it, on the arguments of the operators. Nothing of headkit is used.


def rotate_half(x):
    low, high = x.chunk(2, dim=-1)
    return torch.cat((-high, low), dim=-1)


def with_norm(x, weight, eps):
    if weight is None:
        return x
    wide = x if x.dtype == torch.float64 else x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def with_rotary(x, cos, sin):
    if cos is None:
        return x
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    turned = turned * cos[:, None] + rotate_half(turned) * sin[:, None]
    return torch.cat((turned, rest), dim=-1)


def heads_of(x, weight, bias, heads):
    y = functional.linear(x, weight, bias)
    return y.view(*x.shape[:2], heads, weight.shape[0] // max(heads, 1)).transpose(1, 2)


def plain_project_kv(
    kv, k_weight, v_weight, num_kv_heads, *, k_bias=None, v_bias=None, rotary_cos=None,
    rotary_sin=None, k_norm_weight=None, norm_eps=1e-6,
):  # fmt: skip
    k = with_norm(heads_of(kv, k_weight, k_bias, num_kv_heads), k_norm_weight, norm_eps)
    return with_rotary(k, rotary_cos, rotary_sin), heads_of(kv, v_weight, v_bias, num_kv_heads)


def plain_attend(
    x, k, v, q_weight, o_weight, num_heads, *, q_bias=None, o_bias=None, kv_head=None, scale=None,
    gate=None, skip=True, key_padding_mask=None, is_causal=False, query_offset=0, attn_bias=None,
    dropped_output=None, rotary_cos=None, rotary_sin=None, q_norm_weight=None, norm_eps=1e-6,
    window=None,
):  # fmt: skip
    q = with_norm(heads_of(x, q_weight, q_bias, num_heads), q_norm_weight, norm_eps)
    q = with_rotary(q, rotary_cos, rotary_sin)
    kv_head = kv_head or [h * k.shape[1] // num_heads for h in range(num_heads)]
    k, v = k[:, kv_head], v[:, kv_head]
    scores = q @ k.transpose(2, 3) * (max(q.shape[-1], 1) ** -0.5 if scale is None else scale)
    if attn_bias is not None:
        scores = scores + attn_bias
    query = torch.arange(x.shape[1])[:, None] + query_offset
    key = torch.arange(k.shape[2])[None, :]
    seen = torch.ones(1, 1, x.shape[1], k.shape[2], dtype=torch.bool)
    if is_causal:
        seen = seen & (key <= query)
    if window is not None:
        seen = seen & (key > query - window) & (key < query + window)
    if key_padding_mask is not None:
        seen = seen & key_padding_mask[:, None, None, :]
    # The smallest finite number instead of minus infinity: rows that see nothing stay finite.
    shares = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
    context = (shares * seen) @ v
    output = torch.einsum(
        "bhte,dhe->bthd",
        context,
        o_weight.view(x.shape[2], num_heads, context.shape[-1]),
    )
    if gate is not None:
        gate = gate.to(x.dtype)
        gate = gate if gate.dim() == 3 else gate.expand(x.shape[0], num_heads)[:, None]
        output = output * gate[..., None]
        if dropped_output is not None:
            output = output + (1 - gate)[..., None] * dropped_output
    y = output.sum(2)
    return y if o_bias is None else y + o_bias


def plain_attention(
    x, q_weight, k_weight, v_weight, o_weight, num_heads, *, num_kv_heads=None, kv=None,
    k_bias=None, v_bias=None, k_norm_weight=None, **keywords,
):  # fmt: skip
    shared = {
        name: keywords[name]
        for name in ("rotary_cos", "rotary_sin", "norm_eps")
        if name in keywords
    }
    source = x if kv is None else kv
    k, v = plain_project_kv(
        source, k_weight, v_weight, num_kv_heads or num_heads, k_bias=k_bias, v_bias=v_bias,
        k_norm_weight=k_norm_weight, **shared,
    )  # fmt: skip
    return plain_attend(x, k, v, q_weight, o_weight, num_heads, **keywords)


class Case:
    """Arguments of gated_attention in float64, with some of what an attention may have."""

    def __init__(
        self, batch=3, length=5, heads=6, head_dim=6, *, kv_heads=None, kv_head=None, source=None,
        rotary=None, rotary_batch=1, norms=False, window=None, causal=False, masked=False,
        biased=False, dropped=False, seed=0,
    ):  # fmt: skip
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape, scale=1.0):
            return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

        width = heads * head_dim + 3
        keys, kv_width = (length, width) if source is None else (source, width + 2)
        inner, kv_inner = heads * head_dim, (heads if kv_heads is None else kv_heads) * head_dim
        self.batch, self.length, self.heads, self.keys = batch, length, heads, keys
        self.head_dim, self.kv_heads = head_dim, heads if kv_heads is None else kv_heads
        self.kv_head = kv_head or [h * self.kv_heads // heads for h in range(heads)]
        self.tensors = {
            "x": normal(batch, length, width),
            "q_weight": normal(inner, width, scale=width**-0.5),
            "k_weight": normal(kv_inner, kv_width, scale=kv_width**-0.5),
            "v_weight": normal(kv_inner, kv_width, scale=kv_width**-0.5),
            "o_weight": normal(width, inner, scale=max(1, inner) ** -0.5),
            "q_bias": normal(inner, scale=0.3),
            "k_bias": normal(kv_inner, scale=0.3),
            "v_bias": normal(kv_inner, scale=0.3),
            "o_bias": normal(width, scale=0.3),
        }
        if source is not None:
            self.tensors["kv"] = normal(batch, source, kv_width)
        if norms:
            self.tensors["q_norm_weight"] = 1 + normal(head_dim, scale=0.3)
            self.tensors["k_norm_weight"] = 1 + normal(head_dim, scale=0.3)
        if biased:
            self.tensors["attn_bias"] = normal(1, heads, length, keys)
        if dropped:
            self.tensors["dropped_output"] = normal(heads, width)
        if rotary:
            angle = normal(rotary_batch, length, rotary // 2).repeat(1, 1, 2)
            self.tensors |= {"rotary_cos": angle.cos(), "rotary_sin": angle.sin()}
        self.settings = {"num_kv_heads": kv_heads, "kv_head": kv_head, "window": window}
        self.settings |= {"is_causal": causal, "norm_eps": 1e-5}
        if masked:
            mask = torch.rand(batch, keys, generator=generator) > 0.4
            mask[:1] = False  # a sample without any admissible key
            self.settings["key_padding_mask"] = mask
        gate = torch.rand(batch, heads, generator=generator) + 0.5
        closed = torch.rand(batch, heads, generator=generator) > 0.5
        self.gate = gate.masked_fill(closed, 0.0)
        if heads > 1:
            self.gate[:, 1] = 0.0

    POSITIONAL = ("x", "q_weight", "k_weight", "v_weight", "o_weight")
    FIXED = ("rotary_cos", "rotary_sin")

    def run(self, function=OPERATOR, dtype=torch.float64, tensors=None, **more):
        """`function` on these arguments; `tensors` replaces some, `more` adds keywords."""
        given = {n: t.to(dtype) for n, t in self.tensors.items()} | (tensors or {})
        positional = [given.pop(name) for name in self.POSITIONAL]
        if "gate" in more and more["gate"] is not None and dtype != torch.float64:
            more["gate"] = more["gate"].float()
        return function(*positional, self.heads, **given, **(self.settings | more))

    def reference(self, dtype=torch.float64, function=hk.reference_attention, **more):
        given = {n: t.to(dtype) for n, t in self.tensors.items()}
        weights = hk.AttentionWeights(
            *(given.pop(f"{n}_weight") for n in NAMES),
            **{f"{n}_bias": given.pop(f"{n}_bias") for n in NAMES},
        )
        return function(given.pop("x"), weights, self.heads, **given, **(self.settings | more))

    def gates(self):
        """None, and a gate of every shape, each with closed heads where there are heads."""
        token = self.gate[:, None, :] * (torch.arange(self.length) % 3 > 0).float()[:, None]
        first = self.gate[0] if self.batch else torch.ones(self.heads)
        return {"dense": None, "head": first, "sample": self.gate, "token": token}


UNEVEN, UNORDERED = [0, 0, 0, 1, 2, 2], [2, 0, 1, 0, 2, 2]
CASES = {
    "cross": {"source": 7, "masked": True},
    "cross, one key": {"source": 1},
    "cross, no keys": {"source": 0},
    "cross, causal": {"source": 7, "causal": True, "biased": True},
    "cross, causal, few keys": {"source": 3, "causal": True},
    "grouped": {"kv_heads": 2},
    "grouped, causal": {"kv_heads": 3, "causal": True},
    "grouped, masked": {"kv_heads": 2, "masked": True, "causal": True},
    "grouped, biased": {"kv_heads": 2, "biased": True},
    "one KV head": {"kv_heads": 1, "masked": True},
    "uneven map": {"kv_heads": 3, "kv_head": UNEVEN},
    "unordered map": {"kv_heads": 4, "kv_head": UNORDERED, "causal": True, "masked": True},
    "rotary": {"rotary": 6, "causal": True},
    "rotary, partial": {"rotary": 4, "rotary_batch": 3, "head_dim": 7, "masked": True},
    "norms": {"norms": True},
    "norms, cross": {"norms": True, "source": 4},
    "window": {"window": 2, "masked": True},
    "window, causal": {"window": 2, "causal": True, "length": 8},
    "window of one": {"window": 1, "biased": True},
    "window beyond everything": {"window": 2**62},
    "window, cross": {"window": 2, "source": 3, "length": 8},
    "all, self": {
        "kv_heads": 3, "kv_head": UNEVEN, "rotary": 4, "rotary_batch": 3, "norms": True,
        "window": 3, "causal": True, "masked": True, "biased": True, "dropped": True,
    },
    "all, cross": {
        "kv_heads": 2, "norms": True, "source": 9, "window": 4, "masked": True, "biased": True,
        "dropped": True,
    },
    "one token": {"kv_heads": 2, "length": 1, "rotary": 2, "causal": True},
    "no tokens": {"kv_heads": 2, "length": 0, "rotary": 2, "causal": True},
    "no samples": {"kv_heads": 2, "batch": 0, "source": 3, "norms": True},
    "no heads": {"heads": 0, "source": 3},
    "one head, odd": {"heads": 1, "head_dim": 5, "source": 4, "norms": True},
}  # fmt: skip
