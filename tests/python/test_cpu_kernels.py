"""Backend "cpu": right on every level, the same bits in every batch, never stale."""

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import headkit

OPERATOR = torch.ops.headkit.gated_attention


@pytest.fixture(autouse=True)
def _cpu_backend(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random_problem(seed):
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale

    heads, head_dim = choose.choice([0, 1, 3, 5, 12]), choose.choice([5, 8, 32, 64, 80, 128])
    width, length = choose.choice([7, 64, 96, 130]), choose.choice([1, 2, 33, 97, 128, 257])
    batch = choose.choice([0, 1, 2, 5])
    inner = heads * head_dim
    x = normal(batch, length, width)
    weights = [normal(inner, width, scale=width**-0.5) for _ in range(3)]
    weights.append(normal(width, inner, scale=max(1, inner) ** -0.5))
    options = {"skip": choose.random() < 0.7, "is_causal": choose.random() < 0.4}
    for name, size in (("q", inner), ("k", inner), ("v", inner), ("o", width)):
        if choose.random() < 0.7:
            options[f"{name}_bias"] = normal(size)
    gate = choose.choice(["none", "hard", "soft", "layer"])
    if gate != "none":
        shape = (heads,) if gate == "layer" else (batch, heads)
        options["gate"] = (torch.rand(shape, generator=generator) < 0.5).float()
        if gate == "soft":
            options["gate"] *= normal(*shape)
    if choose.random() < 0.5:
        options["dropped_output"] = normal(heads, width)
    mask = choose.choice(["none", "right", "holes"])
    if mask == "right":
        lengths = torch.randint(0, length + 1, (batch, 1), generator=generator)
        options["key_padding_mask"] = torch.arange(length) < lengths
    elif mask == "holes":
        options["key_padding_mask"] = torch.rand(batch, length, generator=generator) < 0.6
    return x, weights, heads, options


# Gates stay in float32 beside reduced precision.
def in_dtype(problem, dtype):
    x, weights, heads, options = problem

    def cast(value, name=None):
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        if not floating or (name == "gate" and dtype != torch.float64):
            return value
        return value.to(dtype)

    options = {name: cast(value, name) for name, value in options.items()}
    return cast(x), [cast(w) for w in weights], heads, options


def run(problem, backend="cpu", dtype=None):
    x, weights, heads, options = problem if dtype is None else in_dtype(problem, dtype)
    os.environ["HEADKIT_BACKEND"] = backend
    return OPERATOR(x, *weights, heads, **options)


def check_random_problems(count, dtype=torch.float32):
    of_gates = []
    for seed in range(count):
        problem = in_dtype(random_problem(seed), dtype)
        found = run(problem)
        exact = run(problem, "reference", torch.float64)
        plain = run(problem, "reference")
        assert found.shape == exact.shape and found.dtype == dtype
        of_gates.append(check_gradients(problem, seed))
        if found.numel():
            allowed = 2 * (plain - exact).abs().max()
            allowed += 2 * torch.finfo(dtype).eps * exact.abs().max()
            assert (found - exact).abs().max() <= allowed, f"problem {seed}, {dtype}"
    # Gates are few, so that the largest error of one problem is luck: judged over all of them.
    errors, plain_errors = zip(*of_gates, strict=True)
    assert max(errors) <= 2 * max(plain_errors) + 2 * torch.finfo(dtype).eps


DIFFERENTIABLE = ("q_bias", "k_bias", "v_bias", "o_bias", "gate", "dropped_output")


def gradients(problem, backend="cpu", dtype=None, only=None):
    x, weights, heads, options = problem if dtype is None else in_dtype(problem, dtype)
    os.environ["HEADKIT_BACKEND"] = backend
    inputs = dict(zip(("x", "q", "k", "v", "o"), (x, *weights), strict=True))
    inputs |= {name: options[name] for name in DIFFERENTIABLE if name in options}
    inputs = {name: value.detach().clone() for name, value in inputs.items()}
    leaves = [inputs[name].requires_grad_() for name in only or inputs]
    arguments = [inputs.pop(name) for name in ("x", "q", "k", "v", "o")]
    y = OPERATOR(*arguments, heads, **{**options, **inputs})
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(x.dtype)
    found = torch.autograd.grad(y, leaves, direction)
    names = only or ["x", "q", "k", "v", "o", *inputs]
    return dict(zip(names, found, strict=True))


# A bias is judged with its weight, as that of a constant 1: the gradient of k_bias is 0 in theory.
# Returns the error of the gate's gradient and that of plain torch, relative to its size.
def check_gradients(problem, name):
    dtype = problem[0].dtype
    found = gradients(problem)
    exact = gradients(problem, "reference", torch.float64)
    plain = gradients(problem, "reference")
    for weight in ("q", "k", "v"):
        if f"{weight}_bias" in exact:
            for values in (found, exact, plain):
                bias = values.pop(f"{weight}_bias")[:, None]
                values[weight] = torch.cat([values[weight], bias], 1)
    of_gate = (0.0, 0.0)
    for argument, truth in exact.items():
        assert found[argument].shape == truth.shape
        assert found[argument].dtype == plain[argument].dtype
        if truth.numel() == 0:
            continue
        error, allowed = ((x[argument] - truth).abs().max() for x in (found, plain))
        size = truth.abs().max()
        if argument == "gate":
            of_gate = tuple((x / size).item() if size else x.item() for x in (error, allowed))
            continue
        allowed = 2 * allowed + 2 * torch.finfo(dtype).eps * size
        assert error <= allowed, f"{argument}, problem {name}: {error} > {allowed}"
    return of_gate


@pytest.mark.parametrize("isa", headkit.available_isas())
def test_every_level_agrees_with_float64(isa):
    environment = {**os.environ, "HEADKIT_ISA": isa}
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


def test_an_impossible_level_is_refused():
    environment = {**os.environ, "HEADKIT_ISA": "mmx"}
    code = "import headkit; headkit.active_isa()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert "RuntimeError: [isa] expected one of scalar" in done.stderr
    assert "HEADKIT_ISA=mmx" in done.stderr


@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.float32, 40), (torch.bfloat16, 20), (torch.float16, 5)], ids=str
)
def test_a_sample_does_not_depend_on_its_batch_or_on_the_threads(dtype, count):
    for seed in range(count):
        x, weights, heads, options = in_dtype(random_problem(seed), dtype)
        torch.set_num_threads(1)
        whole = run((x, weights, heads, options))
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            assert torch.equal(run((x, weights, heads, options)), whole)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        for part in (order, order[:1]):
            rows = {
                name: value[part]
                if name == "key_padding_mask" or (name == "gate" and value.dim() == 2)
                else value
                for name, value in options.items()
            }
            assert torch.equal(run((x[part], weights, heads, rows)), whole[part])


