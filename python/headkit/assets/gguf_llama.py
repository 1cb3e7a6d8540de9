"""Converts a Llama model from a GGUF file to a transformers folder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headkit.assets.transformers_folder import write_model

if TYPE_CHECKING:
    import transformers

OUTSIDE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
IN_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
SPECIAL_TOKEN = 3


def convert(source: Path, folder: Path) -> None:
    """Write the model, dequantised to float32, and its tokenizer.

    The gguf package trusts what it reads (a damaged count can keep it busy for hours), so this is
    for files whose hash is known.

    Args:
        source: a folder with one ``.gguf`` file: architecture ``llama``, tokenizer ``gpt2`` as
            SmolLM splits text (each digit alone).
        folder: an empty folder.

    Raises:
        ValueError: if there is no such file or it cannot be read, or its content is another.
        ImportError: without the ``gguf`` package.
    """
    import gguf
    import transformers

    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"[gguf] expected one .gguf file in {source}; found {len(files)}")
    try:
        reader = gguf.GGUFReader(files[0])
        values = {name: field.contents() for name, field in reader.fields.items()}
        arrays = {
            tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            for tensor in reader.tensors
        }
    except (ValueError, IndexError, KeyError, OverflowError, NotImplementedError) as error:
        raise ValueError(
            f"[gguf] expected a whole GGUF file; found in {files[0].name}: {error}"
        ) from error
    for name, expected in (
        ("general.architecture", "llama"),
        ("tokenizer.ggml.model", "gpt2"),
        ("tokenizer.ggml.pre", "smollm"),
    ):
        if values.get(name) != expected:
            raise ValueError(f"[gguf] expected {name} {expected}; found {values.get(name)}")
    try:
        config = _config(values, tied="output.weight" not in arrays)
        tokenizer = _tokenizer(values)
    except KeyError as error:
        raise ValueError(f"[gguf] expected a value for {error}; found none") from error
    tensors = {}
    for name in list(arrays):
        array = arrays.pop(name)
        place, _, rest = name.removesuffix(".weight").rpartition(".")
        if name.endswith("attn_q.weight"):
            array = half_rotation(array, config.num_attention_heads)
        elif name.endswith("attn_k.weight"):
            array = half_rotation(array, config.num_key_value_heads or config.num_attention_heads)
        if place.startswith("blk.") and rest in IN_BLOCK:
            renamed = f"model.layers.{place.removeprefix('blk.')}.{IN_BLOCK[rest]}.weight"
        elif not place and rest in OUTSIDE:
            renamed = f"{OUTSIDE[rest]}.weight"
        else:
            raise ValueError(f"[gguf] expected the tensors of a Llama model; found {name}")
        tensors[renamed] = torch.from_numpy(np.array(array, np.float32))
    write_model(folder, transformers.LlamaForCausalLM, config, tensors)
    tokenizer.save_pretrained(folder)


def half_rotation(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of Q or K as transformers does.

    llama.cpp rotates neighbouring pairs of a head's rows; transformers rotates row i with row
    i + head_dim / 2.

    Args:
        weight: [heads * head_dim, embed_dim].
        heads: of this projection.

    Raises:
        ValueError: if the rows are no whole heads of even width.
    """
    rows = len(weight)
    if weight.ndim != 2 or rows % (2 * heads) != 0:
        raise ValueError(
            f"[gguf] expected a weight with rows for {heads} heads of even width; found shape "
            f"{list(weight.shape)}"
        )
    pairs = weight.reshape(heads, rows // heads // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _config(values: dict[str, Any], *, tied: bool) -> "transformers.LlamaConfig":
    import transformers

    return transformers.LlamaConfig(
        vocab_size=len(values["tokenizer.ggml.tokens"]),
        hidden_size=values["llama.embedding_length"],
        intermediate_size=values["llama.feed_forward_length"],
        num_hidden_layers=values["llama.block_count"],
        num_attention_heads=values["llama.attention.head_count"],
        num_key_value_heads=values["llama.attention.head_count_kv"],
        max_position_embeddings=values["llama.context_length"],
        # A float32 in the file: the shortest number that means the same.
        rms_norm_eps=float(str(np.float32(values["llama.attention.layer_norm_rms_epsilon"]))),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(values["llama.rope.freq_base"]),
        },
        tie_word_embeddings=tied,
        bos_token_id=values["tokenizer.ggml.bos_token_id"],
        eos_token_id=values["tokenizer.ggml.eos_token_id"],
        pad_token_id=values["tokenizer.ggml.padding_token_id"],
    )


def _tokenizer(values: dict[str, Any]) -> "transformers.PreTrainedTokenizerFast":
    import tokenizers
    import transformers

    tokens = values["tokenizer.ggml.tokens"]
    model = tokenizers.models.BPE(
        vocab={token: place for place, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ", 1)) for merge in values["tokenizer.ggml.merges"]],
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    special = [
        token
        for token, kind in zip(tokens, values["tokenizer.ggml.token_type"], strict=True)
        if kind == SPECIAL_TOKEN
    ]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[values["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[values["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[values["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[values["tokenizer.ggml.padding_token_id"]],
        extra_special_tokens=special,
        chat_template=values["tokenizer.chat_template"],
        model_max_length=values["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
