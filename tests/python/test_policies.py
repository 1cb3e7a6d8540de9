"""Policies on real transformers modules: tiny random ones from conftest."""

import json

import pytest
import torch

import headkit as hk


@pytest.fixture
def model(tiny):
    return tiny.make("Bert", "SequenceClassification")


@pytest.fixture
def batch(tiny):
    return tiny.inputs(batch=8, tokens=9)


def labelled(batch, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = len(batch["input_ids"])
    return {**batch, "labels": torch.randint(classes, (count,), generator=generator)}


def random_gate(tiny, threshold=0.0, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    width = tiny.heads * tiny.head_dim

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return hk.LinearGate(
        weight=normal(tiny.layers, tiny.heads, width),
        reference=normal(width),
        static_logits=normal(tiny.layers, tiny.heads),
        threshold=threshold,
        **settings,
    )


def test_the_registry_tells_which_policies_are_gates():
    known = hk.policies()
    assert known["linear_gate"]["decides"] == "before layer 0"
    assert known["escalation"]["decides"] == "after the output"
    assert all(info["definition"] and info["source"] and info["cost"] for info in known.values())


def test_an_early_gate_gives_the_same_as_gates_and_as_run(tiny, model, batch):
    gate = random_gate(tiny)
    gated = hk.attach(model)
    with torch.no_grad():
        run = hk.run(gated, batch, gate)
        with hk.gates(model, gate):
            through_hooks = model(**batch).logits
        with hk.gates(model, run.gates):
            replayed = model(**batch).logits
    counts = run.heads_run.tolist()
    assert len(set(counts)) > 1, "the gate treats all inputs alike: nothing is tested"
    torch.testing.assert_close(through_hooks, run.output, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(replayed, run.output, atol=1e-6, rtol=1e-5)
    assert run.layers_run.tolist() == [tiny.layers] * len(counts)


def test_decisions_do_not_depend_on_the_batch_the_order_or_padding(tiny, model, batch):
    gate = random_gate(tiny)
    gated = hk.attach(model)
    with torch.no_grad():
        together = hk.run(gated, batch, gate).gates.heads
        order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
        shuffled = {name: value[order] for name, value in batch.items()}
        assert torch.equal(hk.run(gated, shuffled, gate).gates.heads, together[order])
        for place in range(8):
            length = int(batch["attention_mask"][place].sum())
            alone = {name: value[place : place + 1, :length] for name, value in batch.items()}
            assert torch.equal(hk.run(gated, alone, gate).gates.heads[0], together[place])
        wider = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in batch.items()}
        assert torch.equal(hk.run(gated, wider, gate).gates.heads, together)


def test_escalation_is_a_driver_and_says_so(tiny, model, batch):
    low = hk.HeadMask(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]))
    policy = hk.Escalation(low, threshold=0.5)
    hk.attach(model)
    with pytest.raises(ValueError, match=r"hk\.run"), hk.gates(model, policy):
        model(**batch)
    with pytest.raises(ValueError, match="layer 0 head 1"):
        hk.Escalation(hk.HeadMask.all(3, 4), low, threshold=0.5)


def test_escalation_composes_low_and_high_outputs(tiny, model, batch):
    low = hk.HeadMask(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]))
    gated = hk.attach(model)
    with torch.no_grad():
        low_output = gated(batch, hk.GateSet.from_mask(low))
        dense = gated(batch)
        confidence = hk.output_confidence(low_output)
        threshold = float(confidence.median())
        run = hk.run(gated, batch, hk.Escalation(low, threshold=threshold))
    again = confidence < threshold
    assert 0 < again.sum() < len(again)
    expected = torch.where(again.unsqueeze(1), dense, low_output)
    torch.testing.assert_close(run.output, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(run.heads_run, 5 + 12 * again)
    assert torch.equal(run.layers_run, 3 + 3 * again)


@pytest.mark.parametrize("kind", ["mask", "gate", "escalation"])
def test_records_add_up_and_replay(tiny, model, batch, kind):
    low = hk.HeadMask(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]))
    dropped = 0.1 * torch.randn(3, 4, 24, generator=torch.Generator().manual_seed(2))
    policy = {
        "mask": hk.MaskPolicy(low, dropped_output=dropped),
        "gate": random_gate(tiny, dropped_output=dropped),
        "escalation": hk.Escalation(low, threshold=0.3, dropped_output=dropped),
    }[kind]
    gated = hk.attach(model)
    with torch.no_grad():
        sha256 = gated.fingerprint()
        run = hk.run(gated, batch, policy, record=True, first_input=3, weights_sha256=sha256)
        records = hk.read_decision_records(run.records)
        gates = torch.stack([record.gates() for record in records])
        replayed = gated(batch, hk.GateSet(gates, dropped_output=dropped))
    torch.testing.assert_close(replayed, run.output, atol=1e-6, rtol=1e-5)
    assert [record.input for record in records] == list(range(3, 11))
    tokens = batch["attention_mask"].sum(1)
    flops = run.flops(gated.layout(), tokens)
    for place, record in enumerate(records):
        assert record.weights_sha256 == sha256
        assert record.tokens == tokens[place]
        assert record.flops_run == pytest.approx(float(flops[place]))
        for head in record.heads:
            if head.logit is not None:
                total = head.base + sum(part.value for part in head.parts) + head.rest
                assert total == pytest.approx(head.logit, abs=1e-5 * max(1, abs(head.logit)))
        assert hk.DecisionRecord.from_json(record.to_json()) == record
        assert json.loads(record.to_json())["schema_version"] == hk._C.RECORD_SCHEMA


