"""The gated feed-forward operator: right on every backend and level, skipped where closed."""

import os
import subprocess
import sys

import pytest
import torch
from feed_forward_problem import ACTIVATIONS, OPERATOR, Layer, plain_feed_forward, reference

import headkit as hk

BACKENDS = ("cpu", "aten", "reference")


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def assert_accurate(found, plain, exact, dtype, name):
    if exact.numel() == 0:
        assert found.shape == exact.shape
        return
    error, allowed = ((values.double() - exact).abs().max() for values in (found, plain))
    allowed = 2 * allowed + 2 * torch.finfo(dtype).eps * exact.abs().max()
    assert error <= allowed, f"{name}: {error} > {allowed}"


def test_reference_is_the_definition():
    for seed in range(20):
        layer = Layer(seed)
        exact = layer.run(plain_feed_forward)
        torch.testing.assert_close(layer.run(reference), exact, rtol=1e-12, atol=1e-12)
        truth = layer.gradients(plain_feed_forward)
        for name, value in layer.gradients(reference).items():
            torch.testing.assert_close(value, truth[name], rtol=1e-10, atol=1e-10)


# Run by a process of its own for each level too.
def check_random_layers(count, backend, dtype=torch.float32):
    os.environ["HEADKIT_BACKEND"] = backend
    for seed in range(count):
        layer = Layer(seed)
        found = layer.run(dtype=dtype)
        assert found.dtype == dtype and found.is_contiguous()
        plain, exact = layer.run(plain_feed_forward, dtype), layer.run(plain_feed_forward)
        assert_accurate(found, plain, exact, dtype, f"layer {seed}")
        check_gradients(layer, dtype, seed)


