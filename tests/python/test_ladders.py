"""Ladders, escalation and reactivation on real transformers modules: tiny random ones."""

import pytest
import torch
import transformers

import headkit as hk

from . import families

LAYERS, HEADS, WIDTH, NEURONS, CLASSES = 3, 4, 24, 70, 3
SIZES = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "intermediate_size": NEURONS}
LOW = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]])
MIDDLE = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [1, 1, 0, 1]])
LOW_BLOCKS = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0]])
MIDDLE_BLOCKS = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 0]])


def make(**options):
    config = transformers.BertConfig(
        vocab_size=60, num_attention_heads=HEADS, num_labels=CLASSES, **{**SIZES, **options}
    )
    return randomise(transformers.BertForSequenceClassification(config))


def randomise(model):
    families.randomise(model.eval())
    return model


def inputs(batch=16, tokens=9, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (batch, tokens), generator=generator)
    lengths = torch.randint(2, tokens + 1, (batch, 1), generator=generator)
    mask = (torch.arange(tokens) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def means(seed, units):
    return 0.2 * torch.randn(LAYERS, units, WIDTH, generator=torch.Generator().manual_seed(seed))


def ladder(blocks=True, compensation=True):
    rungs = []
    for number, (heads, open_blocks) in enumerate(((LOW, LOW_BLOCKS), (MIDDLE, MIDDLE_BLOCKS))):
        options = {"blocks": open_blocks} if blocks else {}
        if compensation:
            options["dropped_output"] = means(number, HEADS)
            if blocks:
                options["dropped_blocks"] = means(number + 5, 3)
        rungs.append(hk.Rung(hk.HeadMask(heads), **options))
    return hk.Ladder([*rungs, hk.Rung(hk.HeadMask.all(LAYERS, HEADS))])


def probe(layer=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return hk.LinearProbe(
        layer=layer, reference=normal(WIDTH), weight=normal(CLASSES, WIDTH), bias=normal(CLASSES)
    )


def reactivation(gated, rungs, batch, powers=(1.0, 2.0)):
    """At a lambda that sends inputs to every rung."""
    draft = hk.Reactivation(rungs, probe(), powers=list(powers))
    confidence = draft.trace(gated, [batch]).confidence[:, 0]
    return draft.at(float(confidence.quantile(0.7)))


def escalation(gated, batch, **signal):
    """At a threshold below which some inputs stay and some climb."""
    draft = hk.Escalation(ladder(), threshold=0.5, **signal)
    return draft.with_threshold(float(draft.trace(gated, [batch]).confidence.median()))


def rungs_of(policy, gated, batch):
    records = hk.read_decision_records(hk.run(gated, batch, policy, record=True).records)
    return [record.rung for record in records]


@torch.no_grad()
def test_reactivation_is_that_of_plain_transformers():
    model, batch = make(), inputs()
    plain = make()
    gated = hk.attach(model, feed_forward=True)
    policy = reactivation(gated, ladder(blocks=False, compensation=False), batch)

    def output(masks):
        """Of the plain model, what enters each output projection multiplied by these heads."""
        handles = []
        for layer, mask in zip(plain.bert.encoder.layer, masks, strict=True):
            wide = mask.float().repeat_interleave(WIDTH // HEADS)
            handles.append(
                layer.attention.output.dense.register_forward_pre_hook(
                    lambda _, args, wide=wide: (args[0] * wide,)
                )
            )
        result = plain(**batch, output_hidden_states=True)
        for handle in handles:
            handle.remove()
        return result

    hidden = output(LOW).hidden_states[1].double()
    valid = batch["attention_mask"][..., None]
    pooled = (hidden * valid).sum(1) / valid.sum(1) - policy.probe.reference
    best = (pooled @ policy.probe.weight.T + policy.probe.bias).topk(2, 1).values
    confidence = ((best[:, 0] - best[:, 1]) / 2).tanh()
    thresholds = torch.tensor([policy.lambda_, policy.lambda_**2])
    wanted = (confidence[:, None] < thresholds).sum(1)
    assert set(wanted.tolist()) == {0, 1, 2}, "not every rung is tested"
    every = torch.ones_like(LOW)
    paths = [torch.cat((LOW[:1], rung[1:])) for rung in (LOW, MIDDLE, every)]
    outputs = torch.stack([output(path).logits for path in paths])
    run = hk.run(gated, batch, policy)
    expected = outputs[wanted, torch.arange(16)]
    torch.testing.assert_close(run.output, expected, atol=1e-5, rtol=1e-5)
    assert run.heads_run.tolist() == [int(paths[rung].sum()) for rung in wanted]


@torch.no_grad()
@pytest.mark.parametrize("compensation", [False, True])
def test_reactivation_through_gates_is_that_of_run(compensation):
    model, batch = make(), inputs()
    gated = hk.attach(model, feed_forward=True)
    policy = reactivation(gated, ladder(compensation=compensation), batch)
    assert policy.decision_layers == [0, 1]
    run = hk.run(gated, batch, policy, record=True)
    assert len(set(rungs_of(policy, gated, batch))) == 3, "not every rung is tested"
    state = hk.PolicyState(record=True, layout=gated.layout())
    with hk.gates(model, policy, state=state):
        through_hooks = model(**batch).logits
    torch.testing.assert_close(through_hooks, run.output, atol=1e-6, rtol=1e-5)
    told, seen = (hk.read_decision_records(text) for text in (run.records, state.records))
    for one, other in zip(told, seen, strict=True):
        assert one.rung == other.rung
        assert one.confidence == other.confidence
        assert torch.equal(one.gates(), other.gates())
        assert torch.equal(one.block_gates(), other.block_gates())
    order = torch.arange(15, -1, -1)
    with hk.gates(model, policy):
        turned = model(**{name: value[order] for name, value in batch.items()}).logits
        dense = policy.at(1)
    torch.testing.assert_close(turned[order], through_hooks, atol=1e-6, rtol=1e-5)
    with hk.gates(model, dense):
        whole = model(**batch).logits
    torch.testing.assert_close(whole, make()(**batch).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_decisions_do_not_depend_on_batch_order_padding_or_threads():
    gated = hk.attach(make(), feed_forward=True)
    batch = inputs()
    for policy in (
        reactivation(gated, ladder(), batch),
        escalation(gated, batch, signal="probe_confidence", probe=probe()),
        escalation(gated, batch),
    ):

        def decided(given, policy=policy):
            records = hk.read_decision_records(hk.run(gated, given, policy, record=True).records)
            return [(record.rung, record.confidence) for record in records]

        def rungs(decisions):
            return [rung for rung, _ in decisions]

        together = decided(batch)
        assert len(set(rungs(together))) > 1, "the policy treats all inputs alike"
        wider = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in batch.items()}
        order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
        shuffled = decided({name: value[order] for name, value in batch.items()})
        alone = []
        for place in range(16):
            length = int(batch["attention_mask"][place].sum())
            one = {name: value[place : place + 1, :length] for name, value in batch.items()}
            alone += decided(one)
        torch.set_num_threads(2)
        threaded = decided(batch)
        torch.set_num_threads(1)
        found = (decided(wider), [shuffled[i] for i in order.argsort()], alone, threaded)
        for other in found:
            assert rungs(other) == rungs(together)
            if not isinstance(policy, hk.Escalation) or policy.signal == "probe_confidence":
                assert other == together


@torch.no_grad()
def test_replaying_a_record_gives_the_same_bits():
    gated = hk.attach(make(), feed_forward=True)
    batch = inputs()
    for policy in (
        reactivation(gated, ladder(), batch),
        escalation(gated, batch),
    ):
        for place in range(16):
            one = {name: value[place : place + 1] for name, value in batch.items()}
            run = hk.run(gated, one, policy, record=True)
            record = hk.read_decision_records(run.records)[0]
            rungs = [policy.path(i) for i in range(3)] if "path" in dir(policy) else policy.ladder
            rung = rungs[record.rung]
            blocks = record.block_gates()
            gates = hk.GateSet(
                record.gates()[None],
                dropped_output=rung.dropped_output,
                blocks=None if blocks is None else blocks[None],
                dropped_blocks=rung.dropped_blocks,
            )
            assert torch.equal(gated(one, gates), run.output)


@torch.no_grad()
def test_escalation_counts_blocks_and_what_it_repeats():
    gated = hk.attach(make(), feed_forward=True)
    batch = inputs()
    rungs = ladder(compensation=False)
    trace = hk.Escalation(rungs, threshold=0.5).trace(gated, [batch])
    # The middle rung computes in layer 0 what the low one does, the top one nothing of either.
    heads = [5, 5 + 5, 5 + 5 + 12]
    neurons = [64 + 32 + 32, 128 + 38 + 64, 128 + 102 + 210]
    assert trace.heads.tolist() == heads
    for threshold in (0.0, float(trace.confidence.median()), 1.0):
        run = hk.run(gated, batch, hk.Escalation(rungs, threshold=threshold))
        reached = trace.reached([threshold]).tolist()
        assert run.heads_run.tolist() == [heads[rung] for rung in reached]
        assert run.neurons_run.tolist() == [neurons[rung] for rung in reached]
        tokens = batch["attention_mask"].sum(1)
        flops = run.flops(gated.layout(), tokens)
        expected = trace.flops.gather(1, torch.tensor(reached)[:, None])[:, 0]
        torch.testing.assert_close(flops, expected)
    assert trace.flops_share(torch.full((16,), 0)) == pytest.approx(
        float(sum(hk.rung_flops(gated, rungs[0], int(t)) for t in tokens) / trace.dense_flops.sum())
    )


@torch.no_grad()
def test_fitted_reactivation_keeps_its_budget():
    gated = hk.attach(make(), feed_forward=True)
    train, calibration = [inputs(seed=s) for s in range(4)], [inputs(seed=s) for s in (10, 11)]
    scores = hk.HeadScores(torch.rand(LAYERS, HEADS, dtype=torch.float64))
    rungs = hk.make_ladder(
        gated,
        head_shares=[0.25, 0.5],
        scores=scores,
        neuron_scores=torch.rand(LAYERS, NEURONS),
        block_shares=[0.25, 0.5],
        common_layers=1,
        data=train,
    )
    assert rungs.shared_layers(1) == 1
    for signal in ("probe_confidence", "predicted_loss"):
        for budget in ({"mean_heads": 6}, {"flops_share": 0.6}):
            policy, report = hk.fit_reactivation(
                gated, train, calibration, rungs, layer=1, signal=signal, **budget
            )
            runs = [hk.run(gated, batch, policy) for batch in calibration]
            heads = torch.cat([run.heads_run for run in runs]).double().mean()
            assert float(heads) == pytest.approx(report.mean_heads)
            found = report.mean_heads if "mean_heads" in budget else report.flops_share
            assert found <= next(iter(budget.values()))
            again = hk.policy_from_json(policy.to_json())
            assert again.to_json() == policy.to_json()
            assert torch.equal(hk.run(gated, calibration[0], again).output, runs[0].output)


def test_policies_that_decide_midway_refuse_caches_and_unattached_blocks():
    config = transformers.GPT2Config(
        vocab_size=60, n_layer=LAYERS, n_embd=WIDTH, n_head=HEADS, n_inner=NEURONS, n_positions=40
    )
    model = randomise(transformers.GPT2LMHeadModel(config))
    gated = hk.attach(model)
    policy = hk.Reactivation(ladder(blocks=False), probe(), lambda_=0.5)
    ids = torch.randint(3, 60, (4, 6), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), hk.gates(model, policy):
        with pytest.raises(ValueError, match="use_cache=False"):
            model(input_ids=ids)
        logits = model(input_ids=ids, use_cache=False).logits
        run = hk.run(gated, {"input_ids": ids}, policy)
    torch.testing.assert_close(logits, run.output, atol=1e-5, rtol=1e-5)

    classifier = make()
    hk.attach(classifier)
    policy = hk.Reactivation(ladder(), probe(), lambda_=0.5)
    with hk.gates(classifier, policy), pytest.raises(ValueError, match="feed_forward=True"):
        classifier(**inputs())


@torch.no_grad()
@pytest.mark.parametrize("family", ["Bert", "Albert"])
def test_sorted_neurons_give_the_outputs_of_the_model(family):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=60, num_attention_heads=HEADS, num_labels=CLASSES, **SIZES
    )
    model = randomise(getattr(transformers, f"{family}ForSequenceClassification")(config))
    batch = inputs()
    before = model(**batch).logits
    gated = hk.attach(model, feed_forward=True)
    weights = [gated.feed_forward(layer).inner.clone() for layer in range(LAYERS)]
    scores = torch.rand(LAYERS, NEURONS, generator=torch.Generator().manual_seed(2))
    order = hk.sort_neurons(model, scores)
    ranked = scores.sum(0).expand_as(scores) if family == "Albert" else scores
    assert torch.equal(order, ranked.sort(1, descending=True).indices)
    assert not torch.equal(gated.feed_forward(1).inner, weights[1])
    torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=1e-5)
    hk.order_neurons(model, order.argsort(1))
    assert all(torch.equal(gated.feed_forward(at).inner, weights[at]) for at in range(LAYERS))
    with pytest.raises(ValueError, match="permutation"):
        hk.order_neurons(model, torch.zeros(LAYERS, NEURONS, dtype=torch.long))


def test_a_ladder_says_what_is_missing():
    with pytest.raises(ValueError, match="lacks layer 1 head 2"):
        hk.Ladder([hk.Rung(hk.HeadMask(MIDDLE)), hk.Rung(hk.HeadMask(LOW))])
    rungs = ladder()
    assert len(rungs) == 3
    assert hk.Ladder.from_json(rungs.to_json()).to_json() == rungs.to_json()
    assert torch.equal(rungs[-3].blocks, LOW_BLOCKS.bool())
    with pytest.raises(IndexError):
        rungs[3]
