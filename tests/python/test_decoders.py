"""What only decoders and encoder-decoders have."""

import itertools

import pytest
import torch
import transformers

import headkit as hk

from .families import BART, FAMILIES, HEAD_DIM, HEADS, T5, WORDS, result, without_padding

SHIFTING = ("BART", "mBART", "Marian", "Whisper", "T5", "mT5", "UMT5", "BERT to BERT")
PREDICTING = ("GPT-2", "BERT decoder", "GPT-2 with cross-attention")


def close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def uneven(family):
    """Two heads of every block, others in each."""
    keep = torch.ones(family.blocks, HEADS)
    for block in range(family.blocks):
        keep[block, [block % HEADS, (block + 1) % HEADS]] = 0
    return keep


def with_labels(family, batch):
    """Inputs without those of the decoder, which follow from the labels."""
    inputs = family.inputs(batch, "right")
    labels = inputs.pop("decoder_input_ids").clone()
    mask = inputs.pop("decoder_attention_mask").bool()
    labels[~mask] = -100
    return {**inputs, "labels": labels}


@pytest.mark.parametrize("name", SHIFTING)
def test_labels_become_the_inputs_of_the_decoder(name):
    family = FAMILIES[name]
    model = family.make()
    batch = with_labels(family, 3)
    with torch.no_grad():
        expected = model(**batch).logits
        gated = hk.attach(model)
        gates = family.gates(3, soft=True)
        close(gated(batch), expected)
        with hk.gates(model, gates):
            expected = model(**batch).logits
        close(gated(batch, hk.GateSet(gates)), expected)


@pytest.mark.parametrize("name", ["BART", "T5", "Whisper", "BERT to BERT"])
def test_a_state_knows_the_padding_of_the_stack_that_runs(name):
    family = FAMILIES[name]
    gated = hk.attach(family.make())
    inputs = family.inputs(3, "right")
    with torch.no_grad():
        state = gated.embed(inputs)
        mask = inputs.get("attention_mask")
        if mask is None:
            assert state.attention_mask is None
        else:
            assert torch.equal(state.attention_mask, mask.bool())
        for last in (3, 4, 6):
            later = gated.run(state, 0, last)
            if last > 3:
                assert torch.equal(later.attention_mask, inputs["decoder_attention_mask"].bool())
                assert later.hidden.shape[1] == inputs["decoder_input_ids"].shape[1]


@pytest.mark.parametrize("name", ["BART", "T5", "GPT-2 with cross-attention"])
def test_stages_with_gates_of_every_kind_join_inside_a_layer(name):
    family = FAMILIES[name]
    model = family.make()
    gated = hk.attach(model)
    inputs = family.inputs(2, family.paddings[-1])
    blocks, width = family.blocks, gated.layout().model_dim
    generator = torch.Generator().manual_seed(4)
    dropped = torch.randn(blocks, HEADS, width, generator=generator) * 0.1
    sets = [
        hk.GateSet(),
        hk.GateSet(family.gates()),
        hk.GateSet(family.gates(2, soft=True)),
        hk.GateSet(family.gates(2, seed=1), dropped_output=dropped),
        hk.GateSet(family.gates(seed=2), skip=False),
    ]
    cut = blocks - 1
    with torch.no_grad():
        start = gated.embed(inputs)
        for first, second in itertools.product(sets, sets):
            joined = torch.ones(2, blocks, HEADS)
            compensation = torch.zeros(blocks, HEADS, width)
            for part, own in ((slice(0, cut), first), (slice(cut, None), second)):
                if own.heads is None:
                    continue
                joined[:, part] = own.heads[part] if own.heads.dim() == 2 else own.heads[:, part]
                if own.dropped_output is not None:
                    compensation[part] = own.dropped_output[part]
            whole = gated.run(start, 0, blocks, hk.GateSet(joined, dropped_output=compensation))
            state = gated.run(gated.run(start, 0, cut, first), cut, blocks, second)
            close(
                without_padding(gated.head(state), inputs),
                without_padding(gated.head(whole), inputs),
            )


