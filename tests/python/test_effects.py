"""What heads contribute, against plain transformers and formulas written out."""

import copy
import json
import pathlib
import runpy

import jsonschema
import pytest
import torch
import transformers

import headkit as hk

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
LENGTH = 5


def bert(kind=transformers.BertForSequenceClassification, **settings):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **SIZES, intermediate_size=32, initializer_range=0.4, **settings
    )
    return kind(config).eval().double()


def decoder(name):
    torch.manual_seed(1)
    if name == "gpt2":
        sizes = {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 50}
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**sizes, initializer_range=0.4)
        )
    else:
        config = transformers.LlamaConfig(**SIZES, intermediate_size=32, initializer_range=0.4)
        model = transformers.LlamaForCausalLM(config)
    return model.eval().double()


def tokens(examples=2):
    torch.manual_seed(2)
    return {"input_ids": torch.randint(0, 50, (examples, LENGTH))}


def output_map(model, layer):
    """W_O of a layer as a function weight -> its slice of a head, [D, dh]."""
    if isinstance(model, transformers.GPT2LMHeadModel):
        weight = model.transformer.h[layer].attn.c_proj.weight.t()
    elif isinstance(model, transformers.LlamaForCausalLM):
        weight = model.model.layers[layer].self_attn.o_proj.weight
    else:
        weight = model.bert.encoder.layer[layer].attention.output.dense.weight
    return weight


def head_slice(model, layer, head):
    return output_map(model, layer)[:, 6 * head : 6 * head + 6]


def written(model, gated, batch):
    """What every head writes, [layer][head] -> [B, T, D]."""
    taps = hk.Taps(head_contexts=True)
    gated(batch, taps=taps)
    return [
        [context[:, :, head] @ head_slice(model, layer, head).t() for head in range(4)]
        for layer, context in enumerate(taps.head_context)
    ]


