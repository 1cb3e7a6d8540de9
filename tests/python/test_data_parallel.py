"""Replicas of torch.nn.DataParallel run in other threads, under the gates of their caller."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import headkit as hk


def replicas(network, count=2):
    """What torch.nn.parallel.replicate makes, on the CPU, which it does not take."""
    made = []
    for _ in range(count):
        copies = {module: module._replicate_for_data_parallel() for module in network.modules()}
        for module, replica in copies.items():
            for name, child in module._modules.items():
                setattr(replica, name, None if child is None else copies[child])
            for name, value in module._parameters.items():
                if value is None:
                    replica._parameters[name] = None
                else:
                    setattr(replica, name, value.view_as(value))
        made.append(copies[network])
    return made


def run(network, inputs):
    """As DataParallel does: a replica and a part of the batch for each thread."""
    made = replicas(network)
    parts = [{name: value[place::2] for name, value in inputs.items()} for place in range(2)]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda one, part: one(**part).logits, made, parts)
    logits = first.new_empty(len(first) + len(second), first.shape[1])
    logits[0::2], logits[1::2] = first, second
    return logits


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_replicas_run_under_the_gates_of_their_caller(tiny, family):
    plain = tiny.make(family, "SequenceClassification")
    model = copy.deepcopy(plain)
    hk.attach(model)
    inputs = tiny.inputs(4)
    gates = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0.5, 1, 0, 0]], requires_grad=True)
    with tiny.oracle(plain, gates):
        expected = plain(**inputs).logits
    slope = torch.autograd.grad(expected.square().sum(), gates)[0]
    with hk.gates(model, hk.GateSet(gates, skip=False)):
        found = run(model, inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), gates)[0], slope, atol=1e-4, rtol=1e-4
    )
    with torch.no_grad():
        torch.testing.assert_close(run(model, inputs), plain(**inputs).logits, atol=1e-5, rtol=0)
        other = copy.deepcopy(model)
        with hk.gates(model, gates):
            dense = run(other, inputs)
        torch.testing.assert_close(dense, plain(**inputs).logits, atol=1e-5, rtol=0)


def test_what_replicas_cannot_share_is_refused(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    with (
        hk.gates(model, torch.ones(4, 3, 4)),
        pytest.raises(ValueError, match="gates by sample: heads"),
    ):
        replicas(model)
    policy, state = (
        hk.MaskPolicy(hk.HeadMask(torch.ones(3, 4))),
        hk.PolicyState(record=True, layout=hk.attach(model).layout()),
    )
    with (
        hk.gates(model, policy, state=state),
        pytest.raises(ValueError, match="no state under DataParallel"),
    ):
        replicas(model)
    hk.detach(model)
    assert not any("_replicate_for_data_parallel" in vars(module) for module in model.modules())
