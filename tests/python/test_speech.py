"""Speech encoders: masks of samples and of frames, layer dropout, relatives that compute more."""

import pytest
import torch
import transformers

import headkit as hk

from .families import CONVOLUTIONS, FAMILIES, HEADS, LAYERS, SIZES, WIDTH, result


@pytest.fixture
def gate():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return hk.LinearGate(
        weight=normal(LAYERS, HEADS, WIDTH),
        reference=normal(WIDTH),
        static_logits=normal(LAYERS, HEADS),
        threshold=0.0,
    )


@pytest.mark.parametrize("name", ["Wav2Vec2", "HuBERT"])
def test_a_policy_is_shown_frames_and_not_those_of_padding(name, gate):
    family = FAMILIES[name]
    plain, model = family.make(), family.make()
    inputs = family.inputs(3, "right")
    gated = hk.attach(model)
    with torch.no_grad():
        state = gated.embed(inputs)
        frames = plain._get_feature_vector_attention_mask(
            state.hidden.shape[1], inputs["attention_mask"]
        )
        assert torch.equal(state.attention_mask, frames.bool())
        decided = gate.decide(state.hidden, frames.bool()).heads
        assert 0 < decided.sum() < decided.numel()
        with family.oracle(plain, decided):
            expected = result(plain, inputs)
        with hk.gates(model, gate):
            torch.testing.assert_close(result(model, inputs), expected, atol=1e-5, rtol=0)


def test_a_policy_decides_where_layer_dropout_leaves_out_the_first_layers(gate):
    family = FAMILIES["Wav2Vec2"]
    plain, model = family.make(), family.make()
    inputs = family.inputs(2, "right")
    for one in (plain, model):
        for module in one.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in one.wav2vec2.encoder.layers:
            layer.attention.dropout = 0.0
        one.config.layerdrop = 0.5
        one.config.mask_time_prob = 0.0
    gated = hk.attach(model)
    with torch.no_grad():
        decided = gate.decide(gated.embed(inputs).hidden, gated.embed(inputs).attention_mask).heads
        plain.train()
        model.train()
        ran = []
        for number, layer in enumerate(plain.wav2vec2.encoder.layers):
            layer.register_forward_hook(lambda *_, number=number: ran.append(number))
        first = set()
        for seed in range(8):
            ran.clear()
            with family.oracle(plain, decided), torch.random.fork_rng():
                torch.manual_seed(seed)
                expected = result(plain, inputs)
            with hk.gates(model, gate), torch.random.fork_rng():
                torch.manual_seed(seed)
                torch.testing.assert_close(result(model, inputs), expected, atol=1e-5, rtol=0)
            first.update(ran[:1])
    assert len(first) > 1, "the first layer always ran: nothing is tested"


def test_wavlm_is_refused_for_its_gated_positions():
    model = transformers.WavLMModel(transformers.WavLMConfig(**SIZES, **CONVOLUTIONS))
    with pytest.raises(ValueError, match=r"found WavLMAttention with .*gru_rel_pos"):
        hk.attach(model)