@pytest.mark.parametrize("name", [*SHIFTING, *PREDICTING])
def test_scores_equal_closing_every_head_by_hand(name):
    family = FAMILIES[name]
    model = family.make()
    gated = hk.attach(model)
    if name in SHIFTING:
        batch, objective = with_labels(family, 2), "seq2seq"
    else:
        batch, objective = family.inputs(2, "right"), "next_token"
    loss = hk.make_objective(objective)
    found = hk.score(gated, [batch], "ablation", objective, bootstrap=0).values
    with torch.no_grad():
        dense = loss(gated(batch), batch)
        for block in range(family.blocks):
            gates = torch.ones(family.blocks, HEADS)
            gates[block, block % HEADS] = 0
            change = (loss(gated(batch, hk.GateSet(gates)), batch) - dense).mean()
            close(found[block, block % HEADS].float(), change)

    slopes = hk.score(
        gated, [batch], "gate_gradient", objective, granularity="signed", bootstrap=0
    ).values
    gates = torch.ones(family.blocks, HEADS, requires_grad=True)
    loss(gated(batch, hk.GateSet(gates, skip=False)), batch).mean().backward()
    close(slopes.float(), gates.grad)


@pytest.mark.parametrize("name", [*SHIFTING, *PREDICTING, "BERT decoder with cross-attention"])
def test_mean_outputs_are_those_at_the_output_projection(name):
    family = FAMILIES[name]
    model = family.make()
    inputs = family.inputs(3, family.paddings[-1])
    seen = []
    handles = [
        model.get_submodule(path).register_forward_pre_hook(lambda module, args: seen.append(args))
        for path in family.outputs
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    gated = hk.attach(model)
    found = hk.mean_head_outputs(gated, [inputs])
    for block, (context,) in enumerate(seen):
        tokens = inputs.get("attention_mask")
        decoder = inputs.get("decoder_attention_mask")
        if decoder is not None and (tokens is None or context.shape[1] != tokens.shape[1]):
            tokens = decoder if context.shape[1] == decoder.shape[1] else None
        if tokens is not None:
            context = context[tokens.bool()]
        mean = context.reshape(-1, HEADS, HEAD_DIM).mean(0)
        weight = gated.attention(block).o.unflatten(1, (HEADS, HEAD_DIM))
        close(found[block], torch.einsum("hi,dhi->hd", mean, weight))


@pytest.mark.parametrize("name", ["GPT-2", "BART", "Whisper", "Marian", "BERT to BERT"])
def test_a_pruned_model_runs_by_its_own_code(name):
    family = FAMILIES[name]
    model, twin = family.make(), family.make()
    inputs = family.inputs(2, family.paddings[-1])
    hk.attach(model)
    hk.attach(twin)
    with torch.no_grad(), hk.gates(twin, uneven(family)):
        expected = result(twin, inputs)
        hk.apply(model, uneven(family))
        close(result(hk.detach(model), inputs), expected)


@pytest.mark.parametrize("name", ["T5", "BART", "GPT-2", "Whisper"])
def test_compensation_for_removed_heads_comes_back(name, tmp_path):
    family = FAMILIES[name]
    model = family.make()
    gated = hk.attach(model)
    inputs = family.inputs(2, family.paddings[-1])
    keep = uneven(family)
    keep[1] = 1
    generator = torch.Generator().manual_seed(4)
    dropped = torch.randn(family.blocks, HEADS, gated.layout().model_dim, generator=generator)
    with torch.no_grad():
        with hk.gates(model, hk.GateSet(keep, dropped_output=dropped)):
            expected = result(model, inputs)
        hk.apply(model, keep, dropped)
        found = result(model, inputs)
        close(found, expected)
        hk.save(model, tmp_path)
        for again in (hk.load(tmp_path), hk.load(tmp_path, family.make())):
            assert torch.equal(result(again, inputs), found)
            assert list(again.state_dict()) == list(model.state_dict())


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
}
GENERATING = [(name, "greedy") for name in (*SHIFTING, "GPT-2", "BERT decoder")]
GENERATING += itertools.product(("GPT-2", "Whisper", "T5"), ("beams", "static cache"))


