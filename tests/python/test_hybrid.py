"""The hybrid pruner on tiny transformers modules: budgets, promises, folders, refusals."""

import json

import pytest
import torch
import transformers

import headkit as hk

from . import families

SIZES = {"num_hidden_layers": 3, "hidden_size": 24, "intermediate_size": 128, "num_labels": 3}
FAST = {"order": "gate_gradient", "examples": 64}


def make(seed=0):
    config = transformers.BertConfig(vocab_size=60, num_attention_heads=4, **SIZES)
    model = transformers.BertForSequenceClassification(config).eval()
    families.randomise(model, seed)
    return model


def batches(count, seed, size=25):
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        ids = torch.randint(3, 60, (size, 9), generator=generator)
        mask = (torch.arange(9) < torch.randint(3, 10, (size, 1), generator=generator)).long()
        labels = torch.randint(3, (size,), generator=generator)
        made.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return made


TRAIN, HELD_OUT, FRESH = batches(4, 1), batches(2, 2), batches(4, 3)


def mean_heads(model, policy):
    return float(torch.cat([hk.run(model, b, policy).heads_run for b in HELD_OUT]).double().mean())


@pytest.mark.parametrize("mechanism", ["escalation", "reactivation", "linear_gate", "layer_gate"])
def test_a_budget_of_heads_is_kept_on_held_out_examples(mechanism):
    model = make()
    hk.attach(model)
    before = [p.clone() for p in model.parameters()]
    pruner = hk.HybridPruner(hk.Budget(mean_heads=7.5), mechanism=mechanism, **FAST)
    assert pruner.fit(model, TRAIN, HELD_OUT) is pruner
    arms = pruner.report.arms
    assert {"dense", "static", "policy"} <= set(arms)
    assert arms["policy"]["heads"] <= 7.5 <= arms["static"]["heads"] + 1e-9
    assert mean_heads(model, pruner) == pytest.approx(arms["policy"]["heads"])
    assert arms["dense"]["agreement"] == 1 and arms["dense"]["heads"] == 12
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert pruner.at(1).name == pruner.policy.name and mean_heads(model, pruner.at(1)) > 7.5
    assert mean_heads(model, pruner.at(0)) <= 7.5
    text = repr(pruner.report)
    assert mechanism in text and "static" in text and "order: gate_gradient" in text
    assert pruner.report._repr_html_().count("<tr>") == len(arms) + 1
    again = hk.policy_from_json(pruner.to_json())
    assert torch.equal(
        hk.run(model, HELD_OUT[0], again).output, hk.run(model, HELD_OUT[0], pruner).output
    )
    if mechanism == "escalation":
        with pytest.raises(ValueError, match=r"hk\.run"), hk.gates(model, pruner):
            model(**HELD_OUT[0])
        return
    inputs = {name: value for name, value in HELD_OUT[0].items() if name != "labels"}
    with torch.no_grad(), hk.gates(model, pruner):
        gated = model(**inputs).logits
    torch.testing.assert_close(gated, hk.run(model, HELD_OUT[0], pruner).output)


def test_every_fourth_example_is_held_out_and_neurons_are_sorted_only():
    model = make()
    hk.attach(model, feed_forward=True)
    inputs = {name: value for name, value in FRESH[0].items() if name != "labels"}
    with torch.no_grad():
        before = model(**inputs).logits
    pruner = hk.HybridPruner(hk.Budget(flops=0.6), **FAST).fit(model, TRAIN)
    assert (pruner.report.fitted_examples, pruner.report.held_out_examples) == (75, 25)
    assert pruner.report.arms["policy"]["flops"] <= 0.6
    assert "neurons" in repr(pruner.report)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, before, atol=1e-4, rtol=1e-4)


