"""Gates belong to calls: contexts, threads, recomputation, policies, stages."""

import asyncio
import threading

import pytest
import torch

import headkit as hk

FAMILIES = ("Bert", "Roberta", "Electra", "DistilBert")
TASK = "SequenceClassification"


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_contexts_nest_and_end(tiny):
    plain, model = tiny.make("Bert", TASK), tiny.make("Bert", TASK)
    other = tiny.make("Bert", TASK, seed=5)
    hk.attach(model), hk.attach(other)
    inputs = tiny.inputs(2)
    dense, untouched = model(**inputs).logits, other(**inputs).logits
    outer, inner = torch.rand(2, tiny.layers, tiny.heads)
    with tiny.oracle(plain, outer):
        expected_outer = plain(**inputs).logits
    with tiny.oracle(plain, inner):
        expected_inner = plain(**inputs).logits
    with hk.gates(model, outer):
        close(model(**inputs).logits, expected_outer)
        with hk.gates(model, inner):
            close(model(**inputs).logits, expected_inner)
            assert torch.equal(other(**inputs).logits, untouched)
        with pytest.raises(RuntimeError, match="stop"), hk.gates(model, inner):
            raise RuntimeError("stop")
        close(model(**inputs).logits, expected_outer)
    assert torch.equal(model(**inputs).logits, dense)


def test_gates_are_read_as_tensors_masks_and_sets(tiny):
    model = tiny.make("DistilBert")
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    keep = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    with hk.gates(model, keep.float()):
        expected = model(**inputs).last_hidden_state
    for same in (
        keep,
        keep.bool(),
        keep.double(),
        keep.to(torch.bfloat16),
        keep.expand(2, 3, 4),
        hk.HeadMask(keep),
        hk.GateSet(keep.float()),
        keep.float()[None, :, None].expand(2, 3, 7, 4),
    ):
        with hk.gates(gated, same):
            close(model(**inputs).last_hidden_state, expected)
        close(gated(inputs, same), expected)
    with hk.gates(model, hk.GateSet()):
        close(
            model(**inputs).last_hidden_state,
            hk.detach(model)(**inputs).last_hidden_state,
        )


def test_gates_that_do_not_fit_are_refused_before_anything_runs(tiny):
    model = tiny.make("Bert", TASK)
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    ran = []
    model.bert.encoder.layer[0].register_forward_hook(lambda *_: ran.append(1))
    for bad in (
        torch.ones(4, 3),
        torch.ones(3),
        torch.ones(2, 3, 5),
        torch.ones(1, 2, 3, 4, 5),
        torch.full((3, 4), torch.nan),
        hk.HeadMask(torch.ones(2, 4)),
        "all",
        None,
        [[1.0] * 4] * 3,
    ):
        with pytest.raises(ValueError, match=r"\[gate"):
            hk.gates(model, bad).__enter__()
    for bad in (torch.ones(3, 3, 4), torch.ones(1, 3, 4), torch.ones(2, 3, 6, 4)):
        with hk.gates(model, bad), pytest.raises(ValueError, match=r"\[gates\] expected gates for"):
            model(**inputs)
        with pytest.raises(ValueError, match=r"\[g"):
            gated(inputs, hk.GateSet(bad))
    assert not ran
    assert torch.equal(model(**inputs).logits, gated(inputs))