def generate(model, inputs, way):
    """Token by token with a cache, which the models of the table do not use by themselves."""
    for module in (model, *model.modules()):
        config = getattr(module, "config", None)
        if config is not None and (module is model or getattr(config, "is_decoder", False)):
            config.use_cache = True
    prompt = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
    if "input_features" in prompt:
        prompt["decoder_input_ids"] = torch.tensor([[2, 5]] * len(prompt["input_features"]))
    settings = {"max_new_tokens": 6, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    model.generation_config.eos_token_id = None
    run = transformers.GenerationMixin.generate
    return run(model, **prompt, **settings, **WAYS[way])


@pytest.mark.parametrize(("name", "way"), GENERATING)
def test_generation_equals_the_original(name, way):
    family = FAMILIES[name]
    plain, model = family.make(), family.make()
    inputs = family.inputs(3, family.paddings[-1])
    gates = family.gates()
    expected = generate(plain, inputs, way)
    with family.oracle(plain, gates):
        expected_gated = generate(plain, inputs, way)
    hk.attach(model)
    assert torch.equal(generate(model, inputs, way), expected)
    with hk.gates(model, gates):
        assert torch.equal(generate(model, inputs, way), expected_gated)
    hk.apply(model, hk.HeadMask(gates))
    assert torch.equal(generate(model, inputs, way), expected_gated)


@pytest.mark.parametrize("name", ["T5", "BART"])
def test_a_policy_decides_on_what_the_encoder_is_given(name):
    family = FAMILIES[name]
    model = family.make()
    gated = hk.attach(model)
    generator = torch.Generator().manual_seed(5)
    shape = (family.blocks, HEADS)
    policy = hk.LinearGate(
        weight=torch.randn(*shape, 24, dtype=torch.float64, generator=generator),
        reference=torch.zeros(24, dtype=torch.float64),
        static_logits=torch.full(shape, 0.3, dtype=torch.float64),
        threshold=0.0,
    )
    inputs = family.inputs(3, "right")
    with torch.no_grad():
        state = gated.embed(inputs)
        gates = policy.decide(state.hidden, state.attention_mask).heads
        assert len(gates.unique(dim=0)) == 3
        with hk.gates(model, gates):
            expected, generated = result(model, inputs), generate(model, inputs, "greedy")
        with hk.gates(model, policy):
            close(result(model, inputs), expected)
            assert torch.equal(generate(model, inputs, "greedy"), generated)


def test_gpt2_says_its_sizes_after_removal():
    family = FAMILIES["GPT-2"]
    model = family.make()
    hk.attach(model)
    hk.apply(model, uneven(family))
    block = model.transformer.h[0].attn
    kept = 2 * HEAD_DIM
    assert (block.c_attn.nf, block.c_proj.nx, block.split_size, block.num_heads) == (
        3 * kept,
        kept,
        kept,
        2,
    )


def test_gpt2_scales_scores_by_layer():
    family = FAMILIES["GPT-2"]
    model = family.make()
    for number, layer in enumerate(model.transformer.h):
        layer.attn.scaling /= number + 1
    inputs = family.inputs(2, "right")
    with torch.no_grad():
        expected = result(model, inputs)
        hk.attach(model)
        close(result(model, inputs), expected)


def test_gpt2_with_scores_in_float32_is_refused():
    model = FAMILIES["GPT-2"].make()
    model.transformer.h[1].attn.reorder_and_upcast_attn = True
    with pytest.raises(ValueError, match="found GPT2Attention with reorder_and_upcast_attn at"):
        hk.attach(model)


def test_an_encoder_of_t5_alone():
    model = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    inputs = FAMILIES["BERT"].inputs(3, "left")
    with torch.no_grad():
        expected = without_padding(model(**inputs).last_hidden_state, inputs)
        gated = hk.attach(model)
        close(without_padding(model(**inputs).last_hidden_state, inputs), expected)
        close(without_padding(gated(inputs), inputs), expected)
        assert gated.layout().layers == 2


@pytest.mark.parametrize("kind", ["local", "transient-global"])
def test_t5_with_local_attention_is_refused(kind):
    sizes = {name: value for name, value in T5.items() if "relative" not in name}
    config = transformers.LongT5Config(encoder_attention_type=kind, **sizes)
    model = transformers.LongT5ForConditionalGeneration(config)
    with pytest.raises(ValueError, match=r"found LongT5.*Attention with attributes block_len"):
        hk.attach(model)


def test_encoders_and_decoders_of_other_heads_are_refused():
    config = transformers.BartConfig(**{**BART, "decoder_attention_heads": 2}, **WORDS)
    model = transformers.BartForConditionalGeneration(config)
    with pytest.raises(ValueError, match="equal heads in all blocks; found 2 of 12 in 24, 4 of 6"):
        hk.attach(model)


def test_gates_by_token_are_refused_where_stacks_have_tokens_of_their_own():
    family = FAMILIES["T5"]
    gated = hk.attach(family.make())
    gates = torch.ones(2, family.blocks, 7, HEADS)
    with pytest.raises(ValueError, match=r"\[L, H\] or \[B, L, H\] for an encoder-decoder"):
        hk.gates(gated, gates)
    with pytest.raises(ValueError, match=r"\[L, H\] or \[B, L, H\] for an encoder-decoder"):
        gated(family.inputs(2, "none"), hk.GateSet(gates))