# A bias is judged with its weight, as that of a constant 1. Gates are few, so that the error of one
# of them is luck: they are judged by the size of what is summed up.
def check_gradients(layer, dtype, seed):
    found = layer.gradients(dtype=dtype)
    plain = layer.gradients(plain_feed_forward, dtype)
    exact = layer.gradients(plain_feed_forward)
    if "gate" in exact:
        opened = layer.open_gates()
        for values in (plain, exact):
            values["gate"] = values["gate"] * opened
        assert (found["gate"][~opened] == 0).all()
    for weight in ("in", "up"):
        if f"{weight}_bias" in exact:
            for values in (found, plain, exact):
                bias = values.pop(f"{weight}_bias")[:, None]
                values[f"{weight}_weight"] = torch.cat([values[f"{weight}_weight"], bias], 1)
    for name, truth in exact.items():
        assert found[name].shape == truth.shape
        size = truth.abs().max() if truth.numel() else 0.0
        if name == "gate" and size:
            error = (found[name] - truth).abs().max() / size
            assert error <= 20 * torch.finfo(dtype).eps * truth.numel() ** 0.5, f"gate, {seed}"
            continue
        assert_accurate(found[name], plain[name], truth, dtype, f"{name} of layer {seed}")


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_layers_agree_with_float64(backend, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", backend)
    check_random_layers(40, backend)


def test_random_layers_in_bfloat16(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    check_random_layers(40, "cpu", torch.bfloat16)


@pytest.mark.parametrize("isa", hk.available_isas())
def test_every_level_agrees_with_float64(isa):
    environment = os.environ | {"HEADKIT_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "aten"])
def test_reduced_precision(dtype, backend, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", backend)
    for activation in ACTIVATIONS:
        layer = Layer(3, batch=2, length=9, neurons=100, activation=activation, gate="soft")
        rounded = {name: value.to(dtype).double() for name, value in layer.tensors.items()}
        rounded["gate"] = layer.tensors["gate"].float().double()
        layer.tensors = rounded
        found, exact = layer.run(dtype=dtype), layer.run(plain_feed_forward)
        assert_accurate(found, layer.run(plain_feed_forward, dtype), exact, dtype, activation)


def test_double_runs_on_the_composite():
    layer = Layer(5, batch=3, length=7, neurons=100)
    exact = layer.run(plain_feed_forward)
    torch.testing.assert_close(layer.run(), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gate", ["none", "layer", "soft", "prefix"])
@pytest.mark.parametrize("backend", ["aten", "reference"])
def test_gradcheck(gate, backend, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", backend)
    for activation in ("gelu", "gelu_tanh", "silu"):
        layer = Layer(
            1, batch=2, length=3, width=5, neurons=9, block_size=4, gate=gate, skip=False,
            activation=activation, gated=True, biases=True, dropped=True,
        )  # fmt: skip
        names = list(layer.tensors)
        inputs = [layer.tensors[name].clone().requires_grad_() for name in names]
        assert torch.autograd.gradcheck(
            lambda *leaves, names=names, layer=layer: layer.run(
                tensors=dict(zip(names, leaves, strict=True))
            ),
            inputs,
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_mask_mode_equals_skipping(backend, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", backend)
    layer = Layer(2, batch=4, length=33, neurons=600, gate="hard", dropped=True)
    torch.testing.assert_close(
        layer.run(dtype=torch.float32, skip=True), layer.run(dtype=torch.float32, skip=False)
    )


def test_a_prefix_is_a_gate(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    layer = Layer(4, batch=4, length=7, neurons=600, block_size=32, gate="prefix")
    prefix = layer.settings["prefix"]
    gate = (torch.arange(layer.blocks) < prefix[:, None]).float()
    found = layer.run(dtype=torch.float32)
    assert torch.equal(found, layer.run(dtype=torch.float32, prefix=None, gate=gate))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gate", ["none", "layer", "hard", "soft", "same", "prefix"])
def test_bits_depend_on_neither_batch_nor_threads(gate, dtype, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    for length in (1, 7, 130):
        layer = Layer(6, batch=5, length=length, width=77, neurons=600, block_size=7, gate=gate)
        torch.set_num_threads(1)
        whole = layer.run(dtype=dtype)
        for threads in (2, 3, 8):
            torch.set_num_threads(threads)
            assert torch.equal(layer.run(dtype=dtype), whole)
        for sample in range(5):
            one = {"x": layer.tensors["x"][sample : sample + 1].to(dtype)}
            more = {}
            if gate == "prefix":
                more["prefix"] = layer.settings["prefix"][sample : sample + 1]
            elif gate not in ("none", "layer"):
                one["gate"] = layer.tensors["gate"][sample : sample + 1].float()
            alone = layer.run(dtype=dtype, tensors=one, **more)
            assert torch.equal(alone[0], whole[sample])


@pytest.mark.parametrize("gate", ["none", "layer", "same", "prefix"])
@pytest.mark.parametrize("gated", [False, True])
def test_what_the_forward_keeps_changes_no_bit(gate, gated):
    layer = Layer(
        6, batch=5, length=7, width=48, neurons=100, block_size=16, gate=gate, gated=gated,
        biases=True,
    )  # fmt: skip
    kept = layer.gradients(dtype=torch.float32)
    given = layer.cast(torch.float32)
    names = ("x", "in_weight", "out_weight", "in_bias", "out_bias", "up_weight", "up_bias")
    mask = [name in given for name in (*names, "gate", "dropped_output")]
    direction = torch.randn(given["x"].shape, generator=torch.Generator().manual_seed(9))
    found = layer.run(
        lambda *positional, **rest: torch.ops.headkit.gated_feed_forward_backward(
            direction, *positional, **rest, output_mask=mask
        ),
        torch.float32,
    )
    order = [name for name in (*names, "gate", "dropped_output") if name in given]
    for name, value in zip(order, found, strict=True):
        assert torch.equal(kept[name], value), name


def test_the_backend_may_change_between_forward_and_backward(monkeypatch):
    layer = Layer(6, batch=2, length=7, neurons=100, gate="soft")
    for first, second in (("cpu", "aten"), ("aten", "cpu")):
        monkeypatch.setenv("HEADKIT_BACKEND", first)
        x = layer.tensors["x"].float().requires_grad_()
        y = layer.run(dtype=torch.float32, tensors={"x": x})
        monkeypatch.setenv("HEADKIT_BACKEND", second)
        (found,) = torch.autograd.grad(y.sum(), x)
        exact = layer.tensors["x"].clone().requires_grad_()
        truth = torch.autograd.grad(
            layer.run(plain_feed_forward, tensors={"x": exact}).sum(), exact
        )
        torch.testing.assert_close(found.double(), truth[0], rtol=1e-3, atol=1e-3)


def test_weights_are_packed_again_after_a_change(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    layer = Layer(7, batch=2, length=7, neurons=100, width=48, gated=True)
    tensors = layer.cast(torch.float32)
    layer.run(dtype=torch.float32, tensors=tensors)
    for name in ("in_weight", "out_weight", "up_weight", "in_bias"):
        if name in tensors:
            tensors[name].mul_(1.5)
            found = layer.run(dtype=torch.float32, tensors=tensors)
            truth = layer.run(plain_feed_forward, torch.float32, tensors)
            torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "sizes", [{"batch": 0}, {"length": 0}, {"width": 0}, {"neurons": 0}], ids=str
)
def test_sizes_of_zero(backend, sizes, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", backend)
    layer = Layer(
        8, **({"batch": 2, "length": 3, "width": 5, "neurons": 9, "gate": "hard"} | sizes)
    )
    found = layer.run(dtype=torch.float32)
    torch.testing.assert_close(found, layer.run(plain_feed_forward, torch.float32))
    for name, value in layer.gradients(dtype=torch.float32).items():
        assert value.shape == layer.tensors[name].shape


def test_closed_everywhere_is_the_bias():
    layer = Layer(9, batch=2, length=3, neurons=100, gate="none", biases=True, dropped=False)
    gate = torch.zeros(2, layer.blocks)
    found = layer.run(dtype=torch.float32, gate=gate)
    assert torch.equal(found, layer.tensors["out_bias"].float().expand(found.shape))


REFUSED = {
    "activation": ({"activation": "tanh"}, "activation gelu"),
    "block size": ({"block_size": 0}, "block_size of at least 1"),
    "gate shape": ({"gate": torch.ones(3)}, r"gate of shape \[N\] or \[B, N\]"),
    "gate dtype": ({"gate": torch.ones(4).double()}, "gate of dtype Float"),
    "NaN gate": ({"gate": torch.tensor([1.0, float("nan"), 1.0, 1.0])}, "finite gates"),
    "infinite gate": ({"gate": torch.tensor([1.0, float("inf"), 1.0, 1.0])}, "finite gates"),
    "prefix shape": ({"prefix": torch.tensor([1])}, r"prefix of shape \[B\]"),
    "prefix dtype": ({"prefix": torch.tensor([1.0, 1.0])}, "dtype Long"),
    "prefix range": ({"prefix": torch.tensor([1, 5])}, r"prefix in \[0, 4\]"),
    "both": ({"gate": torch.ones(4), "prefix": torch.tensor([1, 2])}, "gate or prefix"),
    "bias shape": ({"in_bias": torch.ones(3)}, r"in_bias of shape \[F\]"),
    "bias alone": ({"up_bias": torch.ones(100)}, "up_bias with up_weight"),
    "up shape": ({"up_weight": torch.ones(100, 7)}, r"up_weight of shape \[F, D\]"),
    "dropped": ({"dropped_output": torch.ones(3, 6)}, r"dropped_output of shape \[N, D\]"),
    "dtype": ({"out_bias": torch.ones(6).double()}, "out_bias of the dtype of x"),
}


@pytest.mark.parametrize("keywords, message", REFUSED.values(), ids=REFUSED)
def test_refusals(keywords, message):
    x, inner, out = torch.randn(2, 3, 6), torch.randn(100, 6), torch.randn(6, 100)
    with pytest.raises(ValueError, match=rf"\[gated_feed_forward\].*{message}"):
        OPERATOR(x, inner, out, **keywords)


def test_positional_refusals():
    x, inner, out = torch.randn(2, 3, 6), torch.randn(100, 6), torch.randn(6, 100)
    with pytest.raises(ValueError, match=r"x of shape \[B, T, D\]"):
        OPERATOR(x[0], inner, out)
    with pytest.raises(ValueError, match=r"in_weight of shape \[F, D\]"):
        OPERATOR(x, inner[:, :5], out)
    with pytest.raises(ValueError, match=r"out_weight of shape \[D, F\]"):
        OPERATOR(x, inner, out.T)


def test_an_impossible_backend_is_refused(monkeypatch):
    layer = Layer(1, batch=2, length=3)
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    with pytest.raises(RuntimeError, match="HEADKIT_BACKEND=cpu: the CPU kernels sum in float32"):
        layer.run()
    monkeypatch.setenv("HEADKIT_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="no CUDA kernels"):
        layer.run(dtype=torch.float32)


def test_backend_choice():
    weights = hk.FeedForwardWeights(torch.randn(24, 6), torch.randn(6, 24))
    assert hk.feed_forward_backend(torch.randn(1, 2, 6), weights).name == "cpu"
    double = hk.FeedForwardWeights(weights.inner.double(), weights.out.double())
    assert hk.feed_forward_backend(torch.randn(1, 2, 6).double(), double).name == "aten"


if __name__ == "__main__":
    check_random_layers(25, "cpu")
    check_random_layers(10, "cpu", torch.bfloat16)