@torch.no_grad()
def test_a_toggle_is_the_model_with_a_zeroed_slice():
    plain, model = bert(), bert()
    hk.attach(model)
    batch = tokens()
    logits = plain(**batch).logits
    target = logits.argmax(1)
    found = hk.effects(model, batch, ablation="zero")
    for effects in found[0].heads:
        changed = copy.deepcopy(plain)
        head_slice(changed, effects.layer, effects.head).zero_()
        without = changed(**batch).logits
        for example, each in enumerate(found):
            right, wrong = target[example], 1 - target[example]
            margin = logits[example, right] - logits[example, wrong]
            less = without[example, right] - without[example, wrong]
            own = each.heads[4 * effects.layer + effects.head]
            assert own.toggle.frozen == pytest.approx(float(margin - less), abs=1e-10)
            assert each.value == pytest.approx(float(margin), abs=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_direct_effects_of_models_with_norms_in_front_are_exact(name):
    model = decoder(name)
    gated = hk.attach(model)
    batch = tokens()
    found = hk.effects(model, batch, ablation="zero", toggles=False)
    norm = model.transformer.ln_f if name == "gpt2" else model.model.norm
    seen = []
    hook = norm.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        logits = model(**batch).logits[:, -1]
    hook.remove()
    stream = seen[0][:, -1].detach()
    centred = stream - stream.mean(-1, keepdim=True) if name == "gpt2" else stream
    epsilon = norm.eps if name == "gpt2" else norm.variance_epsilon
    scale = (centred.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    right, wrong = logits.topk(2).indices.t()
    readout = model.lm_head.weight[right] - model.lm_head.weight[wrong]
    for layer, heads in enumerate(written(model, gated, batch)):
        for head, values in enumerate(heads):
            last = values[:, -1]
            last = last - last.mean(-1, keepdim=True) if name == "gpt2" else last
            expected = (last * scale * norm.weight * readout).sum(-1)
            for example, each in enumerate(found):
                own = each.heads[4 * layer + head]
                assert own.direct == pytest.approx(float(expected[example].detach()), abs=1e-6)
                assert not own.direct_linearised
    assert found[0].metric == "token_log_odds"
    assert found[0].target == right[0] and found[0].distractor == wrong[0]
    assert abs(found[0].direct_residual) < 1e-6  # Llama's norms compute in float32
    assert not norm._forward_hooks


def test_direct_effects_behind_norms_freeze_every_scale():
    model = bert(transformers.BertForTokenClassification, num_labels=3)
    gated = hk.attach(model)
    batch = tokens(1)
    norms = []
    for layer in model.bert.encoder.layer:
        norms += [layer.attention.output.LayerNorm, layer.output.LayerNorm]
    scales = {}

    def note(module, args, output):
        scales[module] = (args[0].var(-1, unbiased=False, keepdim=True) + module.eps).rsqrt()

    hooks = [norm.register_forward_hook(note) for norm in norms]
    with torch.no_grad():
        logits = model(**batch).logits[0, 2]
    for hook in hooks:
        hook.remove()
    right, wrong = logits.topk(2).indices
    readout = (model.classifier.weight[right] - model.classifier.weight[wrong]).detach()
    found = hk.effects(model, batch, ablation="zero", toggles=False, position=torch.tensor([2]))[0]
    with torch.no_grad():
        for layer, heads in enumerate(written(model, gated, batch)):
            for head, values in enumerate(heads):
                for norm in norms[2 * layer :]:
                    values = values - values.mean(-1, keepdim=True)
                    values = values * scales[norm] * norm.weight
                own = found.heads[4 * layer + head]
                assert own.direct == pytest.approx(float(values[0, 2] @ readout), abs=1e-9)
                assert own.direct_linearised
    assert abs(found.direct_residual) < 1e-9


def test_direct_effects_where_headkit_runs_the_feed_forward_blocks():
    model = bert()
    batch = tokens(1)
    hk.attach(model)
    expected = hk.effects(model, batch, ablation="zero", toggles=False)[0]
    hk.attach(model, feed_forward=True)
    found = hk.effects(model, batch, ablation="zero", toggles=False)[0]
    for one, other in zip(found.heads, expected.heads, strict=True):
        assert one.direct == pytest.approx(other.direct, abs=1e-9)


def test_a_pooler_that_bends_is_a_linearisation():
    model = bert()
    hk.attach(model)
    found = hk.effects(model, tokens(1), ablation="zero", toggles=False)[0]
    assert found.heads[0].direct is not None
    assert all(head.direct_linearised for head in found.heads)


def test_encoder_decoders_say_why_there_is_no_direct_effect():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50, d_model=24, d_kv=6, d_ff=32, num_layers=1, num_heads=4
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    hk.attach(model)
    batch = {**tokens(1), "decoder_input_ids": torch.tensor([[0, 3]])}
    found = hk.effects(model, batch, ablation="zero")[0]
    assert found.heads[0].direct is None
    assert "residual stream" in found.not_computed["direct"]
    assert len(found.heads) == 12
    assert found.heads[8].toggle.frozen != 0


def test_padding_does_not_show():
    model = bert()
    hk.attach(model)
    ids = tokens()["input_ids"]
    short = hk.effects(model, {"input_ids": ids[1:, :3]}, ablation="zero")[0]
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    padded = hk.effects(model, {"input_ids": ids, "attention_mask": mask}, ablation="zero")[1]
    for one, other in zip(short.heads, padded.heads, strict=True):
        for name in ("write_norm", "relative_write_norm", "gate_gradient", "direct"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9), name
        assert one.toggle.frozen == pytest.approx(other.toggle.frozen, abs=1e-9)


def test_heads_that_are_off_say_what_they_would_do():
    model = bert()
    gated = hk.attach(model)
    batch = tokens(1)
    gates = torch.ones(2, 4, dtype=torch.float64)
    gates[0, 1] = gates[1, 2] = 0
    found = hk.effects(model, batch, ablation="zero", gates=gates)[0]
    off = found.heads[1]
    assert not off.on
    with torch.no_grad():
        with_head = gates.clone()
        with_head[0, 1] = 1
        margins = [
            (out := gated(batch, one)[0])[found.target] - out[found.distractor]
            for one in (gates, with_head)
        ]
    assert off.toggle.frozen == pytest.approx(float(margins[1] - margins[0]), abs=1e-10)
    assert off.gate_gradient != 0
    mask = hk.HeadMask(gates.bool())
    assert hk.effects(model, batch, ablation="zero", gates=mask)[0] == found


def test_policies_decide_again():
    model = bert()
    hk.attach(model)
    torch.manual_seed(3)
    gate = hk.LayerGate(
        weight=torch.randn(2, 4, 24, dtype=torch.float64) * 3,
        reference=torch.zeros(2, 24, dtype=torch.float64),
        static_logits=torch.randn(2, 4, dtype=torch.float64),
        threshold=0.0,
    )
    found = hk.effects(model, tokens(3), ablation="zero", gates=gate)
    assert all(each.routing == "measured" for each in found)
    run = hk.run(model, tokens(3), gate)
    assert [[h.gate for h in each.heads] for each in found] == run.gates.heads.flatten(1).tolist()
    for each in found:
        for head in each.heads:
            if head.layer == 1:
                assert head.toggle.routing_mediated == 0
            elif not head.flipped_gates:
                assert head.toggle.routing_mediated == pytest.approx(0, abs=1e-10)
            else:
                assert all(where.layer == 1 for where, _ in head.flipped_gates)
    assert any(head.flipped_gates for each in found for head in each.heads)


def test_decision_records_take_effects():
    model = bert()
    hk.attach(model)
    mask = hk.HeadMask(torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1]]))
    policy = hk.MaskPolicy(mask)
    batch = tokens()
    records = hk.explain_decisions(model, batch, policy)
    found = hk.effects(model, batch, ablation="zero", gates=policy, pair_heads=2, path_nodes=4)
    root = pathlib.Path(__file__).resolve().parents[2]
    schema = json.loads((root / "docs/reference/decision_record.schema.json").read_text())
    for record, each in zip(records, found, strict=True):
        whole = record.updated(each.record_patch())
        written = json.loads(whole.to_json())
        jsonschema.validate(written, schema)
        assert written["output"]["metric"] == "class_margin"
        assert written["output"]["value_selected"] == each.value
        assert len(written["heads"]) == 8 and len(written["pairs"]) == 1
        for head, effects in zip(written["heads"], each.heads, strict=True):
            assert head["effects"]["toggle"]["frozen"] == effects.toggle.frozen
            assert (head["state"] in ("on", "always_on")) == effects.on


