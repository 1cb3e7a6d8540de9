"""GatedModel and DataSource across the language border."""

import gc
import weakref

import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import headkit as hk

_DENSE = hk.GateSet()


class Scaled(hk.GatedModel):
    """Two layers, three heads: each open gate adds its weight times the input."""

    def __init__(self):
        super().__init__()
        self.weight = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])

    def layout(self):
        return hk.HeadLayout(2, 3, 2, 4)

    def heads(self):
        return hk.HeadMask.all(2, 3)

    def embed(self, batch):
        return hk.ModelState(batch["x"], batch=batch, extra={"steps": []})

    def run(self, state, first, last, gates=_DENSE, taps=None):
        hidden, extra = state.hidden, {"steps": [*state.extra["steps"]]}
        for layer in range(first, last):
            if taps is not None and taps.attention_inputs:
                taps.attention_input = [*taps.attention_input, hidden]
            gate = gates.layer_gate(layer)
            gate = torch.ones(3) if gate is None else gate
            factor = (gate * self.weight[layer]).sum(-1)
            hidden = hidden + factor.reshape(-1, *[1] * (hidden.dim() - 1)) * hidden
            extra["steps"].append(layer)
        return hk.ModelState(hidden, batch=state.batch, layer=last, extra=extra)

    def head(self, state):
        assert state.extra["steps"] == [0, 1]
        return state.hidden

    def select(self, state, index):
        return hk.ModelState(
            state.hidden[index],
            batch={name: value[index] for name, value in state.batch.items()},
            layer=state.layer,
            extra=state.extra,
        )

    def attention(self, layer):
        raise IndexError(f"[attention] expected nothing; found {layer}")

    def replace_attention(self, layer, weights, kept):
        raise NotImplementedError

    def parameters(self):
        return [("weight", self.weight)]


def test_a_python_model_is_a_gated_model():
    model = Scaled()
    batch = {"x": torch.ones(2, 4)}
    assert torch.equal(model(batch), torch.full((2, 4), 8.0 * 57.0))
    gates = torch.tensor([[[0.0, 0, 0], [0, 0, 0]], [[1, 0, 0], [0, 0, 0.5]]])
    assert model(batch, hk.GateSet(gates))[:, 0].tolist() == [1.0, 2.0 * 17.0]
    taps = hk.Taps(attention_inputs=True)
    model(batch, hk.GateSet(gates), taps)
    assert [each[1, 0].item() for each in taps.attention_input] == [1.0, 2.0]
    part = model.select(model.run(model.embed(batch), 0, 1), torch.tensor([1]))
    assert part.hidden.shape == (1, 4) and part.extra == {"steps": [0]}
    assert len(model.fingerprint()) == 64
    with pytest.raises(ValueError, match=r"\[gated_model\]"):
        model(batch, hk.GateSet(torch.ones(3, 3)))


def test_taps_carry_head_contexts_across_the_border():
    taps = hk.Taps(head_contexts=True)
    assert taps.head_contexts and not taps.attention_inputs
    assert taps.head_context == [] and taps.valid == []
    context = torch.rand(2, 4, 3, 2)
    taps.head_context = [*taps.head_context, context]
    taps.valid = [*taps.valid, None, torch.ones(2, 4, dtype=torch.bool)]
    assert taps.head_context[0] is context
    assert taps.valid[0] is None and taps.valid[1].all()


def test_a_layout_knows_shared_kv_heads():
    own, shared = hk.HeadLayout(2, 6, 4, 24), hk.HeadLayout(2, 6, 4, 24, kv_heads=3)
    assert own.kv_heads == 6 and shared.kv_heads == 3
    assert own == hk.HeadLayout(2, 6, 4, 24, kv_heads=6) and own != shared
    assert hk.HeadLayout.from_json(shared.to_json()) == shared
    assert shared.kv_heads_of([1, 4, 5]) == [0, 2] and shared.kv_places_of([1, 4, 5]) == [0, 1, 1]
    for wrong in (4, 0, -1):
        with pytest.raises(ValueError, match=r"\[head_layout\] expected kv_heads"):
            hk.HeadLayout(2, 6, 4, 24, kv_heads=wrong)


def test_errors_of_a_python_model_keep_their_type():
    with pytest.raises(IndexError, match="found 5"):
        Scaled().attention(5)
    with pytest.raises(KeyError):
        Scaled()({"y": torch.ones(2, 4)})


def test_a_missing_method_is_named():
    class Incomplete(hk.GatedModel):
        pass

    with pytest.raises(RuntimeError, match="layout"):
        Incomplete()({"x": torch.ones(1)})


def test_a_python_model_held_only_by_cpp_stays_alive():
    model = Scaled()
    alive = weakref.ref(model)
    wrapped = hk.with_sentence_probe(model, torch.ones(5, 4), torch.zeros(5))
    del model
    gc.collect()
    assert alive() is not None
    output = wrapped({"x": torch.rand(2, 3, 4)}, hk.GateSet(torch.zeros(2, 2, 3)))
    assert output.shape == (2, 5)
    assert wrapped.layout().total_heads == 6
    del wrapped
    gc.collect()
    assert alive() is None


