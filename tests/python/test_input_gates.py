"""Probes and gates that read the input, on real transformers modules: tiny ones from conftest."""

import pytest
import torch

import headkit as hk


@pytest.fixture
def model(tiny):
    return tiny.make("Bert", "SequenceClassification")


@pytest.fixture
def batch(tiny):
    inputs = tiny.inputs(batch=24, tokens=9)
    inputs["attention_mask"][:, 0] = 1  # no input is empty
    return inputs


def test_probes_learn_what_the_model_says_before_a_layer(tiny, model, batch):
    gated = hk.attach(model)
    first, last = hk.fit_linear_probes(
        model, [batch], layers=[0, tiny.layers - 1], objective="kl_to_dense", ridge=1e-3
    )
    assert first.examples == 24 and last.probe.layer == tiny.layers - 1
    with torch.no_grad():
        state = gated.run(gated.embed(batch), 0, tiny.layers - 1, hk.GateSet())
        dense = model(**batch).logits
    mask = batch["attention_mask"].double()
    mean = (state.hidden.double() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    pooled = hk.pooled_state(state.hidden, batch["attention_mask"].bool())
    torch.testing.assert_close(pooled, mean, atol=1e-12, rtol=1e-12)
    probe = last.probe
    logits = (mean - probe.reference) @ probe.weight.T + probe.bias
    found = probe.logits(state.hidden, batch["attention_mask"].bool())
    torch.testing.assert_close(found, logits, atol=1e-10, rtol=1e-10)
    assert (found.argmax(1) == dense.argmax(1)).double().mean() > 0.9
    signals = probe.signals(state.hidden, batch["attention_mask"].bool())
    best = logits.topk(2).values
    torch.testing.assert_close(signals.margin, best[:, 0] - best[:, 1])
    assert signals.log_loss.shape == (24,), "the loss under no gates is 0, and still predicted"
    back = hk.LinearProbe.from_json(probe.to_json())
    again = back.signals(state.hidden, batch["attention_mask"].bool())
    assert torch.equal(again.entropy, signals.entropy)


def test_probes_refuse_what_they_cannot_learn(model, batch):
    hk.attach(model)
    with pytest.raises(ValueError, match="layers"):
        hk.fit_linear_probes(model, [batch], layers=[7])
    with pytest.raises(ValueError, match="labels"):
        hk.fit_linear_probes(model, [batch], layers=[0], labels_of_data=True)
    with pytest.raises(ValueError, match="task, an objective"):
        hk.fit_linear_probes(model, [batch], layers=[0], task=False)
