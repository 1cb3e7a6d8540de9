"""Models that share a family's structure are served; those that only resemble it are refused."""

import pytest
import torch
import transformers

import headkit as hk

from .families import CONVOLUTIONS, PATCHES, SIZES, WORDS, pixels, randomise, sound, text

SERVED = {
    "Camembert": (text, WORDS),
    "Ernie": (text, WORDS),
    "Data2VecText": (text, WORDS),
    "Gte": (text, WORDS),
    "JinaEmbeddingsV3": (text, WORDS),
    "Dinov2WithRegisters": (pixels, PATCHES),
    "IJepa": (pixels, PATCHES),
    "ViTMSN": (pixels, PATCHES),
    "UniSpeech": (sound, CONVOLUTIONS),
    "Data2VecAudio": (sound, CONVOLUTIONS),
    "SEW": (sound, CONVOLUTIONS),
}
REFUSED = {
    "LayoutLM": WORDS,
    "Splinter": WORDS,
    "OpenAIGPT": {"vocab_size": 60, "n_embd": 24, "n_layer": 1, "n_head": 4},
    "NanoChat": WORDS,
    "RoFormer": WORDS,
    "Yoso": WORDS,
    "DINOv3ViT": PATCHES,
    "XGLM": WORDS,
}


@pytest.mark.parametrize("name", SERVED)
def test_relatives_equal_their_originals(name):
    inputs_of, options = SERVED[name]
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    model = getattr(transformers, f"{name}Model")(config).eval()
    randomise(model)
    inputs = inputs_of(3, "right")
    valid = inputs.get("attention_mask") if inputs_of is text else None
    gates = torch.ones(SIZES["num_hidden_layers"], SIZES["num_attention_heads"])
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        gated = hk.attach(model)
        found = model(**inputs).last_hidden_state
        staged = gated(inputs, gates)
    for ours in (found, staged):
        ours, truth = (ours, expected) if valid is None else (ours[valid > 0], expected[valid > 0])
        torch.testing.assert_close(ours, truth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_only_resemble_a_family_are_refused(name):
    options = REFUSED[name] if name == "OpenAIGPT" else {**SIZES, **REFUSED[name]}
    config = getattr(transformers, f"{name}Config")(**options)
    model = getattr(transformers, f"{name}Model")(config)
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"\[attach\] expected .*; found"):
        hk.attach(model)
    assert [type(module) for module in model.modules()] == before


def test_a_block_that_takes_more_arguments_is_refused():
    config = transformers.ViTConfig(**SIZES, **PATCHES)
    model = transformers.ViTModel(config)

    class WithPositions(type(model.layers[0].attention)):
        def forward(self, hidden_states, attention_mask=None, positions=None, **kwargs):
            hidden_states = hidden_states if positions is None else hidden_states + positions
            return super().forward(hidden_states, attention_mask, **kwargs)

    class Reordered(type(model.layers[0].attention)):
        def forward(self, attention_mask=None, hidden_states=None, **kwargs):
            return super().forward(hidden_states, attention_mask, **kwargs)

    for cls, found in ((WithPositions, "positions"), (Reordered, "attention_mask, hidden_states")):
        for layer in model.layers:
            layer.attention.__class__ = cls
        with pytest.raises(ValueError, match=f"to be called as ViT .*; found {found} at"):
            hk.attach(model)
        assert type(model.layers[0].attention) is cls
