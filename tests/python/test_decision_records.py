"""Why a head is on or off: records against their JSON schema, and reasons that add up."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch

import headkit as hk

SCHEMA = Path(__file__).parents[2] / "docs/reference/decision_record.schema.json"
OLD = Path(__file__).parents[1] / "data/decision_record_1_1.json"


@pytest.fixture(scope="module")
def schema():
    found = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


@pytest.fixture
def model(tiny):
    found = tiny.make("Bert", "SequenceClassification")
    hk.attach(found)
    return found


@pytest.fixture
def batch(tiny):
    return tiny.inputs(batch=4, tokens=9)


def linear_gate(tiny, **settings):
    generator = torch.Generator().manual_seed(0)
    width = tiny.heads * tiny.head_dim

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return hk.LinearGate(
        weight=normal(tiny.layers, tiny.heads, width),
        reference=normal(width),
        static_logits=normal(tiny.layers, tiny.heads),
        threshold=0.0,
        **settings,
    )


def test_records_of_every_policy_fit_the_schema(tiny, model, batch, schema):
    low = hk.HeadMask(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]))
    gated = hk.attach(model)
    for policy in (hk.MaskPolicy(low), linear_gate(tiny), hk.Escalation(low, threshold=0.3)):
        lines = hk.run(gated, batch, policy, record=True).records
        for line in lines.splitlines():
            schema.validate(json.loads(line))
        for record in hk.explain_decisions(gated, batch, policy):
            schema.validate(json.loads(record.to_json()))


def test_a_line_that_headkit_wrote_under_schema_1_is_read(schema):
    old = json.loads(OLD.read_text())
    assert old["schema_version"] == "1.1"
    record = hk.read_decision_records(OLD.read_text())[0]
    new = json.loads(record.to_json())
    schema.validate(new)
    for group in ("budget", "policy", "run_time", "mode"):
        assert new[group] == old[group]
    for before, now in zip(old["heads"], new["heads"], strict=True):
        assert now == before
    assert record.active == old["budget"]["active"]


def test_the_schema_refuses_what_is_no_record(tiny, model, batch, schema):
    record = json.loads(
        hk.explain_decisions(hk.attach(model), batch, linear_gate(tiny))[0].to_json()
    )
    for path, value in (
        (("heads", 0, "state"), "open"),
        (("heads", 0, "why", "parts"), 3),
        (("schema_version",), "1.1"),
        (("model", "weights_sha256"), "abc"),
    ):
        broken = json.loads(json.dumps(record))
        place = broken
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert not schema.is_valid(broken), path


def test_reasons_add_up_and_flips_flip(tiny, model, batch, schema):
    gate = linear_gate(tiny)
    before = {name: tensor.clone() for name, tensor in batch.items()}
    data = [tiny.inputs(batch=8, tokens=9, seed=seed) for seed in (1, 2)]
    spread = hk.logit_spread(hk.attach(model), data, gate)
    units = [[f"w{t}" for t in range(9)] for _ in range(4)]
    units[0][0] = hk.InputUnit("[CLS]", special=True)
    records = hk.explain_decisions(
        model,
        batch,
        gate,
        logit_spread=spread,
        removals=None,
        units=units,
        about={"model": {"name": "tiny"}, "seeds": [3]},
    )
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    flips = 0
    for record in records:
        content = json.loads(record.to_json())
        schema.validate(content)
        assert content["model"]["name"] == "tiny" and content["seeds"] == [3]
        assert content["policy"]["kind"] == "threshold"
        assert content["input"]["units"][1]["text"] == "w1"
        for head in record.heads:
            bound = 1e-5 * max(1, abs(head.logit))
            by_token = sum(part.value for part in head.parts) + head.rest
            by_feature = sum(part.value for part in head.feature_parts.parts)
            assert abs(head.base + by_token - head.logit) <= bound
            assert abs(head.base + by_feature + head.feature_parts.rest - head.logit) <= bound
            deviation = spread[head.layer, head.head]
            assert head.margin_std == pytest.approx(float(head.margin / deviation))
            assert head.flip.verified
            flips += bool(head.flip.removed)
        assert hk.DecisionRecord.from_json(record.to_json()) == record
    assert flips > 5
    assert json.loads(records[0].to_json())["input"]["units"][0]["special"]


def test_raw_content_is_told_by_opt_in_only(tiny, model, batch):
    content = json.loads(hk.explain_decisions(model, batch, linear_gate(tiny))[0].to_json())
    assert content["input"]["units"] is None
    assert len(content["input"]["sha256"]) == len(content["policy"]["sha256"]) == 64
    assert content["model"]["weights_sha256"] == hk.attach(model).fingerprint()


def test_a_record_takes_what_others_found(tiny, model, batch, schema):
    record = hk.explain_decisions(model, batch, linear_gate(tiny))[0]
    effects = {"toggle": {"ablation": "zero", "frozen": 0.25}, "level": "L2"}
    wide = record.updated(
        json.dumps(
            {
                "output": {"metric": "class_margin", "value_selected": 0.5},
                "heads": [{"layer": 1, "head": 2, "effects": effects}],
            }
        )
    )
    content = json.loads(wide.to_json())
    schema.validate(content)
    assert json.loads(wide.heads[6].effects) == effects
    assert wide.heads[6].flip.removed == record.heads[6].flip.removed
    assert "output" not in {each["field"] for each in content["not_computed"]}
    assert "pairs" in {each["field"] for each in content["not_computed"]}
    with pytest.raises(ValueError, match="valid JSON"):
        record.updated('{"output": {"metric": "x", "value_selected": NaN}}')


def test_effects_and_their_test_fill_the_record(tiny, model, batch, schema):
    gate = linear_gate(tiny)
    records = hk.explain_decisions(model, batch, gate)
    effects = hk.effects(model, batch, ablation="zero", gates=gate, pair_heads=2)
    tested = hk.effect_faithfulness(model, batch, effects, random_orders=3)
    for record, found, curves in zip(records, effects, tested, strict=True):
        trust = {"trust": {"faithfulness": json.loads(curves.to_json())}}
        wide = record.updated(found.record_patch()).updated(json.dumps(trust))
        content = json.loads(wide.to_json())
        schema.validate(content)
        missing = {each["field"] for each in content["not_computed"]}
        assert not missing & {"output", "pairs", "heads.effects", "trust.faithfulness"}
        assert "trust.stability" in missing
        assert content["heads"][0]["why"]["flip"]["verified"]
        assert hk.DecisionRecord.from_json(wide.to_json()) == wide


def test_a_gate_by_hand_is_taken_apart_under_any_rule():
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(6, 5, generator=generator)
    weight = torch.randn(4, 5, generator=generator)
    reference = torch.randn(5, generator=generator)
    base = torch.randn(4, generator=generator)
    expected = weight.double() @ (states.double().mean(0) - reference.double()) + base.double()
    for rule in (
        {"rule": "top_k", "k": 2},
        {"rule": "budget", "budget": 2.0, "cost": torch.ones(4)},
    ):
        why = hk.decompose_gate(states, weight=weight, reference=reference, base=base, **rule)
        torch.testing.assert_close(why.logits, expected)
        assert [bool(kept) for kept in why.open] == (
            expected >= expected.sort().values[-2]
        ).tolist()
        for head in range(4):
            flip = why.flip(head)
            assert flip.verified and not flip.minimal
            if flip.removed:
                assert why.open_without(flip.removed)[head] != why.open[head]
                assert why.open_without(flip.removed[:-1])[head] == why.open[head]
    with pytest.raises(ValueError, match="threshold, top_k, budget"):
        hk.decompose_gate(states, weight=weight, reference=reference, base=base, rule="best")
    with pytest.raises(ValueError, match="expected k"):
        hk.decompose_gate(states, weight=weight, reference=reference, base=base, rule="top_k", k=5)
