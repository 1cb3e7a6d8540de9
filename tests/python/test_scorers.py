"""Scores of attached models against scores computed without headkit."""

import json
import pathlib
import runpy
import signal
import time

import pytest
import torch

import headkit as hk

FAMILIES = ("Bert", "Roberta", "Electra", "DistilBert")


def with_labels(tiny, batch=3, tokens=7, seed=1):
    inputs = tiny.inputs(batch=batch, tokens=tokens, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return {**inputs, "labels": torch.randint(0, 5, (batch,), generator=generator)}


def inputs_of(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def losses(model, batch):
    logits = model(**inputs_of(batch)).logits
    return torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def gate_gradients(tiny, model, batch):
    """dL_x/dg of a plain model, by hooks on its output projections."""
    gates = torch.ones(len(batch["labels"]), tiny.layers, tiny.heads, requires_grad=True)
    with tiny.oracle(model, gates):
        return torch.autograd.grad(losses(model, batch).sum(), gates)[0].double()


@pytest.mark.parametrize("family", FAMILIES)
def test_gate_gradient_equals_hooks_on_the_plain_model(tiny, family):
    plain = tiny.make(family, "SequenceClassification")
    data = [with_labels(tiny, 3, 7, 1), with_labels(tiny, 2, 5, 2)]
    by_example = torch.cat([gate_gradients(tiny, plain, batch) for batch in data])
    by_batch = torch.stack([gate_gradients(tiny, plain, batch).sum(0) for batch in data])
    model = tiny.make(family, "SequenceClassification")
    hk.attach(model)
    for granularity, expected in {
        "example": by_example.abs().mean(0),
        "signed": by_example.mean(0),
        "batch": by_batch.abs().sum(0) / 5,
    }.items():
        found = hk.score(model, data, granularity=granularity).values
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    by_token = hk.score(model, data, granularity="token").values
    assert (by_token >= by_example.abs().mean(0) - 1e-6).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_ablation_equals_hooks_on_the_plain_model(tiny, family):
    plain = tiny.make(family, "SequenceClassification")
    data = [with_labels(tiny, 3, 7, 1), with_labels(tiny, 2, 5, 2)]
    expected = torch.zeros(tiny.layers, tiny.heads, dtype=torch.float64)
    flips = torch.zeros(tiny.layers, tiny.heads, dtype=torch.long)
    with torch.no_grad():
        for batch in data:
            dense = losses(plain, batch).double()
            decided = plain(**inputs_of(batch)).logits.argmax(1)
            for layer in range(tiny.layers):
                for head in range(tiny.heads):
                    gates = torch.ones(tiny.layers, tiny.heads)
                    gates[layer, head] = 0
                    with tiny.oracle(plain, gates):
                        expected[layer, head] += (losses(plain, batch).double() - dense).sum() / 5
                        now = plain(**inputs_of(batch)).logits.argmax(1)
                    flips[layer, head] += (now != decided).sum()
    model = tiny.make(family, "SequenceClassification")
    hk.attach(model)
    scores = hk.score(model, data, "ablation")
    torch.testing.assert_close(scores.values, expected, rtol=1e-4, atol=1e-5)
    assert json.loads(scores.settings)["flips"] == flips.tolist()


@pytest.mark.parametrize("metric", ["gate_gradient", "ablation"])
def test_batches_and_padding_do_not_show(tiny, metric):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    batch = with_labels(tiny, 4, 7)
    expected = hk.score(model, [batch], metric)
    singles = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(4)]
    padded = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 4)),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, 4)),
        "labels": batch["labels"],
    }
    for data in (singles, singles[::-1], [padded]):
        found = hk.score(model, data, metric)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-6)
    assert (expected.lower <= expected.values + 1e-9).all()
    assert (expected.upper >= expected.values - 1e-9).all()


