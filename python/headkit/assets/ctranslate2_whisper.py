"""Converts a Whisper model from a CTranslate2 folder to a transformers folder."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from headkit.assets import ctranslate2
from headkit.assets.transformers_folder import write_model

if TYPE_CHECKING:
    import transformers

SETTINGS = {
    "decoder/activation": 3,  # GELU with the error function
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
NOT_WEIGHTS = {
    *SETTINGS,
    "decoder/alignment_heads",
    "decoder/alignment_layer",
    "decoder/num_heads",
    "encoder/num_heads",
}
RENAMED = {
    "position_encodings/encodings": "embed_positions.weight",
    "embeddings/weight": "embed_tokens.weight",
}
IN_LAYER = {
    "self_attention/linear_1": "self_attn.out_proj",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_2": "encoder_attn.out_proj",
    "attention/layer_norm": "encoder_attn_layer_norm",
    "ffn/layer_norm": "final_layer_norm",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
STACKED = {
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
}
LEAF = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}


def convert(source: Path, folder: Path) -> None:
    """Write the model in float32, its generation settings and its processor.

    Args:
        source: a folder with model.bin (an English-only Whisper model), config.json and
            tokenizer.json.
        folder: an empty folder.

    Raises:
        ValueError: if a file is not as expected.
        OSError: if one cannot be read.
    """
    import transformers

    model = ctranslate2.read(source / "model.bin")
    if model.specification != "WhisperSpec":
        raise ValueError(f"[whisper] expected a WhisperSpec; found {model.specification}")
    for name, expected in SETTINGS.items():
        if (found := _scalar(model, name)) != expected:
            raise ValueError(f"[whisper] expected {name} {expected}; found {found}")
    if model.aliases != {"decoder/projection/weight": "decoder/embeddings/weight"}:
        raise ValueError(f"[whisper] expected a tied projection; found aliases {model.aliases}")
    tensors: dict[str, torch.Tensor] = {}
    for name, array in model.variables.items():
        if name not in NOT_WEIGHTS:
            for renamed, value in _rename(name, array).items():
                tensors[f"model.{renamed}"] = torch.from_numpy(np.array(value, np.float32))
    tokenizer = transformers.WhisperTokenizer.from_pretrained(
        source, pad_token="<|endoftext|>", local_files_only=True
    )
    write_model(
        folder,
        transformers.WhisperForConditionalGeneration,
        _config(model, tensors, tokenizer),
        tensors,
    )
    given = json.loads((source / "config.json").read_text(encoding="utf-8"))
    _generation(given, tokenizer).save_pretrained(folder)
    features = transformers.WhisperFeatureExtractor()
    features.save_pretrained(folder)
    transformers.WhisperProcessor(features, tokenizer).save_pretrained(folder)


def _rename(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    side, _, rest = name.partition("/")
    if rest in RENAMED:
        return {f"{side}.{RENAMED[rest]}": array}
    place, _, leaf = rest.rpartition("/")
    if leaf in LEAF and place in ("conv1", "conv2", "layer_norm"):
        return {f"{side}.{place}.{LEAF[leaf]}": array}
    layer = re.fullmatch(r"layer_(\d+)/(.+)", place)
    if layer is None or leaf not in LEAF or layer[2] not in {*IN_LAYER, *STACKED}:
        raise ValueError(f"[whisper] expected the variables of a Whisper model; found {name}")
    before, after = f"{side}.layers.{int(layer[1])}", LEAF[leaf]
    if layer[2] in IN_LAYER:
        return {f"{before}.{IN_LAYER[layer[2]]}.{after}": array}
    parts = STACKED[layer[2]]
    if array.ndim == 0 or len(array) % len(parts) != 0:
        raise ValueError(
            f"[whisper] expected {len(parts)} stacked projections in {name}; found shape "
            f"{list(array.shape)}"
        )
    split = dict(zip(parts, np.split(array, len(parts)), strict=True))
    if leaf == "bias":
        # Whisper's keys have no bias; the file has zeros in its place.
        key = next(part for part in parts if part.endswith("k_proj"))
        if split.pop(key).any():
            raise ValueError(f"[whisper] expected no bias of keys; found one in {name}")
    return {f"{before}.{part}.{after}": value for part, value in split.items()}


def _config(
    model: ctranslate2.Ctranslate2Model,
    tensors: dict[str, torch.Tensor],
    tokenizer: "transformers.WhisperTokenizer",
) -> "transformers.WhisperConfig":
    import transformers

    def shape(name: str, rank: int) -> torch.Size:
        found = tensors[f"model.{name}"].shape if f"model.{name}" in tensors else None
        if found is None or len(found) != rank:
            raise ValueError(f"[whisper] expected {name} with {rank} dimensions; found {found}")
        return found

    def layers(side: str) -> int:
        return len({name.split(".")[3] for name in tensors if f"{side}.layers." in name})

    vocabulary, width = shape("decoder.embed_tokens.weight", 2)
    return transformers.WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        num_mel_bins=shape("encoder.conv1.weight", 3)[1],
        encoder_layers=layers("encoder"),
        decoder_layers=layers("decoder"),
        encoder_attention_heads=_scalar(model, "encoder/num_heads"),
        decoder_attention_heads=_scalar(model, "decoder/num_heads"),
        encoder_ffn_dim=shape("encoder.layers.0.fc1.weight", 2)[0],
        decoder_ffn_dim=shape("decoder.layers.0.fc1.weight", 2)[0],
        max_source_positions=shape("encoder.embed_positions.weight", 2)[0],
        max_target_positions=shape("decoder.embed_positions.weight", 2)[0],
        decoder_start_token_id=cast(
            "int", tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
        ),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def _generation(
    given: dict[str, Any], tokenizer: "transformers.WhisperTokenizer"
) -> "transformers.GenerationConfig":
    import transformers

    names = ("suppress_ids", "suppress_ids_begin", "alignment_heads")
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"[whisper] expected {missing[0]} in config.json; found none")
    return transformers.GenerationConfig(
        decoder_start_token_id=cast(
            "int", tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
        ),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        no_timestamps_token_id=tokenizer.convert_tokens_to_ids("<|notimestamps|>"),
        suppress_tokens=given["suppress_ids"],
        begin_suppress_tokens=given["suppress_ids_begin"],
        alignment_heads=given["alignment_heads"],
        is_multilingual=False,
        return_timestamps=False,
        max_length=448,
        max_initial_timestamp_index=50,
    )


def _scalar(model: ctranslate2.Ctranslate2Model, name: str) -> int:
    value = model.variables.get(name)
    if value is None or value.size != 1:
        raise ValueError(f"[whisper] expected a number {name}; found {value}")
    return int(value.item())