def test_a_promise_is_stored_with_the_model_and_refused_for_another(tmp_path):
    model = make()
    hk.attach(model)
    pruner = hk.HybridPruner(hk.Budget(mean_heads=6), risk=0.1, **FAST).fit(model, TRAIN, HELD_OUT)
    pruner.calibrate(model, FRESH, length_buckets=1)
    floor = pruner.calibration.lambda_
    assert pruner.calibration.risk == 0.1
    assert pruner.lambda_ == max(floor, pruner.report.lambda_)
    assert pruner.budget_unmet == (floor > pruner.report.lambda_)
    assert pruner.at(0).lambda_ == floor
    assert "risk 0.1" in repr(pruner)
    hk.save(model, tmp_path / "folder", policy=pruner)
    loaded = hk.load(tmp_path / "folder")
    policy = hk.load_policy(tmp_path / "folder", loaded)
    assert policy.calibration.id == pruner.calibration.id and policy.lambda_ == pruner.lambda_
    for batch in HELD_OUT:
        mine, theirs = hk.run(model, batch, pruner), hk.run(loaded, batch, policy)
        assert torch.equal(mine.output, theirs.output)
        assert torch.equal(mine.heads_run, theirs.heads_run)
    other = make(seed=9)
    hk.attach(other)
    with pytest.raises(ValueError, match="model"):
        hk.load_policy(tmp_path / "folder", other)
    told = json.loads(pruner.to_json())
    first = told["of"]["ladder"]["rungs"][0]["heads"]["keep"]
    first[next(layer for layer, heads in enumerate(first) if heads)].pop()
    with pytest.raises(ValueError, match="policy"):
        hk.policy_from_json(json.dumps(told))
    hk.save(model, tmp_path / "bare")
    with pytest.raises(ValueError, match="found none"):
        hk.load_policy(tmp_path / "bare")


def test_rungs_are_trained_together_and_the_drift_is_told():
    model = make()
    hk.attach(model, feed_forward=True)
    pruner = hk.HybridPruner(hk.Budget(flops=0.7), train=6, learning_rate=1e-3, **FAST)
    pruner.fit(model, TRAIN, HELD_OUT)
    arms = pruner.report.arms
    assert arms["top rung"]["distance"] > 0 and arms["policy"]["flops"] <= 0.7
    assert any(stage["stage"] == "train" for stage in pruner.report.stages)


def test_what_does_not_fit_is_refused():
    for given in ({}, {"flops": 0.5, "mean_heads": 3}, {"flops": 0}, {"milliseconds": -1}):
        with pytest.raises(ValueError, match="Budget"):
            hk.Budget(**given)
    with pytest.raises(ValueError, match=r"headkit\.Budget"):
        hk.HybridPruner(0.5)
    with pytest.raises(ValueError, match="risk"):
        hk.HybridPruner(hk.Budget(flops=0.5), risk=2)
    pruner = hk.HybridPruner(hk.Budget(mean_heads=6), **FAST)
    assert "not fitted" in repr(pruner)
    model = make()
    with pytest.raises(ValueError, match="attached"):
        pruner.fit(model, TRAIN)
    hk.attach(model)
    for use in (lambda: pruner.policy, lambda: pruner.report, lambda: pruner.calibrate(model, [])):
        with pytest.raises(ValueError, match="expected fit first"):
            use()
    with pytest.raises(ValueError, match="layer_gate"):
        hk.HybridPruner(hk.Budget(mean_heads=6), mechanism="magic").fit(model, TRAIN)
    with pytest.raises(ValueError, match="at least 3 heads"):
        hk.HybridPruner(hk.Budget(mean_heads=1), **FAST).fit(model, TRAIN)
    with pytest.raises(ValueError, match="iterator"):
        pruner.fit(model, iter(TRAIN))
    pruner.fit(model, TRAIN, HELD_OUT)
    with pytest.raises(ValueError, match="a risk"):
        pruner.calibrate(model, FRESH)
    with pytest.raises(ValueError, match="199"):
        pruner.calibrate(model, FRESH, risk=0.005, length_buckets=1)
