"""Random feed-forward layers, and their definition in plain torch."""

import random

import torch
from torch.nn import functional

import headkit as hk

OPERATOR = torch.ops.headkit.gated_feed_forward

ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


def plain_feed_forward(
    x, in_weight, out_weight, *, in_bias=None, out_bias=None, up_weight=None, up_bias=None,
    activation="gelu", block_size=32, gate=None, prefix=None, skip=True, dropped_output=None,
):  # fmt: skip
    hidden = ACTIVATIONS[activation](functional.linear(x, in_weight, in_bias))
    if up_weight is not None:
        hidden = hidden * functional.linear(x, up_weight, up_bias)
    blocks = -(-in_weight.shape[0] // block_size)
    if prefix is not None:
        gate = (torch.arange(blocks) < prefix[:, None]).to(x.dtype)
    y = 0 * x
    for block in range(blocks):
        rows = slice(block * block_size, (block + 1) * block_size)
        part = hidden[..., rows] @ out_weight[:, rows].T
        if gate is not None:
            share = gate.to(x.dtype)[..., block].reshape(-1, 1, 1)
            part = share * part
            if dropped_output is not None:
                part = part + (1 - share) * dropped_output[block]
        y = y + part
    return y if out_bias is None else y + out_bias


def reference(*positional, **keywords):
    """headkit.reference_feed_forward with the arguments of the operator."""
    names = ("in_weight", "out_weight", "up_weight", "in_bias", "out_bias", "up_bias")
    x, *first = positional
    given = dict(zip(names, first, strict=False))
    given |= {name: keywords.pop(name) for name in names if name in keywords}
    weights = hk.FeedForwardWeights(
        given.pop("in_weight"),
        given.pop("out_weight"),
        up=given.pop("up_weight", None),
        inner_bias=given.pop("in_bias", None),
        out_bias=given.pop("out_bias", None),
        up_bias=given.pop("up_bias", None),
    )
    return hk.reference_feed_forward(x, weights, **keywords)


class Layer:
    """Arguments of gated_feed_forward in float64, drawn from a seed."""

    def __init__(self, seed=0, **fixed):
        choose = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

        def pick(name, values):
            return fixed.get(name, choose.choice(values))

        self.batch, self.length = pick("batch", [0, 1, 2, 5]), pick("length", [1, 7, 33, 197])
        self.width, self.neurons = pick("width", [5, 48, 77]), pick("neurons", [0, 9, 100, 600])
        self.block_size = pick("block_size", [7, 16, 32, 1000])
        self.blocks = -(-self.neurons // self.block_size)
        self.settings = {
            "activation": pick("activation", list(ACTIVATIONS)),
            "block_size": self.block_size,
            "skip": pick("skip", [True, True, False]),
        }
        self.tensors = {
            "x": self.normal(self.batch, self.length, self.width),
            "in_weight": self.normal(
                self.neurons, self.width, scale=1.5 * max(1, self.width) ** -0.5
            ),
            "out_weight": self.normal(self.width, self.neurons, scale=max(1, self.neurons) ** -0.5),
        }
        if pick("biases", [True, True, False]):
            self.tensors["in_bias"] = self.normal(self.neurons, scale=0.3)
            self.tensors["out_bias"] = self.normal(self.width, scale=0.3)
        if pick("gated", [True, False]):
            self.tensors["up_weight"] = self.normal(self.neurons, self.width, scale=0.3)
            if "in_bias" in self.tensors:
                self.tensors["up_bias"] = self.normal(self.neurons, scale=0.3)
        if pick("dropped", [True, False]):
            self.tensors["dropped_output"] = self.normal(self.blocks, self.width)
        self.set_gate(pick("gate", ["none", "layer", "hard", "soft", "same", "prefix"]))

    def normal(self, *shape, scale=1.0):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64) * scale

    def set_gate(self, kind):
        self.tensors.pop("gate", None)
        self.settings.pop("prefix", None)
        open_gates = torch.rand(self.batch, self.blocks, generator=self.generator) < 0.5
        gate = open_gates.double()
        if kind == "prefix":
            self.settings["prefix"] = torch.randint(
                0, self.blocks + 1, (self.batch,), generator=self.generator
            )
        elif kind == "layer":
            shared = torch.rand(self.blocks, generator=self.generator, dtype=torch.float64)
            self.tensors["gate"] = shared * (shared < 0.6)
        elif kind == "soft":
            self.tensors["gate"] = gate * self.normal(self.batch, self.blocks)
        elif kind == "same":  # every other sample alike
            gate[::2] = gate[:1].clone()
            self.tensors["gate"] = gate
        elif kind == "hard":
            self.tensors["gate"] = gate

    def cast(self, dtype):
        gate_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return {
            name: value.to(gate_dtype if name == "gate" else dtype)
            for name, value in self.tensors.items()
        }

    def run(self, function=OPERATOR, dtype=torch.float64, tensors=None, **more):
        """`function` on these arguments; `tensors` replaces some, `more` adds keywords."""
        given = self.cast(dtype) | (tensors or {})
        positional = [given.pop(name) for name in ("x", "in_weight", "out_weight")]
        return function(*positional, **given, **(self.settings | more))

    def gradients(self, function=OPERATOR, dtype=torch.float64, only=None, **more):
        """Gradients by name, along a direction that is the same for every dtype."""
        leaves = {
            name: value.detach().requires_grad_(only is None or name in only)
            for name, value in self.cast(dtype).items()
        }
        y = self.run(function, dtype, leaves, **more)
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(9))
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        found = torch.autograd.grad(
            y, list(wanted.values()), direction.to(dtype), materialize_grads=True
        )
        return dict(zip(wanted, found, strict=True))

    def open_gates(self):
        """Bool [N] or [B, N]: gates that receive gradients."""
        return self.tensors["gate"].ne(0) | (not self.settings["skip"])