@pytest.mark.parametrize("metric", ["gate_gradient", "ablation"])
def test_dropout_is_off_and_modes_and_gradients_come_back(tiny, metric):
    model = tiny.make("Bert", "SequenceClassification")
    gated = hk.attach(model)
    data = [with_labels(tiny)]
    expected = hk.score(model, data, metric).values
    model.train()
    model.bert.pooler.eval()
    modes = [module.training for module in model.modules()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = gated.fingerprint()
    assert torch.equal(hk.score(model, data, metric).values, expected)
    assert [module.training for module in model.modules()] == modes
    assert all((parameter.grad == 3).all() for parameter in model.parameters())
    assert gated.fingerprint() == before


def test_a_probe_on_a_model_in_training_mode_is_scored_without_dropout(tiny):
    model = tiny.make("Bert")
    probe = hk.with_sentence_probe(hk.attach(model), torch.randn(5, 24), torch.zeros(5))
    data = [with_labels(tiny)]
    expected = hk.score(probe, data).values
    model.train()
    assert torch.equal(hk.score(probe, data).values, expected)
    assert model.training


def test_no_parameter_gets_a_gradient(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    hk.score(model, [with_labels(tiny)])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_half_way_leaves_the_mode(tiny):
    model = tiny.make("Bert", "SequenceClassification").train()
    hk.attach(model)
    good, bad = with_labels(tiny), {"input_ids": torch.ones(2, 3, dtype=torch.long)}
    with pytest.raises(ValueError, match="labels"):
        hk.score(model, [good, bad])
    assert model.training


def test_ctrl_c_ends_the_scoring(tiny):
    model = tiny.make("Bert", "SequenceClassification").train()
    hk.attach(model)
    batches = 4000

    def stop(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    seen = []
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            hk.score(model, [with_labels(tiny)] * batches, progress=lambda *done: seen.append(done))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) < batches and model.training
    time.sleep(0)
    assert hk.score(model, [with_labels(tiny)]).samples == 3


def test_progress_is_told_or_drawn(tiny, capsys):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    seen = []
    hk.score(model, [with_labels(tiny)] * 3, progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    hk.score(model, [with_labels(tiny)] * 3, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_objectives_by_name_and_object(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    data = [with_labels(tiny)]
    by_name = hk.score(model, data, objective="margin")
    by_object = hk.score(model, data, objective=hk.make_objective("margin"))
    assert by_name.objective == "margin" and torch.equal(by_name.values, by_object.values)
    unlabelled = [inputs_of(batch) for batch in data]
    assert hk.score(model, unlabelled, "ablation", "kl_to_dense").values.gt(0).all()
    with pytest.raises(ValueError, match="minimum"):
        hk.score(model, unlabelled, objective="kl_to_dense")


def test_what_cannot_be_scored_is_refused(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    data = [with_labels(tiny)]
    with pytest.raises(ValueError, match="attached model"):
        hk.score(model, data)
    with pytest.raises(ValueError, match="attached module"):
        hk.score("model", data)
    hk.attach(model)
    with pytest.raises(ValueError, match="gate_gradient, fisher, ablation"):
        hk.score(model, data, "importance")
    with pytest.raises(ValueError, match="granularity token"):
        hk.score(model, data, granularity="layer")
    with pytest.raises(ValueError, match="one of cross_entropy"):
        hk.score(model, data, objective="accuracy")
    with pytest.raises(ValueError, match="iterated again"):
        hk.score(model, iter(data))
    with pytest.raises(ValueError, match="at least one example"):
        hk.score(model, [])
    with torch.no_grad():
        model.classifier.weight.zero_()
    with pytest.raises(RuntimeError, match="every score exactly 0"):
        hk.score(model, data)
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="finite losses"):
        hk.score(model, data)


def test_random_scores_repeat(tiny):
    model = tiny.make("Bert")
    hk.attach(model)
    first = hk.score(model, [], "random", seed=4)
    assert torch.equal(first.values, hk.score(model, [], "random", seed=4).values)
    assert not torch.equal(first.values, hk.score(model, [], "random", seed=5).values)


def test_the_registry_tells_what_there_is():
    for info in hk.scorers().values():
        settings = info.pop("settings")
        assert set(info) == {"definition", "source", "cost", "needs"} and all(info.values())
        assert all(settings.values())


def test_the_example_tells_what_scoring_costs(tiny, tmp_path):
    tiny.make("Bert", "SequenceClassification").save_pretrained(tmp_path)
    example = pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"
    main = runpy.run_path(str(example / "cost_of_scores.py"))["main"]
    found = main(str(tmp_path), examples=2, tokens=4, repeats=1)
    assert found.keys() == {"gate_gradient", "ablation"} and min(found.values()) > 0