def test_means_pairs_games_and_json():
    model = bert()
    hk.attach(model)
    batch = tokens(4)
    settings = {"path_nodes": 16, "pair_heads": 3, "game_heads": 3}
    found = hk.effects(model, batch, ablation="mean", reference=[batch], **settings)
    for each in found:
        assert hk.InputEffects.from_json(each.to_json()) == each
        assert abs(each.path_gap) < 1e-3
        assert [pair.index for pair in each.pairs] == ["synergy"] * 3 + ["fsii"] * 3
        played = [head for head in each.heads if head.shapley is not None]
        assert len(played) == 3
    written = json.loads(found[0].to_json())
    assert written["heads"][0]["toggle"]["ablation"] == written["ablation"] == "mean"
    assert written["metric"] == "class_margin"
    mean = hk.mean_effects(found)
    toggles = torch.tensor([each.heads[5].toggle.frozen for each in found])
    assert mean.heads[5].toggle.frozen == pytest.approx(float(toggles.mean()), rel=1e-5)
    low, high = mean.heads[5].toggle.interval
    assert toggles.min() <= low <= mean.heads[5].toggle.frozen <= high <= toggles.max()


def test_the_model_stays_as_it_was():
    model = bert().train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    hk.attach(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = tokens()
    ids = batch["input_ids"].clone()
    hk.effects(model, batch, ablation="zero", path_nodes=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all((parameter.grad == 1).all() for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert torch.equal(batch["input_ids"], ids)
    norm = model.bert.encoder.layer[0].output.LayerNorm
    assert not norm._forward_hooks


def test_what_does_not_fit_is_refused():
    model = bert()
    with pytest.raises(ValueError, match="attached"):
        hk.effects(model, tokens(), ablation="zero")
    hk.attach(model)
    with pytest.raises(TypeError):
        hk.effects(model, tokens())
    with pytest.raises(ValueError, match="zero, mean or resample"):
        hk.effects(model, tokens(), ablation="median")
    with pytest.raises(ValueError, match="reference"):
        hk.effects(model, tokens(), ablation="mean")
    with pytest.raises(ValueError, match="one of class_margin"):
        hk.effects(model, tokens(), ablation="zero", metric="nonsense")
    with pytest.raises(ValueError, match="token_log_odds"):
        hk.effects(model, tokens(), ablation="zero", metric="token_log_odds")
    with pytest.raises(ValueError, match="targets"):
        hk.effects(model, tokens(), ablation="zero", target=torch.tensor([0]))


def test_a_function_may_stop_it():
    model = bert()
    hk.attach(model)

    def stop(done, total):
        raise RuntimeError(f"{done} of {total}")

    with pytest.raises(RuntimeError, match="1 of 2"):
        hk.effects(model, tokens(), ablation="zero", progress=stop)


def test_causal_gating_labels_heads_of_a_data_set():
    model = bert()
    hk.attach(model)
    data = [{**tokens(4), "labels": torch.tensor([0, 1, 0, 1])}]
    found = hk.causal_head_gating(model, data, start_steps=2, pressed_steps=4, seed=3)
    assert found.pressed_up.shape == found.pressed_down.shape == (5, 2, 4)
    assert (found.pressed_up.mean() > found.pressed_down.mean()).item()
    known = {"facilitating", "interfering", "irrelevant", "inconsistent"}
    assert {label for layer in found.labels for label in layer} <= known
    assert json.loads(found.to_json())["fits"] == 5
    again = hk.causal_head_gating(model, data, start_steps=2, pressed_steps=4, seed=3)
    assert torch.equal(found.pressed_up, again.pressed_up)
    with pytest.raises(ValueError, match="5 fits"):
        hk.causal_head_gating(model, data, fits=2)


def test_the_example_tells_what_effects_cost(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(**SIZES, intermediate_size=32)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    example = pathlib.Path(__file__).resolve().parents[2] / "examples" / "python"
    main = runpy.run_path(str(example / "cost_of_effects.py"))["main"]
    found = main(str(tmp_path), tokens=4, repeats=1, threads=1)
    assert found.keys() == {"forward", "estimates", "toggles"} and min(found.values()) > 0
