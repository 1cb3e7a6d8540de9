"""Attached models equal the originals, and what could go silently wrong does not."""

import copy
import io
import pickle

import pytest
import torch
import transformers
from torch import nn

import headkit as hk
from headkit.huggingface import supported

FAMILIES = ("Bert", "Roberta", "XLMRoberta", "Electra", "DistilBert")
TASK = "SequenceClassification"


def valid(hidden, inputs):
    """Positions that are no padding."""
    mask = inputs.get("attention_mask")
    return hidden if mask is None else hidden[mask.bool()]


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def remove(gated, layer, kept):
    """Cut heads out of a layer, without headkit's own removal."""
    weights = gated.attention(layer)
    head_dim = gated.layout().head_dim
    rows = [row for head in kept for row in range(head * head_dim, (head + 1) * head_dim)]
    cut = hk.AttentionWeights(
        weights.q[rows],
        weights.k[rows],
        weights.v[rows],
        weights.o[:, rows],
        q_bias=weights.q_bias[rows],
        k_bias=weights.k_bias[rows],
        v_bias=weights.v_bias[rows],
        o_bias=weights.o_bias,
    )
    gated.replace_attention(layer, cut, kept)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attached_equals_original(tiny, family, attention):
    model = tiny.make(family, TASK, attention)
    base = getattr(model, model.base_model_prefix)
    for padding in ("none", "right", "left"):
        for batch in (1, 2, 3):
            inputs = tiny.inputs(batch, padding=padding)
            logits = model(**inputs).logits
            hidden = valid(base(**inputs).last_hidden_state, inputs)
            hk.attach(model)
            close(model(**inputs).logits, logits)
            close(valid(base(**inputs).last_hidden_state, inputs), hidden)
            ones = torch.ones(batch, tiny.layers, tiny.heads)
            with hk.gates(model, ones):
                close(model(**inputs).logits, logits)
            hk.detach(model)
            assert torch.equal(model(**inputs).logits, logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gates_equal_the_oracle(tiny, family, attention):
    torch.manual_seed(0)
    plain = tiny.make(family, TASK, attention)
    model = tiny.make(family, TASK, attention)
    hk.attach(model)
    inputs = tiny.inputs(3)
    hard = (torch.rand(3, tiny.layers, tiny.heads) < 0.5).float()
    hard[0, 1] = 0
    soft = torch.rand(3, tiny.layers, tiny.heads) * 2 - 0.5
    soft[hard == 0] = 0
    for gates in (hard, soft, hard[1], soft[2], torch.zeros(tiny.layers, tiny.heads)):
        with tiny.oracle(plain, gates):
            expected = plain(**inputs).logits
        with hk.gates(model, gates):
            close(model(**inputs).logits, expected)
        with hk.gates(model, hk.GateSet(gates, skip=False)):
            close(model(**inputs).logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_heads_are_not_computed(tiny, family):
    model = tiny.make(family)
    gated = hk.attach(model)
    with torch.no_grad():
        for layer in tiny.layer_list(model):
            q, k, v, o = tiny.projections(layer)
            rows = slice(tiny.head_dim, 2 * tiny.head_dim)
            for linear in (q, k, v):
                linear.weight[rows] = torch.nan
                linear.bias[rows] = torch.nan
            o.weight[:, rows] = torch.nan
    keep = torch.ones(tiny.layers, tiny.heads)
    keep[:, 1] = 0
    inputs = tiny.inputs(2)
    with torch.no_grad():
        assert model(**inputs).last_hidden_state.isnan().any()
        with hk.gates(gated, hk.HeadMask(keep)):
            assert model(**inputs).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_removal_equals_masking(tiny, family):
    model = tiny.make(family, TASK)
    gated = hk.attach(model)
    inputs = tiny.inputs(3)
    kept = [[0, 2, 3], [], [1]]
    keep = torch.zeros(tiny.layers, tiny.heads)
    for layer, heads in enumerate(kept):
        keep[layer, heads] = 1
    per_sample = torch.rand(3, tiny.layers, tiny.heads)
    with hk.gates(model, keep):
        masked = model(**inputs).logits
    with hk.gates(model, per_sample * keep):
        masked_soft = model(**inputs).logits
    for layer, heads in enumerate(kept):
        remove(gated, layer, heads)
    assert gated.heads() == hk.HeadMask(keep)
    close(model(**inputs).logits, masked)
    with hk.gates(model, per_sample):
        close(model(**inputs).logits, masked_soft)
    layer = tiny.layer_list(model)[0]
    assert tiny.projections(layer)[0].out_features == 3 * tiny.head_dim
    if family != "DistilBert":
        assert layer.attention.self.num_attention_heads == 3
        assert layer.attention.self.all_head_size == 3 * tiny.head_dim
    else:
        assert layer.attention.n_heads == 3
    model(**inputs).logits.sum().backward()

    hk.detach(model)
    close(model(**inputs).logits, masked)
    again = hk.attach(model)
    assert again.heads() == hk.HeadMask(keep), "original indices survive detach"
    with hk.gates(model, per_sample):
        close(model(**inputs).logits, masked_soft)


def test_dropped_output_replaces_closed_heads(tiny):
    plain, model = tiny.make("Bert"), tiny.make("Bert")
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    gates = torch.ones(tiny.layers, tiny.heads)
    gates[1, 2] = 0
    gates[1, 3] = 0.25
    dropped = torch.randn(tiny.layers, tiny.heads, 24)
    with torch.no_grad():
        bias = plain.encoder.layer[1].attention.output.dense.bias
        bias += dropped[1, 2] + 0.75 * dropped[1, 3]
    with tiny.oracle(plain, gates):
        expected = plain(**inputs).last_hidden_state
    with hk.gates(model, hk.GateSet(gates, dropped_output=dropped)):
        close(valid(model(**inputs).last_hidden_state, inputs), valid(expected, inputs))
    state = gated(inputs, hk.GateSet(gates, dropped_output=dropped))
    close(valid(state, inputs), valid(expected, inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_attentions(tiny, family):
    inputs = tiny.inputs(2)
    for recorded_before in (False, True):
        for attention in ("eager", "sdpa"):
            model = tiny.make(family, TASK, attention)
            asked = {**inputs, "output_hidden_states": True, "output_attentions": True}
            before = tiny.make(family, TASK, attention)(**asked)
            if recorded_before:
                model(**asked)
            gated = hk.attach(model)
            gated(inputs)
            for _ in range(2):
                found = model(**asked)
                assert len(found.hidden_states) == tiny.layers + 1
                assert len(found.attentions) == len(before.attentions)
                for a, b in zip(found.hidden_states, before.hidden_states, strict=True):
                    close(valid(a, inputs), valid(b, inputs))
                for a, b in zip(found.attentions, before.attentions, strict=True):
                    close(a, b)
            assert len(before.attentions) == (tiny.layers if attention == "eager" else 0)
            hk.detach(model)
            after = model(**asked)
            assert len(after.hidden_states) == tiny.layers + 1
            assert len(after.attentions) == len(before.attentions)


def test_attentions_of_a_pruned_layer_are_those_of_its_heads(tiny):
    model = tiny.make("Bert", attention="eager")
    inputs = tiny.inputs(2)
    full = model(**inputs, output_attentions=True).attentions[0]
    gated = hk.attach(model)
    remove(gated, 0, [1, 3])
    close(model(**inputs, output_attentions=True).attentions[0], full[:, [1, 3]])


def test_masks_that_are_no_padding_become_a_bias(tiny):
    inputs = tiny.inputs(3, padding="none")
    window = (torch.arange(7)[:, None] - torch.arange(7)[None]).abs() <= 2
    padding = torch.ones(3, 7, dtype=torch.bool)
    padding[1, 4:] = False
    square = padding[:, None, None].expand(3, 1, 7, 7)
    blind = torch.rand(3, 1, 7, 7) > 0.4
    blind[1, 0, 2] = False
    low = torch.finfo(torch.float32).min
    masks = {
        "sdpa": [window[None, None].expand(3, 1, 7, 7), square, blind, torch.randn(3, 1, 7, 7)],
        "eager": [torch.zeros(3, 1, 7, 7).masked_fill(~square, low), torch.randn(1, 1, 7, 7)],
    }
    for attention, options in masks.items():
        for mask in options:
            model = tiny.make("Bert", attention=attention)
            expected = model(**inputs, attention_mask=mask).last_hidden_state
            hk.attach(model)
            close(model(**inputs, attention_mask=mask).last_hidden_state, expected)


def test_padding_survives_an_attention_without_a_mask_function(tiny):
    model = tiny.make("Bert")
    inputs = tiny.inputs(3)
    expected = model(**inputs).last_hidden_state
    hk.attach(model)
    transformers.AttentionInterface.register(
        "without_mask", transformers.AttentionInterface._global_mapping["sdpa"]
    )
    model.config._attn_implementation = "without_mask"
    close(valid(model(**inputs).last_hidden_state, inputs), valid(expected, inputs))


def test_a_base_model_called_past_its_hooks_still_reads_padding_and_gates(tiny):
    for attention in ("sdpa", "eager"):
        model = tiny.make("Bert", attention=attention)
        inputs = tiny.inputs(3)
        plain = tiny.make("Bert", attention=attention)
        hk.attach(model)
        gates = torch.rand(3, tiny.layers, tiny.heads)
        with tiny.oracle(plain, gates):
            expected = plain(**inputs).last_hidden_state
        with hk.gates(model, gates):
            found = model.forward(**inputs).last_hidden_state
        close(valid(found, inputs), valid(expected, inputs))


def test_head_mask_is_refused_not_ignored(tiny):
    model = tiny.make("Bert", TASK)
    hk.attach(model)
    with pytest.raises(ValueError, match="found head_mask"):
        model(**tiny.inputs(2), head_mask=torch.zeros(tiny.layers, tiny.heads))


def test_state_dict_and_checkpoints_stay_plain(tiny, tmp_path):
    model = tiny.make("Bert", TASK)
    inputs = tiny.inputs(2)
    expected = model(**inputs).logits
    before = copy.deepcopy(model.state_dict())
    fingerprint = hk.attach(model).fingerprint()
    for step in ("attached", "detached"):
        state = model.state_dict()
        assert list(state) == list(before)
        assert all(torch.equal(state[name], before[name]) for name in before)
        model.save_pretrained(tmp_path / step)
        loaded, report = transformers.BertForSequenceClassification.from_pretrained(
            tmp_path / step, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert torch.equal(loaded(**inputs).logits, expected)
        assert hk.attach(loaded).fingerprint() == fingerprint
        if step == "attached":
            hk.detach(model)
    assert not [
        name for name in vars(model.bert.encoder.layer[0].attention.self) if "headkit" in name
    ]
    assert not model.bert._forward_pre_hooks and not model.bert.encoder._forward_pre_hooks
    model.load_state_dict(before)


def test_modes_dtypes_and_parameters_pass_through(tiny):
    plain, model = tiny.make("Bert", TASK), tiny.make("Bert", TASK)
    hk.attach(model)
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    inputs = tiny.inputs(2)
    model.double()
    plain.double()
    gates = torch.rand(2, tiny.layers, tiny.heads)
    with tiny.oracle(plain, gates.double()):
        expected = plain(**inputs).logits
    with hk.gates(model, gates):
        close(model(**inputs).logits, expected, 1e-12)
    model.train()
    hk.detach(model)
    assert all(module.training for module in model.modules())
    hk.attach(model)
    model.eval()
    hk.detach(model)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny, dtype):
    exact, model = tiny.make("Bert"), tiny.make("Bert").to(dtype)
    inputs = tiny.inputs(3)
    exact.to(torch.float64)
    with torch.no_grad():
        truth = valid(exact(**inputs).last_hidden_state, inputs)
        error = (valid(model(**inputs).last_hidden_state, inputs).double() - truth).abs().max()
        hk.attach(model)
        found = model(**inputs).last_hidden_state
    assert found.dtype == dtype
    bound = 2 * error + 2 * torch.finfo(dtype).eps * truth.abs().max()
    assert (valid(found, inputs).double() - truth).abs().max() <= bound


def test_autocast(tiny):
    model = tiny.make("Bert", TASK)
    inputs = tiny.inputs(2)
    exact = model(**inputs).logits
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(**inputs).logits
        hk.attach(model)
        found = model(**inputs).logits
        with hk.gates(model, torch.zeros(tiny.layers, tiny.heads)):
            closed = model(**inputs).logits
    assert found.dtype == plain.dtype
    error = (plain.float() - exact).abs().max()
    bound = 2 * error + 2 * torch.finfo(torch.bfloat16).eps * exact.abs().max()
    assert (found.float() - exact).abs().max() <= bound
    with tiny.oracle(hk.detach(model), torch.zeros(tiny.layers, tiny.heads)):
        close(closed.float(), model(**inputs).logits, 4 * bound.item())


def test_attention_dropout(tiny):
    model = tiny.make("Bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.4).train()
    inputs = tiny.inputs(2)
    hk.attach(model)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(**inputs).last_hidden_state)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    model.eval()
    dropped = model(**inputs).last_hidden_state
    assert torch.equal(dropped, model(**inputs).last_hidden_state)
    model.config.attention_probs_dropout_prob = 0.0
    for layer in tiny.layer_list(model):
        layer.attention.self.dropout.p = 0.0
    assert torch.equal(model.train()(**inputs).last_hidden_state, dropped)


def test_training_gradients_equal_the_original(tiny):
    inputs = {**tiny.inputs(3), "labels": torch.tensor([0, 3, 1])}
    gates = torch.rand(3, tiny.layers, tiny.heads)
    gates[gates < 0.3] = 0
    gradients = []
    for attach in (False, True):
        model = tiny.make("Roberta", TASK).double()
        if attach:
            hk.attach(model)
            with hk.gates(model, gates):
                model(**inputs).loss.backward()
        else:
            with tiny.oracle(model, gates.double()):
                model(**inputs).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        if expected is None:
            assert gradients[1][name] is None
        else:
            close(gradients[1][name], expected, 1e-10)


def test_a_deep_copy_is_attached_and_independent(tiny):
    model = tiny.make("Electra", TASK)
    inputs = tiny.inputs(2)
    gated = hk.attach(model)
    expected = model(**inputs).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**inputs).logits, expected)
    with hk.gates(model, torch.zeros(tiny.layers, tiny.heads)):
        assert torch.equal(twin(**inputs).logits, expected)
        assert not torch.allclose(model(**inputs).logits, expected)
    twin_gated = hk.attach(twin)
    assert twin_gated is not gated and twin_gated is hk.attach(twin)
    remove(twin_gated, 0, [2])
    assert gated.heads().count == tiny.layers * tiny.heads
    assert torch.equal(model(**inputs).logits, expected)
    hk.detach(twin)
    assert torch.equal(model(**inputs).logits, expected)
    with hk.gates(model, torch.zeros(tiny.layers, tiny.heads)):
        assert not torch.allclose(model(**inputs).logits, expected)


def test_an_attached_model_pickles(tiny):
    model = tiny.make("Bert", TASK)
    inputs = tiny.inputs(2)
    hk.attach(model)
    expected = model(**inputs).logits
    loaded = pickle.load(io.BytesIO(pickle.dumps(model)))
    assert torch.equal(loaded(**inputs).logits, expected)
    with hk.gates(loaded, torch.zeros(tiny.layers, tiny.heads)):
        assert not torch.allclose(loaded(**inputs).logits, expected)


def test_attaching_twice_gives_the_same_object(tiny):
    model = tiny.make("Bert")
    gated = hk.attach(model)
    assert hk.attach(model) is gated
    assert gated.layout() == hk.HeadLayout(3, 4, 6, 24, 28)
    hooks = len(model.encoder._forward_pre_hooks)
    del gated
    hk.attach(model)
    assert len(model.encoder._forward_pre_hooks) == hooks == 1
    hk.detach(model)
    with pytest.raises(ValueError, match="expected an attached model"):
        hk.detach(model)
    with pytest.raises(ValueError, match="expected an attached model"):
        hk.gates(model, torch.ones(3, 4))
    with pytest.raises(ValueError, match="expected an attached model"):
        hk.refresh(model)


def small(config, **extra):
    return config(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        **extra,
    )


def test_other_architectures_are_refused_with_the_list():
    swin = transformers.SwinConfig(
        image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2]
    )
    models = [
        transformers.SwinModel(swin),
        transformers.EsmModel(small(transformers.EsmConfig, pad_token_id=0, mask_token_id=1)),
        nn.Linear(2, 2),
    ]
    for model in models:
        before = [type(module) for module in model.modules()]
        with pytest.raises(ValueError, match=r"\[attach\] expected .*BERT, .*DistilBERT.*; found"):
            hk.attach(model)
        assert [type(module) for module in model.modules()] == before
    assert {"BERT", "RoBERTa", "XLM-RoBERTa", "ELECTRA", "DistilBERT"} <= set(supported())
    with pytest.raises(ValueError, match="found str"):
        hk.attach("bert-base-uncased")


def test_attention_that_computes_more_is_refused(tiny):
    model = tiny.make("Bert")
    block = model.encoder.layer[1].attention

    block.self.sinks = nn.Parameter(torch.zeros(4))
    with pytest.raises(ValueError, match="found BertSelfAttention with parameters sinks at enc"):
        hk.attach(model)
    del block.self.sinks
    block.self.softcap = 50.0
    with pytest.raises(ValueError, match="found BertSelfAttention with attributes softcap"):
        hk.attach(model)
    del block.self.softcap

    class Capped(type(block.self)):
        def forward(self, hidden_states, *args, **kwargs):
            context, weights = super().forward(hidden_states, *args, **kwargs)
            return context.tanh(), weights

    for layer in model.encoder.layer:
        layer.attention.self.__class__ = Capped
    with pytest.raises(ValueError, match="relative difference"):
        hk.attach(model)
    assert type(block.self) is Capped and not hasattr(block, "headkit_block")


class Lora(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return self.inner(x) + 1


def test_altered_projections_are_refused_and_nothing_changes(tiny):
    inputs = tiny.inputs(2)
    model = tiny.make("Bert")
    model.encoder.layer[2].attention.self.value = Lora(model.encoder.layer[2].attention.self.value)
    expected = model(**inputs).last_hidden_state
    with pytest.raises(ValueError, match=r"projections of type torch.nn.Linear; found \S*\.Lora"):
        hk.attach(model)
    assert type(model.encoder.layer[0].attention).__name__ == "BertAttention"
    assert torch.equal(model(**inputs).last_hidden_state, expected)

    hooked = tiny.make("Bert")
    query = hooked.encoder.layer[1].attention.self.query
    handle = query.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ValueError, match="without hooks"):
        hk.attach(hooked)
    handle.remove()
    hk.attach(hooked)
    query.register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ValueError, match="without hooks"):
        hooked(**inputs)