def test_records_through_hooks(tiny, model, batch):
    state = hk.PolicyState(record=True, layout=hk.attach(model).layout())
    gate = random_gate(tiny)
    with torch.no_grad(), hk.gates(model, gate, state=state):
        model(**batch)
        model(**batch)
    records = hk.read_decision_records(state.records)
    assert [record.input for record in records] == list(range(16))
    assert records[0].flops_run < records[0].flops_dense


def test_policies_come_back_from_json(tiny, model, batch):
    low = hk.HeadMask(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]))
    gated = hk.attach(model)
    for policy in (
        hk.MaskPolicy(low),
        random_gate(tiny, min_heads=2),
        hk.Escalation(low, threshold=0.4, risk=0.1),
    ):
        again = hk.policy_from_json(policy.to_json())
        assert type(again) is type(policy)
        assert again.to_json() == policy.to_json()
        with torch.no_grad():
            assert torch.equal(
                hk.run(gated, batch, again).output, hk.run(gated, batch, policy).output
            )


def test_policies_reach_the_same_mean_heads(tiny, model):
    gated = hk.attach(model)
    train = [labelled(tiny.inputs(batch=16, tokens=9, seed=seed), seed=seed) for seed in range(4)]
    calibration = [tiny.inputs(batch=16, tokens=9, seed=seed) for seed in range(10, 14)]
    gate, report = hk.fit_linear_gate(gated, train, calibration, mean_heads=6)
    assert report.fitted_examples == report.calibration_examples == 64
    low = hk.HeadMask(torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]]))
    draft = hk.Escalation(low, threshold=0.5)
    escalation = draft.with_threshold(draft.trace(gated, calibration).threshold(6))

    def mean_heads(policy):
        with torch.no_grad():
            runs = [hk.run(gated, batch, policy).heads_run for batch in calibration]
        return float(torch.cat(runs).double().mean())

    assert mean_heads(gate) == pytest.approx(report.mean_heads)
    # A step is one head of one example for the gate, a re-run of 12 heads for the escalation.
    assert 6 - 12 / 64 <= mean_heads(escalation) <= 6
    if report.contested:
        assert 5.5 <= report.mean_heads <= 6


def test_fitting_refuses_objectives_without_a_slope(tiny, model):
    gated = hk.attach(model)
    data = [labelled(tiny.inputs(batch=8, tokens=9))]
    with pytest.raises(ValueError, match="cosine_to_dense"):
        hk.fit_linear_gate(gated, data, data, mean_heads=6, objective="cosine_to_dense")
    with pytest.raises(ValueError, match="mean_heads"):
        hk.fit_linear_gate(gated, data, data, mean_heads=13)


def test_fitting_can_be_interrupted(tiny, model):
    gated = hk.attach(model)
    data = [labelled(tiny.inputs(batch=8, tokens=9))] * 2

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hk.fit_linear_gate(gated, data, data, mean_heads=6, progress=stop)


def test_conformal_control_from_python():
    losses = torch.zeros(18, 3, dtype=torch.float64)
    grid = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="19"):
        hk.conformal_risk_control(losses, grid, risk=0.05)
    found = hk.conformal_risk_control(losses, grid, risk=0.1)
    assert (found.threshold, found.index, found.samples) == (0.0, 0, 18)
