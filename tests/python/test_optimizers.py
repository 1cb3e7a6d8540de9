"""Optimisers go on when heads are removed under them."""

import copy

import pytest
import torch
import transformers

import headkit as hk

from .families import FAMILIES, HEADS, result

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=False),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.01),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}
MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


def loss(model, inputs):
    return result(model, inputs).pow(2).mean()


def step(model, optimizer, inputs):
    optimizer.zero_grad()
    loss(model, inputs).backward()
    optimizer.step()


def pair(family="BERT"):
    """A gated and a plain model of float64, and their inputs."""
    known = FAMILIES[family]
    plain = known.make().double()
    model = copy.deepcopy(plain)
    hk.attach(model)
    inputs = known.inputs(3, known.paddings[-1])
    return (
        known,
        model,
        plain,
        {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()},
    )


def rows(kept, width=6):
    return [head * width + row for head in kept for row in range(width)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_after_a_removal_are_those_of_masked_heads(name):
    known, model, plain, inputs = pair()
    mine, other = (OPTIMIZERS[name](one.parameters()) for one in (model, plain))
    for _ in range(2):
        step(model, mine, inputs)
        step(plain, other, inputs)
    hk.apply(model, MASK, optimizer=mine)
    with known.oracle(plain, MASK.double()):
        for _ in range(2):
            step(model, mine, inputs)
            step(plain, other, inputs)
    gone = ("query", "key", "value", "attention.output.dense")
    for (path, found), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        if path.endswith("key.bias"):
            continue  # softmax does not see it: its gradient is rounding, which Adam enlarges
        if any(part in path for part in gone) and found.shape != expected.shape:
            kept = rows(MASK[int(path.split(".")[3])].nonzero().flatten().tolist())
            axis = 1 if "output" in path else 0
            expected = expected.index_select(axis, torch.tensor(kept, dtype=torch.long))
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    assert all(p.grad is not None for group in mine.param_groups for p in group["params"])


# Heads of layers that shared their weights are theirs alone once some are gone.
UNSHARED = [name for name in FAMILIES if not name.startswith("ALBERT")]


@pytest.mark.parametrize("family", UNSHARED)
def test_one_step_of_every_family_is_that_of_masked_heads(family):
    known, model, plain, inputs = pair(family)
    mask = torch.ones(known.blocks, HEADS)
    mask[0, :2] = mask[-1, 1] = 0
    mine = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    other = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    step(model, mine, inputs)
    step(plain, other, inputs)
    hk.apply(model, mask, optimizer=mine)
    with known.oracle(plain, mask.double()):
        step(model, mine, inputs)
        step(plain, other, inputs)
        expected = loss(plain, inputs)
    close = known.gradient_tolerance
    torch.testing.assert_close(loss(model, inputs), expected, atol=close, rtol=close)


def test_steps_of_heads_that_share_keys():
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=28,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    plain = transformers.LlamaForCausalLM(config).double()
    model = copy.deepcopy(plain)
    hk.attach(model)
    inputs = {"input_ids": torch.randint(50, (3, 6))}
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 1, 0]])
    mine, other = (torch.optim.Adam(one.parameters(), lr=0.01) for one in (model, plain))
    step(model, mine, inputs)
    step(plain, other, inputs)
    hk.apply(model, mask, optimizer=mine)
    for layer, row in zip(plain.model.layers, mask.double(), strict=True):
        wide = row.repeat_interleave(6)
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, wide=wide: args[0] * wide)
    for _ in range(2):
        step(model, mine, inputs)
        step(plain, other, inputs)
    torch.testing.assert_close(loss(model, inputs), loss(plain, inputs), atol=1e-9, rtol=0)
    assert all(mine.state[one]["exp_avg"].shape == one.shape for one in model.parameters())


def test_shared_parameters_become_several():
    known, model, _, inputs = pair("ALBERT")
    optimizer = torch.optim.Adam(model.named_parameters())
    step(model, optimizer, inputs)
    mask = torch.ones(known.blocks, HEADS)
    mask[1, 0] = mask[2, 3] = 0
    hk.apply(model, mask, optimizer=optimizer)
    group = optimizer.param_groups[0]
    held = {id(one) for one in group["params"]}
    assert {id(one) for one in model.parameters()} == held
    assert len(group["params"]) == len(held) == len(group["param_names"]) == len(optimizer.state)
    tensors = [v.data_ptr() for s in optimizer.state.values() for v in s.values()]
    assert len(set(tensors)) == len(tensors), "no two parameters share what is remembered"
    before = [one.clone() for one in group["params"]]
    step(model, optimizer, inputs)
    assert all(not torch.equal(a, b) for a, b in zip(before, group["params"], strict=True))


def test_a_gated_step_is_that_of_masked_heads():
    known, model, plain, inputs = pair()
    gates = known.gates(3, soft=True).double()
    mine = torch.optim.SGD(model.parameters(), lr=0.05)
    other = torch.optim.SGD(plain.parameters(), lr=0.05)
    with hk.gates(model, gates), known.oracle(plain, gates):
        step(model, mine, inputs)
        step(plain, other, inputs)
    for found, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_groups_schedulers_and_names_stay():
    _, model, _, inputs = pair()
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [item for item in named if "bias" not in item[0]], "lr": 0.01},
            {"params": [item for item in named if "bias" in item[0]], "weight_decay": 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
    step(model, optimizer, inputs)
    schedule.step()
    hk.apply(model, MASK, torch.ones(3, 4, 24), optimizer=optimizer)
    now = dict(model.named_parameters())
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            assert now[name] is parameter
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
    assert len(optimizer.state) == len(now)
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.0005]
    step(model, optimizer, inputs)
    again = torch.optim.AdamW([{"params": g["params"]} for g in optimizer.param_groups])
    again.load_state_dict(optimizer.state_dict())


def test_frozen_parameters_stay_frozen_and_out():
    _, model, _, inputs = pair()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("query" in name or "classifier" in name)
    chosen = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(chosen)
    step(model, optimizer, inputs)
    hk.apply(model, MASK, optimizer=optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(chosen) == len(optimizer.state)
    step(model, optimizer, inputs)
    assert sum(one.requires_grad for one in model.parameters()) == len(chosen)


def refuse(model, optimizer, match, mask=MASK):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objects = list(model.parameters())
    held = [list(group["params"]) for group in getattr(optimizer, "param_groups", [])]
    with pytest.raises(ValueError, match=match):
        hk.apply(model, mask, optimizer=optimizer)
    assert all(one is two for one, two in zip(model.parameters(), objects, strict=True))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for group, params in zip(getattr(optimizer, "param_groups", []), held, strict=True):
        assert all(one is two for one, two in zip(group["params"], params, strict=True))


def test_optimisers_that_do_not_fit_change_nothing():
    _, model, plain, inputs = pair()
    refuse(model, "Adam", "torch optimiser; found str")
    refuse(model, torch.optim.Adam(plain.parameters()), "of others")
    adafactor = torch.optim.Adafactor(model.parameters())
    step(model, adafactor, inputs)
    refuse(model, adafactor, "row_var of Adafactor")
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=2)
    lbfgs.step(lambda: loss(model, inputs).backward() or loss(model, inputs))
    refuse(model, lbfgs, "of LBFGS")
    refuse(model, torch.optim.Adam(model.parameters()), "mask", torch.ones(2, 4))
    probe = hk.with_sentence_probe(hk.attach(model), torch.zeros(2, 24), torch.zeros(2))
    with pytest.raises(ValueError, match="attached module itself"):
        hk.apply(probe, MASK, optimizer=torch.optim.SGD(model.parameters()))
