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


def random_layer_gate(tiny, threshold=0.0, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    width = tiny.heads * tiny.head_dim

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return hk.LayerGate(
        weight=normal(tiny.layers, tiny.heads, width),
        reference=normal(tiny.layers, width),
        static_logits=normal(tiny.layers, tiny.heads),
        threshold=threshold,
        **settings,
    )


def test_a_layer_gate_decides_before_each_layer_in_hooks_and_in_run(tiny, model, batch):
    gate = random_layer_gate(tiny)
    gated = hk.attach(model)
    with torch.no_grad():
        run = hk.run(gated, batch, gate, record=True)
        with hk.gates(model, gate):
            through_hooks = model(**batch).logits
        with hk.gates(model, run.gates):
            replayed = model(**batch).logits
        state = gated.embed(batch)
        for layer in range(tiny.layers):
            z = gate.logits(layer, state.hidden, batch["attention_mask"].bool())
            assert torch.equal((z >= 0).float(), run.gates.heads[:, layer])
            state = gated.run(state, layer, layer + 1, run.gates)
    assert len(set(run.heads_run.tolist())) > 1, "all inputs are treated alike"
    torch.testing.assert_close(through_hooks, run.output, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(replayed, run.output, atol=1e-6, rtol=1e-5)
    for record, gates in zip(hk.read_decision_records(run.records), run.gates.heads, strict=True):
        assert torch.equal(record.gates(), gates)
        for head in record.heads:
            total = head.base + head.rest + sum(part.value for part in head.parts)
            assert total == pytest.approx(head.logit, abs=1e-5 * max(1, abs(head.logit)))


def test_decisions_of_each_layer_do_not_depend_on_the_batch_the_order_or_padding(
    tiny, model, batch
):
    gate = random_layer_gate(tiny)
    gated = hk.attach(model)
    with torch.no_grad():
        together = hk.run(gated, batch, gate).gates.heads
        order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
        shuffled = {name: value[order] for name, value in batch.items()}
        assert torch.equal(hk.run(gated, shuffled, gate).gates.heads, together[order])
        for place in range(0, 24, 5):
            length = int(batch["attention_mask"][place].sum())
            alone = {name: value[place : place + 1, :length] for name, value in batch.items()}
            assert torch.equal(hk.run(gated, alone, gate).gates.heads[0], together[place])
        wider = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in batch.items()}
        assert torch.equal(hk.run(gated, wider, gate).gates.heads, together)


def test_gates_train_from_a_static_start(tiny, model, batch):
    gated = hk.attach(model)
    before = gated.fingerprint()
    start = hk.static_gate(model, torch.rand(tiny.layers, tiny.heads), 3, by_layer=True)
    told = []
    gate, report = hk.train_input_gates(
        model,
        start,
        [batch],
        [batch],
        budget=0.5,
        steps=4,
        progress=lambda done, total: told.append((done, total)),
    )
    assert isinstance(gate, hk.LayerGate) and len(report.loss) == 4
    assert told == [(step, 4) for step in range(1, 5)]
    assert gated.fingerprint() == before
    assert report.mean_heads <= tiny.layers * tiny.heads / 2 + 1e-9
    mean = hk.run(gated, batch, gate).heads_run.double().mean().item()
    assert mean == pytest.approx(report.mean_heads)
    with pytest.raises(ValueError, match="relaxation"):
        hk.train_input_gates(model, start, [batch], [batch], budget=0.5, steps=4, relaxation="soft")
    mask = hk.MaskPolicy(hk.HeadMask.all(tiny.layers, tiny.heads))
    with pytest.raises(ValueError, match="LinearGate or LayerGate"):
        hk.train_input_gates(model, mask, [batch], [batch], budget=0.5, steps=4)


def test_a_ladder_is_trained_in_place(tiny, model, batch):
    hk.attach(model)
    data = [{**batch, "labels": torch.arange(24) % 5}]
    low = torch.zeros(tiny.layers, tiny.heads)
    low[:, 0] = 1
    ladder = hk.Ladder(
        [hk.Rung(hk.HeadMask(low)), hk.Rung(hk.HeadMask.all(tiny.layers, tiny.heads))]
    )
    done = hk.train_ladder(model, ladder, data, steps=20, learning_rate=1e-3, task=None)
    assert len(done.low) == len(done.top) == 20
    assert done.low[-1] < done.low[0]
    with pytest.raises(ValueError, match="kl_to_dense"):
        hk.train_ladder(model, ladder, data, steps=2, distillation="cross_entropy")


def test_the_rank_loss_orders_heads_at_the_boundary(tiny, model, batch):
    """Written down pair by pair, it is lower where the fit minimises it beside the squares."""
    gated = hk.attach(model)
    data = [{**batch, "labels": torch.arange(24) % 5}]
    importance, _ = hk.input_importance(model, data)
    target = (importance + 0.01 * importance.mean()).log()
    pooled = hk.pooled_state(gated.embed(data[0]).hidden, batch["attention_mask"].bool())
    top = torch.zeros_like(target).scatter(2, target.topk(2, 2).indices, 1).bool()
    across = top[..., :, None] & ~top[..., None, :]
    gap = (target[..., :, None] - target[..., None, :]) * across
    losses = []
    for weight in (0.0, 10.0):
        gate, _ = hk.fit_linear_gate(
            model, data, data, mean_heads=6, ridge=1e-3, rank_weight=weight, settled_share=0
        )
        logits = ((pooled - gate.reference) @ gate.weight.flatten(0, 1).T).view_as(target)
        logits = logits + gate.static_logits
        lead = logits[..., :, None] - logits[..., None, :]
        pairs = gap * torch.nn.functional.softplus(-lead)
        losses.append(float((pairs.sum((2, 3)) / gap.sum((2, 3))).sum(1).mean()))
    assert losses[1] < losses[0]
    with pytest.raises(ValueError, match="rank_weight"):
        hk.fit_linear_gate(model, data, data, mean_heads=6, rank_weight=-1)


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_second_look_decides_the_same_inside_the_model(tiny, model, batch, by_layer):
    gated = hk.attach(model)
    data = [{**batch, "labels": torch.arange(24) % 5}]
    fit = hk.fit_layer_gate if by_layer else hk.fit_linear_gate
    gate, _ = fit(model, data, data, mean_heads=6)
    look = hk.fit_second_look(model, data, gate, band_share=0.5)
    run = hk.run(model, batch, look, record=True)
    assert not torch.equal(run.gates.heads, hk.run(model, batch, gate).gates.heads)
    with torch.no_grad(), hk.gates(model, look):
        inside = model(**batch).logits
    torch.testing.assert_close(inside, run.output, atol=1e-6, rtol=1e-5)
    records = hk.read_decision_records(run.records)
    reasons = [head.reason for record in records for head in record.heads]
    tokens = batch["attention_mask"].sum(1)
    looked = reasons.count("second_look")
    assert looked > 0 and (run.decision_flops > 0).any()
    done = run.flops(gated.layout(), tokens)
    assert [record.flops_run for record in records] == pytest.approx(done.tolist())
    # Q and K of each head that was looked at, the least that it costs.
    width = gated.layout().head_dim * gated.layout().model_dim
    counts = torch.tensor(
        [sum(head.reason == "second_look" for head in record.heads) for record in records]
    )
    assert (run.decision_flops >= 4 * width * tokens * counts).all()
    again = hk.policy_from_json(look.to_json())
    assert torch.equal(hk.run(model, batch, again).output, run.output)
    state = hk.attach(model).embed(batch)
    estimates = look.estimates(gated, 0, [0, 1], state.hidden, batch["attention_mask"].bool())
    assert torch.equal(estimates > 0, (tokens > 1)[:, None].expand(24, 2)), "one token is the mean"
    calibration = hk.calibrate(model, look, [batch], risk=0.2, length_buckets=1)
    assert calibration.grid[-1] == 1


def test_a_second_look_refuses_a_norm_before_attention(tiny):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=28,
        image_size=8, patch_size=4,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    hk.attach(model)
    gate = hk.LinearGate(
        weight=torch.zeros(2, 4, 24).double(), reference=torch.zeros(24).double(),
        static_logits=torch.zeros(2, 4).double(), threshold=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="a norm in front of layer 0"):
        hk.fit_second_look(model, [{"pixel_values": torch.randn(2, 3, 8, 8)}], gate)


def test_a_static_rung_is_trained_as_torch_would(tiny, batch):
    """The loop that PyTorch users write: AdamW, a schedule, clipping, labels, dropout."""
    data = {**batch, "labels": torch.arange(24) % 5}
    low = torch.zeros(tiny.layers, tiny.heads)
    low[:, 1:] = 1
    steps, warm = 5, 2
    weights = []
    for by_hand in (True, False):
        model = tiny.make("Bert", "SequenceClassification").train()
        teacher = tiny.make("Bert", "SequenceClassification").eval()
        gated = hk.attach(model)
        dense = teacher(**batch).logits.detach()
        if by_hand:
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.02)
            schedule = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm + 1))
            )
        else:
            trainer = hk.RungTrainer(
                gated, [hk.Rung(hk.HeadMask(low))], learning_rate=1e-2, weight_decay=0.02,
                distillation=hk.make_objective("kl_to_dense"), warmup_steps=warm, max_norm=0.25,
                total_steps=steps, task=hk.make_objective("cross_entropy"), last_without_task=False,
            )  # fmt: skip
        for step in range(steps):
            torch.manual_seed(step)
            if not by_hand:
                trainer.step(data, dense)
                continue
            with hk.gates(model, low):
                logits = model(**batch).logits
            loss = torch.nn.functional.kl_div(
                logits.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean"
            ) + 0.5 * torch.nn.functional.cross_entropy(logits, data["labels"])
            optimizer.zero_grad()
            loss.backward()
            assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25) > 0.25
            optimizer.step()
            schedule.step()
        weights.append({name: value.detach() for name, value in model.named_parameters()})
    assert trainer.steps == steps and trainer.learning_rate == 0
    for name, value in weights[0].items():
        if name.endswith("key.bias"):
            continue  # its gradient is 0 but for rounding, whose sign AdamW follows
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='a state with "mean"'):
        trainer.load_state_dict({"steps": 1})