def test_threads_have_their_own_gates(tiny):
    plain, model = tiny.make("Bert", TASK), tiny.make("Bert", TASK)
    hk.attach(model)
    inputs = tiny.inputs(2)
    choices = torch.rand(8, tiny.layers, tiny.heads).round(decimals=1)
    expected = []
    for gates in choices:
        with tiny.oracle(plain, gates), torch.no_grad():
            expected.append(plain(**inputs).logits)
    barrier = threading.Barrier(len(choices))
    failures = []

    def work(gates, logits):
        try:
            with hk.gates(model, gates), torch.no_grad():
                barrier.wait(timeout=30)
                for _ in range(10):
                    close(model(**inputs).logits, logits)
        except BaseException as error:
            failures.append(error)

    with hk.gates(model, torch.zeros(tiny.layers, tiny.heads)):
        threads = [
            threading.Thread(target=work, args=pair) for pair in zip(choices, expected, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_threads_attach_run_and_detach_models_of_their_own(tiny):
    inputs = tiny.inputs(2)
    models, expected = [], []
    for seed in range(8):
        model = tiny.make("Bert", TASK, seed=seed)
        gates = torch.rand(tiny.layers, tiny.heads).round(decimals=1)
        with torch.no_grad():
            dense = model(**inputs).logits
            with tiny.oracle(model, gates):
                expected.append((dense, gates, model(**inputs).logits))
        models.append(model)
    barrier = threading.Barrier(len(models))
    failures = []

    def work(model, dense, gates, gated):
        try:
            barrier.wait(timeout=30)
            with torch.no_grad():
                for _ in range(5):
                    hk.attach(model)
                    close(model(**inputs).logits, dense)
                    with hk.gates(model, gates):
                        close(model(**inputs).logits, gated)
                    hk.detach(model)
                    assert torch.equal(model(**inputs).logits, dense)
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=work, args=(model, *found))
        for model, found in zip(models, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_tasks_have_their_own_gates(tiny):
    model = tiny.make("Bert", TASK)
    hk.attach(model)
    inputs = tiny.inputs(2)
    dense = model(**inputs).logits
    closed = torch.zeros(tiny.layers, tiny.heads)
    with hk.gates(model, closed):
        expected = model(**inputs).logits

    async def task(gates, logits):
        with hk.gates(model, gates):
            for _ in range(3):
                await asyncio.sleep(0)
                close(model(**inputs).logits, logits)

    async def both():
        await asyncio.gather(task(closed, expected), task(torch.ones_like(closed), dense))

    asyncio.run(both())


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_layers_keep_the_gates_of_their_call(tiny, family):
    inputs = {**tiny.inputs(3), "labels": torch.tensor([0, 1, 2])}
    gates = torch.rand(3, tiny.layers, tiny.heads)
    gates[gates < 0.4] = 0
    results = []
    for checkpointed in (False, True):
        options = {"seq_classif_dropout": 0.0} if family == "DistilBert" else {}
        names = ("dropout", "attention_dropout")
        if family != "DistilBert":
            names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        model = tiny.make(family, TASK, **dict.fromkeys(names, 0.0), **options).train()
        hk.attach(model)
        if checkpointed:
            model.activation_checkpointing_enable()
        bound = gates.clone().requires_grad_()
        with hk.gates(model, hk.GateSet(bound, skip=False)):
            loss = model(**inputs).loss
        with hk.gates(model, torch.ones(tiny.layers, tiny.heads)):
            loss.backward()
        weights = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([bound.grad, *weights])
    assert len(results[0]) == len(results[1]) > 10
    assert results[0][0].abs().sum() > 0
    for expected, found in zip(*results, strict=True):
        close(found, expected)


def test_checkpointed_dropout_repeats_itself(tiny):
    inputs = {**tiny.inputs(2), "labels": torch.tensor([0, 1])}
    gradients = []
    for checkpointed in (False, True):
        model = tiny.make("Bert", TASK, attention_probs_dropout_prob=0.5).train()
        hk.attach(model)
        if checkpointed:
            model.activation_checkpointing_enable()
        torch.manual_seed(3)
        model(**inputs).loss.backward()
        gradients.append(model.bert.encoder.layer[0].attention.self.value.weight.grad)
    close(gradients[1], gradients[0])


def test_gate_gradients_equal_finite_differences(tiny):
    model = tiny.make("Electra", TASK).double()
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    point = torch.rand(2, tiny.layers, tiny.heads, dtype=torch.float64, requires_grad=True)

    def outputs(heads):
        with hk.gates(model, heads):
            return model(**inputs).logits

    assert torch.autograd.gradcheck(outputs, point, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda heads: gated(inputs, hk.GateSet(heads)), point, fast_mode=True
    )


def test_a_policy_decides_for_each_call(tiny):
    model = tiny.make("Bert", TASK)
    gated = hk.attach(model)
    inputs = tiny.inputs(3)
    keep = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    with hk.gates(model, keep):
        expected = model(**inputs).logits
    policy = hk._C.MaskPolicy(hk.HeadMask(keep))
    state = hk._C.PolicyState(record=True, layout=gated.layout())
    with hk.gates(model, policy, state=state):
        close(model(**inputs).logits, expected)
        close(model(**tiny.inputs(2)).logits, expected[:2])
    assert len(state.records.splitlines()) == 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_stages_equal_the_whole(tiny, family, attention):
    tasks = {
        "": ("last_hidden_state", tiny.make(family, "", attention)),
        TASK: ("logits", tiny.make(family, TASK, attention)),
        "TokenClassification": ("logits", tiny.make(family, "TokenClassification", attention)),
        "MaskedLM": ("logits", tiny.make(family, "MaskedLM", attention)),
    }
    gates = torch.rand(3, tiny.layers, tiny.heads)
    gates[gates < 0.3] = 0
    for padding in ("right", "none"):
        inputs = tiny.inputs(3, padding=padding)
        for name, model in tasks.values():
            gated = hk.attach(model)
            with hk.gates(model, gates):
                expected = getattr(model(**inputs), name)
            batch = {**inputs, "labels": torch.tensor([0, 1, 2])}
            set_ = hk.GateSet(gates)
            close(gated(batch, set_), expected)
            state = gated.embed(batch)
            assert state.layer == 0 and (state.attention_mask is None) == (padding == "none")
            for layer in range(tiny.layers):
                state = gated.run(state, layer, layer + 1, set_)
            close(gated.head(state), expected)


def test_a_prefix_can_be_shared_and_a_part_run_on(tiny):
    model = tiny.make("Roberta", TASK)
    gated = hk.attach(model)
    inputs = tiny.inputs(3)
    low, high = torch.rand(2, 3, tiny.layers, tiny.heads)
    state = gated.run(gated.embed(inputs), 0, 1, hk.GateSet(low))
    index = torch.tensor([2, 0])
    part = gated.select(state, index)
    assert part.layer == 1 and torch.equal(part.batch["input_ids"], inputs["input_ids"][index])
    found = gated.head(gated.run(part, 1, 3, hk.GateSet(high[index])))
    mixed = torch.cat((low[:, :1], high[:, 1:]), 1)
    with hk.gates(model, mixed):
        close(found, model(**inputs).logits[index])
    empty = gated.select(state, torch.empty(0, dtype=torch.int64))
    assert gated.head(gated.run(empty, 1, 3)).shape == (0, 5)
    with pytest.raises(ValueError, match=r"\[run\] expected layers 1"):
        gated.run(state, 0, 1)
    with pytest.raises(ValueError, match=r"\[run\]"):
        gated.run(state, 1, 4)


def test_selecting_keeps_square_masks_with_their_samples(tiny):
    model = tiny.make("Bert", TASK)
    gated = hk.attach(model)
    inputs = tiny.inputs(3, padding="none")
    inputs["attention_mask"] = torch.rand(3, 1, 7, 7) > 0.3
    index = torch.tensor([1, 2, 1])
    part = gated.select(gated.embed(inputs), index)
    assert part.attention_mask is None
    close(gated.head(gated.run(part, 0, 3)), model(**inputs).logits[index])


def test_taps_deliver_the_inputs_of_the_layers(tiny):
    model = tiny.make("DistilBert")
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    gates = torch.rand(2, tiny.layers, tiny.heads)
    taps = hk.Taps(attention_inputs=True)
    gated(inputs, hk.GateSet(gates), taps)
    with hk.gates(model, gates):
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(taps.attention_input) == tiny.layers
    for found, expected in zip(taps.attention_input, states, strict=False):
        close(found, expected)
    silent = hk.Taps()
    gated(inputs, hk.GateSet(gates), silent)
    assert silent.attention_input == []


def test_stages_ignore_open_contexts_and_recorded_outputs(tiny):
    model = tiny.make("Bert", TASK, "eager")
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    expected = model(**inputs).logits
    with hk.gates(model, torch.zeros(tiny.layers, tiny.heads)):
        close(gated(inputs), expected)
    model.config.output_hidden_states = True
    close(gated(inputs), expected)
    assert len(model(**inputs).hidden_states) == tiny.layers + 1


def test_inputs_are_read_with_care(tiny):
    model = tiny.make("Bert", TASK)
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    for bad in ({**inputs, "inputs": torch.ones(2)}, {"labels": torch.ones(2)}):
        with pytest.raises(ValueError, match=r"\[embed\] expected tensors named input_ids, "):
            gated(bad)
    more = {**inputs, "labels": torch.tensor([0, 1]), "example_id": torch.tensor([7, 8])}
    assert torch.equal(gated(more), model(**inputs).logits)
    choice = tiny.make("Bert", "MultipleChoice")
    with pytest.raises(ValueError, match="one sequence for each of 2 examples; found 6"):
        hk.attach(choice)({"input_ids": torch.ones(2, 3, 7, dtype=torch.int64)})


def test_span_logits_come_as_one_tensor(tiny):
    model = tiny.make("DistilBert", "QuestionAnswering", seed=2)
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    output = model(**inputs)
    close(gated(inputs), torch.stack((output.start_logits, output.end_logits), -1))
