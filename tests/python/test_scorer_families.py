"""Every metric on attached models, against plain transformers and plain autograd."""

import json
import math
import warnings

import pytest
import torch

import headkit as hk

SETTINGS = {
    "attention_entropy": {"sign": "high"},
    "shapley": {"permutations": 2},
    "greedy_gnorm": {"recompute": False},
}


def labelled(tiny, batch=4, tokens=7, seed=1):
    inputs = tiny.inputs(batch=batch, tokens=tokens, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return {**inputs, "labels": torch.randint(0, 5, (batch,), generator=generator)}


def attentions(model, batch):
    """Probabilities [L, B, H, T, T] of a plain model that runs eager attention."""
    model.config._attn_implementation = "eager"
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        return torch.stack(model(**inputs, output_attentions=True).attentions).double()


@pytest.mark.parametrize("metric", sorted(hk.scorers()))
def test_every_metric_scores_an_attached_model_and_leaves_it_as_it_was(tiny, metric):
    model = tiny.make("Bert", "SequenceClassification").train()
    gated = hk.attach(model)
    before = gated.fingerprint()
    data = [labelled(tiny)]
    scores = hk.score(model, data, metric, bootstrap=20, **SETTINGS.get(metric, {}))
    assert scores.values.shape == (tiny.layers, tiny.heads) and scores.metric == metric
    assert scores.values.isfinite().all() and scores.values.unique().numel() > 2
    assert hk.HeadScores.from_json(scores.to_json()).values.equal(scores.values)
    assert gated.fingerprint() == before and model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_entropy_and_confidence_are_those_of_the_probabilities(tiny):
    batch = labelled(tiny)
    plain = tiny.make("Bert", "SequenceClassification").eval()
    probabilities = attentions(plain, batch)
    mask = batch["attention_mask"].bool()
    lengths = mask.sum(1)
    rows = mask & (lengths > 1)[:, None]
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(-1)
    entropy = entropy / lengths.double().log().clamp_min(1e-9)[None, :, None, None]
    expected = entropy.transpose(2, 3)[:, rows].mean(1)
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    found = hk.score(model, [batch], "attention_entropy", sign="high")
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)
    largest = probabilities.amax(-1).transpose(2, 3)[:, mask].mean(1)
    found = hk.score(model, [batch], "confidence", exclude_end=False)
    torch.testing.assert_close(found.values, largest, rtol=1e-4, atol=1e-5)


def test_a_causal_query_counts_the_keys_before_it_only():
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_positions=16)
    model = transformers.GPT2LMHeadModel(config).eval()
    batch = {"input_ids": torch.randint(0, 50, (3, 9))}
    probabilities = attentions(model, batch)
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(-1)[..., 1:]
    share = entropy / torch.tensor([math.log(n) for n in range(2, 10)])
    hk.attach(model)
    found = hk.score(model, [batch], "attention_entropy", "next_token", sign="high")
    torch.testing.assert_close(found.values, share.mean((1, 3)), rtol=1e-4, atol=1e-5)
    for metric in ("greedy_gnorm", "flap", "confidence", "hies"):
        scores = hk.score(model, [batch], metric, "next_token", **SETTINGS.get(metric, {}))
        assert scores.values.unique().numel() > 4
    assert hk.score(model, [batch], "kl_curvature", draws=2).values.gt(0).all()


@pytest.mark.parametrize("frozen", [False, True])
def test_greedy_gnorm_multiplies_the_norms_of_plain_gradients(tiny, frozen):
    batch = labelled(tiny)
    plain = tiny.make("Bert", "SequenceClassification").eval()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    torch.nn.functional.cross_entropy(plain(**inputs).logits, batch["labels"]).backward()
    expected = torch.ones(tiny.layers, tiny.heads, dtype=torch.float64)
    for layer, block in enumerate(plain.bert.encoder.layer):
        attention = block.attention.self
        for linear in (attention.query, attention.key, attention.value):
            by_head = linear.weight.grad.double().unflatten(0, (tiny.heads, -1))
            expected[layer] *= by_head.flatten(1).norm(dim=1)
    model = tiny.make("Bert", "SequenceClassification").requires_grad_(not frozen)
    hk.attach(model)
    found = hk.score(model, [batch], "greedy_gnorm", recompute=False).values
    torch.testing.assert_close(found / expected, torch.ones_like(expected), rtol=2e-3, atol=0)
    assert all(p.requires_grad is not frozen for p in model.parameters())


def test_a_sign_that_is_a_guess_is_told(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    told = 0
    for seed in range(6):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores = hk.score(model, [labelled(tiny, 8, seed=seed)], "attention_entropy")
        settings = json.loads(scores.settings)
        guess = settings["calibration"]["lower"] <= 0 <= settings["calibration"]["upper"]
        assert guess == any("the sign is a guess" in str(each.message) for each in caught)
        if guess:
            with pytest.warns(UserWarning, match=r"\[prune\].*the sign is a guess"):
                hk.prune(model, 0.5, "attention_entropy", [labelled(tiny, 8, seed=seed)])
        told += guess
    assert told > 0


def test_fisher_information_and_its_gradients(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    data = [labelled(tiny, 3), labelled(tiny, 2, seed=2)]
    found = hk.fisher_information(model, data, keep_gradients=True)
    g = found.head_gradients
    assert found.samples == 5 and g.shape == (5, tiny.layers, tiny.heads)
    torch.testing.assert_close(found.heads, g.square().mean(0))
    torch.testing.assert_close(found.head_blocks, torch.einsum("nlh,nlk->lhk", g, g) / 5)
    torch.testing.assert_close(hk.score(model, data, "fisher").values, found.heads)


def test_unknown_settings_are_refused(tiny):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    data = [labelled(tiny)]
    with pytest.raises(ValueError, match="permutations, tolerance, rank, exact"):
        hk.score(model, data, "shapley", samples=3)
    with pytest.raises(ValueError, match="a whole number"):
        hk.score(model, data, "shapley", permutations="many")
    with pytest.raises(ValueError, match="no settings"):
        hk.score(model, data, "fisher", alpha=1)
    with pytest.raises(ValueError, match="draws"):
        hk.score(tiny_lm(), [{"input_ids": torch.ones(2, 3, dtype=torch.long)}], "kl_curvature")


def tiny_lm():
    import transformers

    config = transformers.GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=4, n_positions=16)
    return hk.attach(transformers.GPT2LMHeadModel(config))


def test_scores_from_elsewhere_are_drawn_and_kept(tmp_path):
    scores = hk.HeadScores(torch.randn(3, 4), metric="relevance", samples=7)
    scores.plot(tmp_path / "signed.svg")
    hk.plot_scores(hk.HeadScores(torch.rand(3, 4)), tmp_path / "positive.png")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("signed.svg", "positive.png"))
    assert hk.HeadScores.from_json(scores.to_json()).metric == "relevance"


def test_learned_gates_rank_heads():
    gates = hk.SubsetGates(2, 3, keep=2)
    with torch.no_grad():
        gates.w.copy_(torch.arange(6).reshape(2, 3))
    assert hk.learned_gate_scores(gates).values.tolist() == [[0, 1, 2], [3, 4, 5]]