def test_training_a_ladder_measures_blocks_anew(tiny, model, batch):
    hk.attach(model, feed_forward=True)
    data = [{**batch, "labels": torch.arange(24) % 5}]
    width = tiny.heads * tiny.head_dim
    heads = hk.HeadMask.all(tiny.layers, tiny.heads)
    _, importance = hk.input_importance(model, data, blocks=True)
    count = importance.shape[2]
    low = hk.Rung(
        heads,
        blocks=torch.zeros(tiny.layers, count, dtype=torch.bool),
        dropped_blocks=torch.zeros(tiny.layers, count, width),
    )
    done = hk.train_ladder(model, hk.Ladder([low, hk.Rung(heads)]), data, steps=2)
    assert done.ladder.rungs[0].dropped_blocks.abs().sum() > 0
    assert done.ladder.rungs[1].dropped_blocks is None


def test_importance_of_blocks_is_the_slope_of_the_loss(tiny, batch):
    model = tiny.make("Bert", "SequenceClassification").double()
    hk.attach(model, feed_forward=True)
    data = {name: value[:3] for name, value in batch.items()}
    labels = torch.tensor([0, 2, 1])
    heads, blocks = hk.input_importance(model, [{**data, "labels": labels}], blocks=True)
    assert heads.shape == (3, tiny.layers, tiny.heads)

    def losses(layer, block, gate):
        gates = torch.ones(blocks.shape[1:], dtype=torch.float64)
        gates[layer, block] = gate
        with torch.no_grad(), hk.gates(model, hk.GateSet(blocks=gates)):
            logits = model(**data).logits
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    for layer in range(blocks.shape[1]):
        slope = (losses(layer, 0, 1 + 1e-6) - losses(layer, 0, 1 - 1e-6)) / 2e-6
        torch.testing.assert_close(blocks[:, layer, 0], slope.abs(), atol=1e-7, rtol=1e-4)