def test_the_extra_of_a_state_lives_as_long_as_the_state():
    class Marker:
        pass

    marker = Marker()
    alive = weakref.ref(marker)
    state = hk.ModelState(torch.ones(1, 1, 1), extra=marker)
    del marker
    assert state.extra is alive()
    del state
    gc.collect()
    assert alive() is None


def walked(data):
    seen = []
    source = hk.DataSource(data)
    for _ in range(2):
        source.for_each(lambda batch: seen.append({k: v.tolist() for k, v in batch.items()}))
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    return seen[:half]


def test_data_from_lists_loaders_and_iterables():
    rows = [{"x": torch.tensor([i]), "labels": torch.tensor(i % 2)} for i in range(5)]
    batches = [{"x": torch.tensor([[i]])} for i in range(3)]
    assert walked(batches) == [{"x": [[0]]}, {"x": [[1]]}, {"x": [[2]]}]
    assert walked(tuple(batches)) == walked(batches)
    loader = DataLoader(rows, batch_size=2)
    assert walked(loader)[2] == {"x": [[4]], "labels": [0]}
    assert hk.DataSource(loader).size == 3

    class Lazy:
        def __iter__(self):
            return iter(batches)

    assert walked(Lazy()) == walked(batches)
    assert hk.DataSource(Lazy()).size is None
    assert walked([{"x": torch.ones(1), "token_type_ids": None}]) == [{"x": [1.0]}]


def test_data_that_ends_after_one_walk_is_refused():
    batches = [{"x": torch.ones(1)}]
    for once in (iter(batches), (batch for batch in batches), map(dict, batches)):
        with pytest.raises(
            ValueError, match=r"\[data\] expected batches that can be iterated again"
        ):
            hk.DataSource(once)
    model, loss = Scaled(), hk.make_objective("cross_entropy")
    settings = {"granularity": "example", "normalization": "none", "denominator": "examples"}
    with pytest.raises(ValueError, match="found an iterator of type list_iterator: write list"):
        hk._C.score(
            model,
            iter(batches),
            "gate_gradient",
            loss,
            confidence=0.9,
            bootstrap=0,
            seed=0,
            **settings,
        )
    with pytest.raises(ValueError, match="found one batch: write"):
        hk.DataSource(batches[0])
    with pytest.raises(ValueError, match="found int"):
        hk.DataSource(3)


def test_batches_of_something_else_are_refused_by_name():
    bad = {
        "'text' of type list": {"x": torch.ones(1), "text": ["a"]},
        "a batch of type Tensor": torch.ones(2),
        "a key of type int": {3: torch.ones(1)},
        "'y' of shape": {"x": torch.ones(2), "y": torch.ones(3)},
        "an empty batch": {},
    }
    for message, batch in bad.items():
        with pytest.raises(ValueError, match=message):
            hk.DataSource([batch]).for_each(lambda batch: None)


def test_errors_end_a_walk():
    def stop(batch):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        hk.DataSource([{"x": torch.ones(1)}] * 3).for_each(stop)

    class Broken:
        def __iter__(self):
            yield {"x": torch.ones(1)}
            raise OSError("disk")

    seen = []
    with pytest.raises(OSError, match="disk"):
        hk.DataSource(Broken()).for_each(seen.append)
    assert len(seen) == 1


def test_objectives_are_losses_of_examples():
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    batch = {"labels": torch.tensor([0, 2])}
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    torch.testing.assert_close(hk.make_objective("cross_entropy")(logits, batch), expected)
    assert hk.make_objective("margin")(logits, batch).tolist() == [-1.0, 0.0]
    kl = hk.make_objective("kl_to_dense")
    assert kl.needs_dense and kl.stationary_at_dense
    with pytest.raises(ValueError, match="outputs of the dense model"):
        kl(logits, batch)
    with pytest.raises(ValueError, match="kl_to_dense"):
        hk.make_objective("perplexity")


def test_objectives_of_language_models_are_the_losses_of_transformers():
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=2, vocab_size=12, bos_token_id=1, eos_token_id=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.tensor([[3, 4, 5, 6, 7], [7, 3, 9, 4, 5]])
    labels = ids.clone()
    labels[0, :2] = -100
    labels[1, 3] = -100
    rows = range(len(ids))
    with torch.no_grad():
        logits = model(ids).logits
        next_token = [model(ids[i : i + 1], labels=labels[i : i + 1]).loss for i in rows]
    seq2seq = [torch.nn.functional.cross_entropy(logits[i], labels[i]) for i in rows]
    batch = {"labels": labels}
    for name, expected in (
        ("next_token", next_token),
        ("seq2seq", seq2seq),
        ("cross_entropy", seq2seq),
    ):
        found = hk.make_objective(name)(logits, batch)
        torch.testing.assert_close(found, torch.stack(expected))
    labels[1] = -100
    for name in ("next_token", "seq2seq", "cross_entropy", "margin"):
        with pytest.raises(ValueError, match=rf"\[{name}\] .* none in example 1"):
            hk.make_objective(name)(logits, batch)
