"""How far explanations can be trusted, and selections over a data set, on tiny models."""

import json

import pytest
import torch

import headkit as hk


@pytest.fixture
def model(tiny):
    found = tiny.make("Bert", "SequenceClassification")
    hk.attach(found)
    return found


@pytest.fixture
def data(tiny):
    return [tiny.inputs(batch=8, tokens=9, seed=seed) for seed in range(4)]


def linear_gate(tiny, seed=0):
    generator = torch.Generator().manual_seed(seed)
    width = tiny.heads * tiny.head_dim

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return hk.LinearGate(
        weight=normal(tiny.layers, tiny.heads, width),
        reference=normal(width),
        static_logits=normal(tiny.layers, tiny.heads),
        threshold=0.0,
    )


def test_faithfulness_of_toggles_on_a_model(tiny, model):
    gated, batch = hk.attach(model), tiny.inputs(batch=1, tokens=9)
    layers, heads = tiny.layers, tiny.heads
    asked = []

    @torch.no_grad()
    def value(sets):
        asked.append(len(sets))
        gates = sets.float().reshape(-1, layers, heads)
        many = {name: rows.expand(len(sets), *rows.shape[1:]) for name, rows in batch.items()}
        logits = gated(many, hk.GateSet(gates)).double()
        return logits[:, 0] - logits[:, 1]

    total = layers * heads
    single = value(~torch.eye(total, dtype=torch.bool))
    toggles = value(torch.ones(1, total, dtype=torch.bool)) - single
    order = toggles.argsort(descending=True).tolist()
    asked.clear()
    found = hk.faithfulness(
        order, value, grid="all", random_orders=10, metric="logit difference", ablation="zero"
    )
    assert len(asked) == 1, "all sets go in one call"
    # Two float32 runs of different batches agree to rounding.
    assert found.comprehensiveness.values[0] == pytest.approx(float(toggles.max()), abs=1e-5)
    content = json.loads(found.to_json())
    assert content["k"] == list(range(1, total + 1))
    assert content["ablation"] == "zero"
    assert set(content["aopc"]["comprehensiveness"]) == {"eraser", "all"}


def test_decisions_follow_from_what_is_shown(tiny, model, data):
    gate = linear_gate(tiny)
    records = [record for batch in data for record in hk.explain_decisions(model, batch, gate)]
    poor, rich = (hk.gate_simulatability(records, shown) for shown in (0, 8))
    assert poor.accuracy < rich.accuracy
    assert rich.accuracy > rich.majority_by_head
    check = hk.check_randomisation(model, data, gate)
    assert check.changes and 8 < check.inputs <= 32 and check.heads == 12
    same = hk.check_randomisation(model, data, gate, gate)
    assert same.similarity == pytest.approx(1.0) and not same.changes
    trained = hk.check_randomisation(model, data, gate, linear_gate(tiny, seed=5))
    assert trained.changes


def test_padding_and_batches_never_change_a_selection_and_dtype_is_measured(tiny, model, data):
    gate = linear_gate(tiny)
    batch = data[0]
    single = [
        hk.run(model, {name: rows[i : i + 1] for name, rows in batch.items()}, gate).gates.heads
        for i in range(8)
    ]
    together = hk.run(model, batch, gate).gates.heads
    assert torch.equal(torch.cat(single), together)
    runs = {
        "batch": {"selection": together, "effect": together + 0.1},
        "single": {"selection": torch.cat(single), "effect": 2 * together},
    }
    found = hk.explanation_stability(runs, axis="batch")
    assert found.selection.identical == 1.0 and found.selection.nogueira == pytest.approx(1.0)
    assert found.effect.kendall == pytest.approx(1.0) and found.explanation is None
    with pytest.raises(ValueError, match="expected fields of"):
        hk.explanation_stability({"a": {"gates": together}, "b": {}}, axis="seed")


def test_metrics_that_disagree_are_listed():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(40, 3, 4, generator=generator)
    noisy = truth + 0.1 * torch.randn(40, 3, 4, generator=generator)
    found = hk.metric_agreement({"toggle": truth, "gradient": noisy, "norm": -truth}, resamples=200)
    matrix = found.agreement.kendall
    assert matrix.values[0, 1] > 0.5 and matrix.values[0, 2] == pytest.approx(-1.0)
    assert matrix.lower[0, 1] <= matrix.values[0, 1] <= matrix.upper[0, 1]
    assert found.gaps and all({gap.first, gap.second} & {"norm"} for gap in found.gaps[:3])
    assert json.loads(found.to_json())["gap"] == 3.0


def test_usage_over_a_data_set(tiny, model, data, tmp_path):
    gate = linear_gate(tiny)
    told = []
    found = hk.head_usage(
        model,
        data,
        gate,
        classes=["a", "b", "c", "d", "e"],
        properties={"mine": torch.arange(32)},
        progress=lambda done, total: told.append((done, total)),
    )
    assert told[-1] == (4, 4)
    open_heads = torch.cat([hk.run(model, batch, gate).gates.heads for batch in data])
    share = open_heads.double().mean(0).flatten()
    torch.testing.assert_close(
        torch.tensor([head.frequency for head in found.heads], dtype=torch.float64), share
    )
    assert sum(found.selected.values()) == found.inputs == 32
    names = {each.property for each in found.heads[0].correlations}
    assert names == {"length", "mine", "complexity", "confidence"}
    assert sum(found.classes.values()) == 32 and set(found.classes) <= set("abcde")
    content = json.loads(found.to_json())
    assert content["stability"]["same_for_all_inputs"] == pytest.approx(found.same_for_all)
    hk.plot_head_usage(found, tmp_path / "usage.png")
    assert (tmp_path / "usage.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="mine"):
        hk.head_usage(model, data, gate, properties={"mine": torch.arange(5)})


def test_effects_are_put_to_the_test(tiny, model, data):
    gate = linear_gate(tiny)
    batch = {name: rows[:2] for name, rows in data[0].items()}
    effects = hk.effects(model, batch, ablation="zero", gates=gate)
    found = hk.effect_faithfulness(model, batch, effects, random_orders=5)
    for one, measured in zip(found, effects, strict=True):
        content = json.loads(one.to_json())
        assert content["metric"] == "class_margin" and content["ablation"] == "zero"
        assert one.value_all == pytest.approx(measured.value, abs=1e-5)
        best = max(head.toggle.frozen for head in measured.heads if head.gate != 0)
        assert one.comprehensiveness.values[0] == pytest.approx(best, abs=1e-5)
    with pytest.raises(ValueError, match="effects of 2 examples"):
        hk.effect_faithfulness(model, batch, effects[:1])