def test_quantised_projections_are_refused(tiny):
    class Quantised(nn.Linear):
        def weight(self):
            return self._weight

    model = tiny.make("Bert")
    query = model.encoder.layer[0].attention.self.query
    weights = query._parameters.pop("weight")
    query.__class__, query._weight = Quantised, weights
    with pytest.raises(ValueError, match="quantised weights are not supported"):
        hk.attach(model)


def test_hooks_on_the_block_still_fire(tiny):
    model = tiny.make("Bert")
    seen = []
    attention = model.encoder.layer[1].attention
    attention.register_forward_hook(lambda module, args, output: seen.append("block"))
    attention.output.register_forward_hook(lambda module, args, output: seen.append("output"))
    hk.attach(model)
    model(**tiny.inputs(2))
    assert seen == ["output", "block"]


def test_replacing_refuses_what_does_not_fit_and_changes_nothing(tiny):
    model = tiny.make("Bert")
    gated = hk.attach(model)
    inputs = tiny.inputs(2)
    expected = model(**inputs).last_hidden_state
    good = gated.attention(1)
    for kept in ([0, 1, 2], [3, 2, 1, 0], [0, 1, 2, 4], [0, 0, 1, 2]):
        with pytest.raises(ValueError, match="replace_attention"):
            gated.replace_attention(1, good, kept)
    bad = [
        hk.AttentionWeights(good.q, good.k, good.v, good.o, q_bias=good.q_bias),
        hk.AttentionWeights(
            good.q.double(),
            good.k,
            good.v,
            good.o,
            q_bias=good.q_bias,
            k_bias=good.k_bias,
            v_bias=good.v_bias,
            o_bias=good.o_bias,
        ),
    ]
    for weights in bad:
        with pytest.raises(ValueError, match="replace_attention"):
            gated.replace_attention(1, weights, [0, 1, 2, 3])
    with pytest.raises(IndexError, match="layer below 3; found 3"):
        gated.attention(3)
    assert torch.equal(model(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_compiled_models_follow_the_gates(tiny, family):
    model = tiny.make(family, TASK)
    hk.attach(model)
    inputs = tiny.inputs(2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        close(compiled(**inputs).logits, model(**inputs).logits)
        for seed in (0, 1):
            gates = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(seed))
            with hk.gates(compiled, gates):
                close(compiled(**inputs).logits, model(**inputs).logits)
        close(compiled(**inputs).logits, model(**inputs).logits)


def test_refresh_after_an_edit_that_torch_does_not_count(tiny):
    model = tiny.make("Bert")
    hk.attach(model)
    inputs = tiny.inputs(2)
    with torch.no_grad():
        model(**inputs)
        model.encoder.layer[0].attention.self.query.weight.data.mul_(3)
        hk.refresh(model)
        found = model(**inputs).last_hidden_state
        close(found, hk.detach(model)(**inputs).last_hidden_state)
