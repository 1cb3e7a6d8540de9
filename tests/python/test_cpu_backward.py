"""The backward of backend "cpu": every kind of attention, what the forward keeps for it."""

import gc
import os
import random
import subprocess
import sys
import weakref

import pytest
import torch
from attention_problem import OPERATOR, Case, plain_attend, plain_attention
from torch.utils import checkpoint

import headkit as hk

ATTEND = torch.ops.headkit.attend


@pytest.fixture(autouse=True)
def _cpu_backend(monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def random_case(seed):
    """Arguments of gated_attention, or of attend, with any of what they may have."""
    choose = random.Random(seed)
    heads, kv_heads = choose.choice([(1, 1), (3, 3), (6, 6), (6, 2), (4, 1), (5, 3)])
    length, source = choose.choice([1, 2, 17, 50, 97]), choose.choice([None, None, 1, 33, 70])
    head_dim = choose.choice([2, 5, 8, 24, 64])
    given = choose.random() < 0.25
    case = Case(
        batch=choose.choice([1, 2, 4]),
        length=length,
        heads=heads,
        head_dim=head_dim,
        kv_heads=kv_heads,
        kv_head=[choose.randrange(kv_heads) for _ in range(heads)] if heads % kv_heads else None,
        source=source,
        rotary=choose.choice([None, 2, head_dim // 2 * 2]) if source is None else None,
        norms=choose.random() < 0.4,
        window=choose.choice([None, None, 1, 7, 40]),
        causal=choose.random() < 0.4,
        dropped=choose.random() < 0.3,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    shape = [case.batch, heads, length, case.keys]
    if choose.random() < 0.5:
        shape = [size if choose.random() < 0.6 else 1 for size in shape][choose.randrange(4) :]
        case.tensors["attn_bias"] = torch.randn(shape, generator=generator, dtype=torch.float64)
    padding = choose.choice(["none", "right", "left", "holes"])
    if padding != "none":
        ends = torch.randint(0, case.keys + 1, (case.batch, 1), generator=generator)
        mask = torch.rand(case.batch, case.keys, generator=generator) < 0.6
        if padding != "holes":
            mask = torch.arange(case.keys) < ends
        case.settings["key_padding_mask"] = mask.flip(1) if padding == "left" else mask
    if given:
        for name in ("kv", "k_weight", "v_weight", "k_bias", "v_bias", "k_norm_weight"):
            case.tensors.pop(name, None)
        for name in ("k", "v"):
            of_keys = (case.batch, kv_heads, case.keys, head_dim)
            case.tensors[name] = torch.randn(of_keys, generator=generator, dtype=torch.float64)
        del case.settings["num_kv_heads"]
        case.settings["query_offset"] = choose.choice([0, 3, max(0, case.keys - length)])
        case.POSITIONAL = ("x", "k", "v", "q_weight", "o_weight")
    gate = choose.choice(["head", "sample", "sample"])
    return case, case.gates()[gate], choose.random() < 0.7


def gradients(case, gate, skip, dtype=torch.float32, plain=False):
    given = "k" in case.tensors
    function = (plain_attend if given else plain_attention) if plain else None
    leaves = {
        name: tensor.to(dtype).detach().requires_grad_()
        for name, tensor in case.tensors.items()
        if name not in Case.FIXED
    }
    leaf_gate = gate.to(dtype).detach().requires_grad_()
    y = case.run(
        function or (ATTEND if given else OPERATOR),
        dtype,
        tensors=leaves,
        gate=leaf_gate,
        skip=skip,
    )
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(dtype)
    leaves["gate"] = leaf_gate
    found = torch.autograd.grad(y, leaves.values(), direction, allow_unused=True)
    result = {
        name: torch.zeros_like(leaves[name]) if gradient is None else gradient
        for name, gradient in zip(leaves, found, strict=True)
    }
    if skip:
        result["gate"] = result["gate"].masked_fill(gate == 0, 0.0)
    return result


def check_random_problems():
    # The largest error of one problem is luck: judged over all of them, relative to its size.
    errors, plain_errors = {}, {}
    for seed in range(80):
        problem = random_case(seed)
        found = gradients(*problem)
        exact = gradients(*problem, torch.float64, plain=True)
        plain = gradients(*problem, plain=True)
        for name, truth in exact.items():
            assert found[name].shape == truth.shape and found[name].dtype == torch.float32
            if truth.numel() == 0:
                continue
            # What is 0 in theory is left with the rounding of its terms, which are of size 1.
            size = truth.abs().max().item()
            size = size if size > 1e-6 else 1.0
            error = (found[name] - truth).abs().max().item() / size
            plain_error = (plain[name] - truth).abs().max().item() / size
            assert error < 1e-3, f"{name}, problem {seed}: {error}, plain {plain_error}"
            errors[name] = max(errors.get(name, 0.0), error)
            plain_errors[name] = max(plain_errors.get(name, 0.0), plain_error)
    for name, error in errors.items():
        allowed = 2 * plain_errors[name] + 2 * torch.finfo(torch.float32).eps
        assert error <= allowed, f"{name}: {error} > {allowed}"


@pytest.mark.parametrize("isa", hk.available_isas())
def test_gradients_of_random_problems_are_as_exact_as_dense_torch(isa):
    environment = {**os.environ, "HEADKIT_ISA": isa}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa]


def test_gradients_of_every_kind_do_not_depend_on_the_threads():
    for seed in range(40):
        problem = random_case(seed)
        torch.set_num_threads(1)
        whole = gradients(*problem)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            for name, value in gradients(*problem).items():
                assert torch.equal(value, whole[name]), f"{name}, problem {seed}"


def layer(batch=3, length=50, heads=4, head_dim=8, **settings):
    case = Case(batch, length, heads, head_dim, dropped=True, **settings)
    leaves = {
        name: tensor.float().requires_grad_(name not in Case.FIXED)
        for name, tensor in case.tensors.items()
    }
    return case, leaves, case.gate.clone().requires_grad_()


def kept_bytes(case, open_pairs, open_kv):
    """What docs/performance.md says is kept of the open pairs and KV heads."""
    tokens, keys = (-(-size // 48) * 48 for size in (case.length, case.keys))
    norms = "q_norm_weight" in case.tensors
    row = -(-case.head_dim // 16) * 16
    pair = tokens * (case.head_dim * (2 + norms) + 2)
    return 4 * (open_pairs * pair + open_kv * keys * (case.head_dim * (1 + norms) + row))


@pytest.mark.parametrize(
    "settings",
    [{}, {"kv_heads": 2, "norms": True, "rotary": 4}, {"kv_heads": 1, "source": 7}],
    ids=["plain", "grouped", "cross"],
)
def test_what_is_kept_has_room_for_every_pair_and_is_freed(settings):
    case, leaves, gate = layer(**settings)
    kept = []

    def pack(tensor):
        if tensor.dim() == 1 and not any(tensor is leaf for leaf in leaves.values()):
            kept.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = case.run(dtype=torch.float32, tensors=leaves, gate=gate)
    pairs = [tensor() for tensor in kept if tensor().numel() > 1000]
    assert len(pairs) == 1
    rooms = kept_bytes(case, case.batch * case.heads, case.batch * case.kv_heads)
    assert pairs[0].nbytes == rooms and not pairs[0].requires_grad
    memory = weakref.ref(pairs.pop())
    y.sum().backward()
    gc.collect()
    assert memory() is None


def test_nothing_is_kept_without_a_graph_or_on_other_backends(monkeypatch):
    case, leaves, gate = layer()
    sizes = []

    def pack(tensor):
        sizes.append(tensor.nbytes)
        return tensor

    smallest = kept_bytes(case, case.batch * case.heads, case.batch * case.heads)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.no_grad():
            case.run(dtype=torch.float32, tensors=leaves, gate=gate)
        assert not sizes
        monkeypatch.setenv("HEADKIT_BACKEND", "aten")
        case.run(dtype=torch.float32, tensors=leaves, gate=gate)
    assert max(sizes) < smallest
    with pytest.raises(ValueError, match="to keep what its backward wants"):
        case.run(torch.ops.headkit.gated_attention_saving, torch.float32, tensors=leaves, gate=gate)


@pytest.mark.parametrize("settings", [{}, {"kv_heads": 2, "norms": True, "rotary": 4}], ids=str)
def test_the_backward_of_a_checkpoint_and_one_that_recomputes_are_the_same(settings):
    case, leaves, gate = layer(**settings)
    inputs = [gate, *(leaf for leaf in leaves.values() if leaf.requires_grad)]
    run = lambda: case.run(dtype=torch.float32, tensors=leaves, gate=gate)
    direction = torch.randn_like(run())
    y = run()
    truth = torch.autograd.grad(y, inputs, direction, retain_graph=True)
    again = torch.autograd.grad(y, inputs, direction)
    checkpointed = torch.autograd.grad(
        checkpoint.checkpoint(run, use_reentrant=False), inputs, direction
    )
    weights = ["q_weight", "k_weight", "v_weight", "o_weight"]
    biases = ["q_bias", "k_bias", "v_bias", "o_bias", "gate", "attn_bias", "dropped_output"]
    order = ["x", "kv", "k", "v", *weights, *biases, "q_norm_weight", "k_norm_weight"]
    given = leaves | {"gate": gate}
    with torch.no_grad():
        recomputed = torch.ops.headkit.gated_attention_backward(
            direction,
            *(leaves[name] for name in Case.POSITIONAL),
            case.heads,
            gate=gate,
            **{name: leaf for name, leaf in leaves.items() if name not in Case.POSITIONAL},
            **case.settings,
            output_mask=[name in given for name in order],
        )
    by_name = dict(zip([n for n in order if n in given], recomputed, strict=True))
    by_name = [by_name[n] for n in ["gate", *(n for n in leaves if n not in Case.FIXED)]]
    for found in (again, checkpointed, by_name):
        for a, b in zip(found, truth, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("settings", [{}, {"kv_heads": 2, "source": 7}], ids=["self", "cross"])
def test_graphs_of_pytorch_keep_it_too(settings):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda case, leaves, gate: case.run(dtype=torch.float32, tensors=leaves, gate=gate),
        fullgraph=True,
        backend="aot_eager",
        dynamic=True,
    )
    for length in (50, 21):
        case, leaves, gate = layer(length=length, **settings)
        inputs = [gate, *(leaf for leaf in leaves.values() if leaf.requires_grad)]
        y = case.run(dtype=torch.float32, tensors=leaves, gate=gate)
        truth = torch.autograd.grad(y.square().sum(), inputs)
        found = torch.autograd.grad(compiled(case, leaves, gate).square().sum(), inputs)
        for a, b in zip(found, truth, strict=True):
            torch.testing.assert_close(a, b)


def test_opcheck_of_the_operators_that_keep():
    case, leaves, gate = layer(kv_heads=2, norms=True, rotary=4)
    given = {name: leaf.detach() for name, leaf in leaves.items()}
    arguments = [given.pop(name) for name in Case.POSITIONAL]
    keywords = given | case.settings | {"gate": gate.detach()}
    saving = torch.ops.headkit.gated_attention_saving
    torch.library.opcheck(  # what it keeps has holes, which no two calls fill alike
        saving.default,
        (*arguments, case.heads),
        keywords,
        test_utils=("test_schema", "test_faketensor"),
    )
    y, saved = saving(*arguments, case.heads, **keywords)
    assert torch.equal(y, OPERATOR(*arguments, case.heads, **keywords))
    wanted = [n in (0, 4, 5, 6, 7, 12) for n in range(17)]  # x, weights, gate
    backward = torch.ops.headkit.gated_attention_backward
    keywords["output_mask"] = wanted
    torch.library.opcheck(
        backward.default, (y, *arguments, case.heads), keywords | {"saved": saved}
    )
    with pytest.raises(ValueError, match="saved of the forward of this call"):
        backward(y, *arguments, case.heads, **keywords, saved=saved[1:])


def test_vmap_over_directions_reads_what_is_kept():
    case, leaves, gate = layer()
    inputs = [gate, leaves["x"], leaves["q_weight"]]
    y = case.run(dtype=torch.float32, tensors=leaves, gate=gate)
    directions = torch.randn(3, *y.shape)
    backward = lambda d: torch.autograd.grad(y, inputs, d, retain_graph=True)
    found = torch.vmap(backward)(directions)
    for i, direction in enumerate(directions):
        for a, b in zip(found, backward(direction), strict=True):
            assert torch.equal(a[i], b)


if __name__ == "__main__":
    os.environ["HEADKIT_BACKEND"] = "cpu"
    check_random_problems()
    print(hk.active_isa())
