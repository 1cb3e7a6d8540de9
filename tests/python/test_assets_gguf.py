"""GGUF files of Llama models: converted without loss, refused when damaged."""

import random

import gguf
import numpy as np
import pytest
import torch
import transformers

from headkit.assets import gguf_llama

HEADS, KV_HEADS, HEAD_DIM, LAYERS, WIDTH, FFN = 4, 2, 8, 2, 32, 64
TOKENS = ["<|a|>", "<|b|>", "<|c|>", *(chr(code) for code in range(ord("!"), ord("~"))), "Ġ", "ab"]


def tiny_llama(tied):
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def neighbouring_rotation(weight, heads):
    """Row i of a head's first half to row 2i, of its second half to row 2i + 1."""
    out = np.empty_like(weight)
    for head in range(heads):
        start = head * HEAD_DIM
        for row in range(HEAD_DIM // 2):
            out[start + 2 * row] = weight[start + row]
            out[start + 2 * row + 1] = weight[start + HEAD_DIM // 2 + row]
    return out


def write(path, model, *, quantise=None, changes=()):
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        "llama.block_count": LAYERS,
        "llama.context_length": 64,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        **dict(changes),
    }
    for name, value in values.items():
        if isinstance(value, int):
            writer.add_uint32(name, value)
        elif value is not None:
            writer.add_string(name, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 500.0)
    writer.add_array("tokenizer.ggml.tokens", TOKENS)
    writer.add_array("tokenizer.ggml.token_type", [3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_array("tokenizer.ggml.merges", ["a b"])

    def put(name, parameter, heads=0):
        array = parameter.detach().numpy()
        array = neighbouring_rotation(array, heads) if heads else array
        if quantise and array.ndim == 2:
            raw = gguf.quants.quantize(array, quantise)
            writer.add_tensor(f"{name}.weight", raw, raw_dtype=quantise)
            with torch.no_grad():
                back = gguf.quants.dequantize(raw, quantise)
                # The model that is compared has the weights that the file has.
                if heads:
                    back = gguf_rows_back(back, heads)
                parameter.copy_(torch.from_numpy(back))
        else:
            writer.add_tensor(f"{name}.weight", array)

    put("token_embd", model.model.embed_tokens.weight)
    put("output_norm", model.model.norm.weight)
    if not model.config.tie_word_embeddings:
        put("output", model.lm_head.weight)
    for number, layer in enumerate(model.model.layers):
        own, mlp = layer.self_attn, layer.mlp
        put(f"blk.{number}.attn_q", own.q_proj.weight, HEADS)
        put(f"blk.{number}.attn_k", own.k_proj.weight, KV_HEADS)
        put(f"blk.{number}.attn_v", own.v_proj.weight)
        put(f"blk.{number}.attn_output", own.o_proj.weight)
        put(f"blk.{number}.attn_norm", layer.input_layernorm.weight)
        put(f"blk.{number}.ffn_gate", mlp.gate_proj.weight)
        put(f"blk.{number}.ffn_up", mlp.up_proj.weight)
        put(f"blk.{number}.ffn_down", mlp.down_proj.weight)
        put(f"blk.{number}.ffn_norm", layer.post_attention_layernorm.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_rows_back(weight, heads):
    order = neighbouring_rotation(np.arange(len(weight))[:, None], heads)[:, 0]
    return weight[np.argsort(order)]


@pytest.fixture
def folders(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    return source, target


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
def test_a_converted_model_is_the_same_model(folders, tied, kind):
    source, target = folders
    model = tiny_llama(tied)
    quantise = None if kind == "F32" else gguf.GGMLQuantizationType[kind]
    write(source / "tiny.gguf", model, quantise=quantise)
    gguf_llama.convert(source, target)
    found, report = transformers.AutoModelForCausalLM.from_pretrained(
        target, output_loading_info=True
    )
    assert not any(report.values())
    assert found.config.rms_norm_eps == 1e-5 and found.config.tie_word_embeddings == tied
    tokens = torch.tensor([[1, 5, 9, 30, 7, 60]])
    with torch.inference_mode():
        torch.testing.assert_close(
            found.eval()(tokens).logits, model(tokens).logits, atol=1e-5, rtol=1e-5
        )


def test_the_tokenizer_splits_digits_and_keeps_special_tokens(folders):
    source, target = folders
    write(source / "tiny.gguf", tiny_llama(True))
    gguf_llama.convert(source, target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert tokenizer.tokenize("ab 12<|b|>") == ["ab", "Ġ", "1", "2", "<|b|>"]
    assert tokenizer.decode(tokenizer("ab 12<|b|>")["input_ids"]) == "ab 12<|b|>"
    roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    assert roles == ("<|b|>", "<|c|>", "<|a|>", "<|c|>")
    chat = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "ab"


@pytest.mark.parametrize(
    "change, match",
    [
        ({"tokenizer.ggml.pre": "llama-bpe"}, "tokenizer.ggml.pre smollm; found llama-bpe"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model gpt2; found None"),
        ({"llama.block_count": None}, "expected a value for 'llama.block_count'; found none"),
        ({"llama.block_count": 3}, r"layers\.2\.\S+ of shape .*; found None"),
        ({"llama.feed_forward_length": 60}, r"down_proj.weight of shape \[32, 60\] .*\[32, 64\]"),
        ({"llama.attention.head_count_kv": 3}, "rows for 3 heads of even width"),
    ],
)
def test_another_model_is_refused(folders, change, match):
    source, target = folders
    write(source / "tiny.gguf", tiny_llama(True), changes=change.items())
    with pytest.raises(ValueError, match=match):
        gguf_llama.convert(source, target)
    assert not list(target.iterdir())


def test_a_folder_without_one_file_is_refused(folders):
    with pytest.raises(ValueError, match=r"expected one \.gguf file"):
        gguf_llama.convert(*folders)


def test_damaged_files_are_refused(folders):
    source, target = folders
    path = source / "tiny.gguf"
    write(path, tiny_llama(True))
    data = path.read_bytes()
    chance = random.Random(0)
    for size in [0, 3, 4, 8, 20, *(chance.randrange(len(data)) for _ in range(20))]:
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"\[gguf\] expected"):
            gguf_llama.convert(source, target)
        assert not list(target.iterdir())
