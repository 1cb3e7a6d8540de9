"""Calibration, control and audit of policies on tiny transformers models."""

import json
import threading

import pytest
import torch

import headkit as hk

GRID = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture
def model(tiny):
    return tiny.make("Bert", "SequenceClassification")


@pytest.fixture
def gated(model):
    return hk.attach(model)


def escalation():
    keep = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
    return hk.Escalation(hk.HeadMask(keep), threshold=0.5)


def batches(tiny, count=3, batch=20):
    return [tiny.inputs(batch=2, tokens=9, seed=seed) for seed in range(count * batch // 2)]


def test_a_calibrated_policy_keeps_its_promise_on_its_own_data(tiny, gated):
    data, policy = batches(tiny), escalation()
    calibration = hk.calibrate(gated, policy, data, risk=0.2, grid=GRID, length_buckets=2)
    flips = []
    with torch.no_grad():
        for batch in data:
            low = hk.run(gated, batch, policy.at(calibration.lambda_)).output.argmax(1)
            flips.append(low != gated(batch).argmax(1))
    assert torch.cat(flips).double().mean() <= 0.2
    assert sum(bucket.samples for bucket in calibration.buckets) == 60
    assert calibration.mean_heads[-1] == hk.run(gated, data[0], policy.at(1)).heads_run[0]
    assert calibration.drift == 0  # lambda 1 of this policy is the model itself


def test_a_trace_serves_any_risk_and_any_split(tiny, model):
    hk.attach(model)
    trace = hk.trace_policy(model, escalation(), batches(tiny), loss="kl", grid=GRID)
    assert trace.losses.shape == (60, 5)
    assert (trace.losses[:, -1] == 0).all()
    one = hk.calibrate(trace.select(torch.arange(40)), risk=0.3, length_buckets=1)
    lambdas = [hk.calibrate(trace, risk=risk, length_buckets=1).lambda_ for risk in (0.1, 0.5)]
    assert one.buckets[0].samples == 40
    assert lambdas[0] >= lambdas[1]
    tested = hk.calibrate(trace, risk=0.3, method="ltt", length_buckets=1)
    assert tested.buckets[0].evidence <= 0.1


def test_too_few_examples_are_refused_with_the_number_it_takes(tiny, gated):
    with pytest.raises(ValueError, match="at least 99 calibration examples"):
        hk.calibrate(gated, escalation(), batches(tiny), risk=0.01, length_buckets=1)
    with pytest.raises(ValueError, match="flip, kl, cosine, task"):
        hk.calibrate(gated, escalation(), batches(tiny), risk=0.2, loss="accuracy")
    with pytest.raises(ValueError, match="a policy and data"):
        hk.calibrate(gated, risk=0.2)


def test_a_calibrated_policy_is_saved_and_refused_for_another_model(tiny, model, tmp_path):
    gated = hk.attach(model)
    policy = escalation()
    calibration = hk.calibrate(gated, policy, batches(tiny), risk=0.2, length_buckets=1)
    calibrated = hk.CalibratedPolicy(policy, calibration)
    hk.save(model, tmp_path / "saved", policy=calibrated)
    again = hk.policy_from_json(hk.read_model_folder(tmp_path / "saved").policy)
    assert again.lambda_ == calibration.lambda_
    assert again.calibration.id == calibration.id
    again.calibration.check_model(gated)
    other = hk.attach(tiny.make("Bert", "SequenceClassification", seed=5))
    with pytest.raises(ValueError, match="the model that was calibrated"):
        again.calibration.check_model(other)
    with pytest.raises(ValueError, match="the model that was calibrated"):
        hk.PolicyRunner(again).govern(other, tiny.inputs())
    with pytest.raises(ValueError, match="the model that was calibrated"):
        hk.run(other, tiny.inputs(), again)
    width = tiny.heads * tiny.head_dim
    gate = hk.LinearGate(
        weight=torch.randn(tiny.layers, tiny.heads, width).double(),
        reference=torch.zeros(width).double(),
        static_logits=torch.zeros(tiny.layers, tiny.heads).double(),
        threshold=0,
    )
    promised = hk.calibrate(gated, gate, batches(tiny), risk=0.2, length_buckets=1)
    gate = hk.CalibratedPolicy(gate, promised)
    with hk.gates(gated, gate):
        expected = model(**tiny.inputs()).logits
    assert torch.equal(hk.run(gated, tiny.inputs(), gate).output, expected)
    with pytest.raises(ValueError, match="the model that was calibrated"), hk.gates(other, gate):
        pass
    weight = model.bert.encoder.layer[1].output.dense.weight
    with torch.no_grad():
        weight[0, 0] += 1
    with pytest.raises(ValueError, match="the model that was calibrated"):
        hk.run(gated, tiny.inputs(), gate)
    with torch.no_grad():
        weight[0, 0] -= 1
    text = json.loads(calibrated.to_json())
    text["calibration"]["policy"] = "0" * 64
    with pytest.raises(ValueError, match="the policy that was calibrated"):
        hk.policy_from_json(json.dumps(text))
    with pytest.raises(ValueError, match="the calibration data"):
        calibration.check_data(batches(tiny, count=1))


def test_a_runner_meets_a_budget_audits_and_records(tiny, gated, tmp_path):
    policy, data = escalation(), batches(tiny)
    calibration = hk.calibrate(gated, policy, data, risk=0.45, length_buckets=1)
    calibrated = hk.CalibratedPolicy(policy, calibration)
    target = (calibrated.calibration.mean_heads[0] + 12) / 2
    controller = hk.BudgetController.for_calibration(calibration, target)
    records = hk.RecordFile(str(tmp_path / "records.jsonl"))
    audit = hk.ShadowAudit(risk=0.45, share=0.5)
    runner = hk.PolicyRunner(calibrated, controller=controller, audit=audit, records=records)
    for number, batch in enumerate(data):
        result = runner.govern(gated, batch, [f"{number}-{row}" for row in range(2)])
        assert result.lambda_ >= calibration.lambda_
    lines = (tmp_path / "records.jsonl").read_text()
    read = hk.read_decision_records(lines)
    assert len(read) == records.written == 60
    told = [json.loads(line) for line in lines.splitlines()]
    assert {line["policy"]["calibration_id"] for line in told} == {calibration.id}
    audited = [line for line in told if line["run_time"]["audit_loss"] is not None]
    assert len(audited) == audit.state.audited > 0
    assert all(audit.chosen(line["run_time"]["request_id"]) for line in audited)


def test_a_controller_is_shared_by_threads():
    controller = hk.BudgetController(target=10, start=0.5, floor=0.25)

    def work():
        for _ in range(100):
            controller.observe(8 + 8 * controller.lambda_)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert controller.state.observations == 400
    assert controller.lambda_ >= 0.25
    controller.freeze()
    assert controller.state.frozen


def test_isotonic_maps_are_the_min_max_formula():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, generator=generator, dtype=torch.float64).sort().values
    target = z + torch.randn(60, generator=generator, dtype=torch.float64)
    weight = torch.rand(60, generator=generator, dtype=torch.float64) + 0.1

    def mean(first, last):
        part = slice(first, last + 1)
        return ((weight[part] * target[part]).sum() / weight[part].sum()).item()

    fitted = [
        max(min(mean(first, last) for last in range(i, 60)) for first in range(i + 1))
        for i in range(60)
    ]
    ours = hk.IsotonicMap.fit(z, target, weight).values
    assert ours == pytest.approx(sorted({round(value, 10) for value in fitted}), abs=1e-9)


def test_a_latency_model_is_measured_and_stored(tiny, gated, tmp_path):
    batch = tiny.inputs()
    latency = hk.LatencyModel.measure(gated, batch, tokens=[4, 8], batches=[1, 2], repeats=1)
    assert latency.milliseconds(12, 0, 8, 2) >= latency.milliseconds(0, 0, 8, 2) > 0
    latency.save(str(tmp_path / "latency.json"))
    key = hk.LatencyModel.key_of(gated, batch)
    assert hk.LatencyModel.load(str(tmp_path / "latency.json"), key).to_json() == latency.to_json()
    with pytest.raises(ValueError, match="measure anew"):
        hk.LatencyModel.load(str(tmp_path / "latency.json"), key + " of another machine")


def test_energy_without_counters_is_a_clear_error(tmp_path):
    with pytest.raises(RuntimeError, match="RAPL"):
        hk.EnergyMeter(str(tmp_path))