@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 25), (torch.bfloat16, 8)], ids=str)
def test_gradients_do_not_depend_on_the_threads(dtype, count):
    for seed in range(count):
        problem = in_dtype(random_problem(seed), dtype)
        torch.set_num_threads(1)
        whole = gradients(problem)
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            for name, value in gradients(problem).items():
                assert torch.equal(value, whole[name]), f"{name}, problem {seed}"


def test_many_samples_are_summed_in_groups():
    torch.manual_seed(1)
    inner, width = 12 * 64, 32  # more than one workspace holds
    weights = [torch.randn(inner, width) / width**0.5 for _ in range(3)]
    weights.append(torch.randn(width, inner) / inner**0.5)
    gate = (torch.rand(36, 12) < 0.9).float()
    gate[:, 3], gate[:30, 4], gate[6:, 5] = 0, 0, 0
    problem = (torch.randn(36, 128, width), weights, 12, {"gate": gate})
    error, plain_error = check_gradients(problem, "groups")
    assert error <= 2 * plain_error + 2 * torch.finfo(torch.float32).eps


def test_a_gradient_alone_is_the_same():
    problem = random_problem(3)
    x, _, heads, options = problem
    options["gate"] = torch.rand(len(x), heads)
    whole = gradients(problem)
    for name, value in whole.items():
        alone = gradients(problem, only=[name])
        assert list(alone) == [name] and torch.equal(alone[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
def test_right_padding_does_not_change_a_bit(is_causal, dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 61, 40, dtype=dtype)
    attention = headkit.nn.MultiHeadAttention(40, 4, dtype=dtype)
    with torch.no_grad():
        short = attention(x, is_causal=is_causal)
        padded = torch.cat([x, torch.randn(2, 90, 40, dtype=dtype)], 1)
        mask = torch.arange(151).expand(2, -1) < 61
        long = attention(padded, key_padding_mask=mask, is_causal=is_causal)
    assert torch.equal(long[:, :61], short)


def test_calls_from_many_threads_agree():
    problem = random_problem(7)
    expected = run(problem)
    results = []

    def call():
        for _ in range(5):
            results.append(run(problem))

    workers = [threading.Thread(target=call) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 20
    assert all(torch.equal(result, expected) for result in results)


def test_a_forked_process_computes_on():
    code = """
import os, torch, headkit
torch.set_num_threads(2)
attention = headkit.nn.MultiHeadAttention(64, 4)
x = torch.randn(8, 64, 64)
with torch.no_grad(): expected = attention(x)
child = os.fork()
if child == 0:
    with torch.no_grad(): same = torch.equal(attention(x), expected)
    os._exit(0 if same else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_one_thread_means_one_thread():
    code = """
import os, torch, headkit
def threads(): return len(os.listdir("/proc/self/task"))
attention = headkit.nn.MultiHeadAttention(64, 4)
x = torch.randn(4, 64, 64)
torch.set_num_threads(1)
before = threads()
with torch.no_grad(): attention(x)
assert threads() == before, "set_num_threads(1) started threads"
torch.set_num_threads(3)
with torch.no_grad(): attention(x)
assert threads() == before + 2, f"3 threads became {threads() - before + 1}"
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line}
assert len([name for name in runtimes if "gomp" in name or "iomp" in name]) == 1, runtimes
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


class TestPackedWeights:
    """Packed weights follow their parameters."""

    @pytest.fixture
    def attention(self):
        torch.manual_seed(0)
        module = headkit.nn.MultiHeadAttention(24, 3)
        self.x = torch.randn(2, 9, 24)
        self.first = self.output(module)
        return module

    def output(self, module):
        with torch.no_grad():
            return module(self.x)

    def expect_fresh(self, module):
        found = self.output(module)
        exact = headkit.reference_attention(self.x, module.weights(), 3).detach()
        assert torch.allclose(found, exact, atol=1e-5)
        assert not torch.equal(found, self.first)

    def test_optimiser_step(self, attention):
        optimiser = torch.optim.SGD(attention.parameters(), lr=1e-3)
        attention(self.x).square().sum().backward()
        optimiser.step()
        self.expect_fresh(attention)

    def test_fused_optimiser_step(self, attention):
        optimiser = torch.optim.Adam(attention.parameters(), lr=1e-2, fused=True)
        attention(self.x).square().sum().backward()
        optimiser.step()
        self.expect_fresh(attention)

    def test_load_state_dict(self, attention):
        torch.manual_seed(1)
        attention.load_state_dict(headkit.nn.MultiHeadAttention(24, 3).state_dict())
        self.expect_fresh(attention)

    @pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj"])
    def test_edit_of_each_weight_and_bias(self, attention, name):
        with torch.no_grad():
            getattr(attention, name).weight[0, 0] += 3.0
        self.expect_fresh(attention)
        self.first = self.output(attention)
        with torch.no_grad():
            getattr(attention, name).bias += torch.arange(24.0)
        if name != "k_proj":  # a bias of K moves all scores of a query alike
            self.expect_fresh(attention)

    def test_edit_in_bfloat16(self, attention):
        attention.to(torch.bfloat16)
        self.x = self.x.bfloat16()
        first = self.output(attention)
        assert torch.equal(self.output(attention), first)
        with torch.no_grad():
            attention.v_proj.weight.mul_(2.0)
        changed = self.output(attention)
        assert not torch.equal(changed, first)
        attention.double()
        exact = headkit.reference_attention(self.x.double(), attention.weights(), 3)
        assert torch.allclose(changed.double(), exact, atol=2e-2)

    def test_new_data(self, attention):
        attention.q_proj.weight.data = torch.randn(24, 24)
        self.expect_fresh(attention)

    def test_uncounted_edit_needs_refresh(self, attention):
        attention.v_proj.weight.data.mul_(2.0)
        headkit.refresh()
        self.expect_fresh(attention)

    def test_view_of_a_parameter(self):
        torch.manual_seed(2)
        self.x = torch.randn(2, 9, 24)
        stacked = torch.nn.Parameter(torch.randn(4, 24, 24) / 5)

        def call():
            with torch.no_grad():
                return OPERATOR(self.x, *stacked.unbind(0), 3)

        first = call()
        assert torch.equal(call(), first)
        with torch.no_grad():
            stacked[1] += 1.0
        weights = headkit.AttentionWeights(*stacked.detach().unbind(0))
        exact = headkit.reference_attention(self.x, weights, 3)
        assert torch.allclose(call(), exact, atol=1e-5)

    def test_inference_tensors_are_packed_at_every_call(self):
        with torch.inference_mode():
            x, weights = torch.randn(1, 4, 8), torch.randn(4, 8, 8)
            first = OPERATOR(x, *weights.unbind(0), 2)
            weights[2].mul_(2.0)
            second = OPERATOR(x, *weights.unbind(0), 2)
        assert torch.allclose(second, 2.0 * first, atol=1e-5)

    def test_heads_cut_another_way(self, attention):
        weights = attention.weights()
        with torch.no_grad():
            found = headkit.gated_attention(self.x, weights, 6)
            exact = headkit.reference_attention(self.x, weights, 6)
        assert torch.allclose(found, exact, atol=1e-5)


if __name__ == "__main__":
    check_random_problems(40)
    check_random_problems(20, torch.bfloat16)
    check_random_problems(10, torch.float16)
    print(headkit.active_isa())
