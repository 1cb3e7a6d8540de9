"""Tiny random models with tokenizers and processors, saved to folders, and data files for them."""

import json
import re
import wave

import numpy as np
import transformers
from PIL import Image
from typer.testing import CliRunner

from headkit.cli import app

from .families import randomise

WORDS = [f"w{number}" for number in range(55)]
LAYERS, HEADS = 3, 4
SIZES = {
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}


def call(*arguments):
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result):
    """All that a command printed, in one line."""
    return re.sub(r"\s+", " ", result.output + result.stderr)


def told(*arguments):
    """What a command that succeeds prints as JSON."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, said(result)
    return json.loads(result.stdout)


def refused(expected, *arguments):
    """Check that a command ends with exit code 2 and says why."""
    result = call(*arguments)
    assert result.exit_code == 2, said(result)
    assert expected in said(result), said(result)
    assert "Traceback" not in said(result)


def save(folder, model, processor):
    """Write a model, random but for its norms, with what prepares its inputs."""
    randomise(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def causal_lm(folder):
    """A Llama that knows the words w0, w1, ..."""
    import tokenizers

    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "</s>", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        **SIZES,
    )
    return save(folder, transformers.LlamaForCausalLM(config), wrapped)


def image_classifier(folder):
    """A ViT for pictures of 8 x 8 with two classes."""
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, id2label={0: "dark", 1: "light"}, label2id=None, **SIZES
    )
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    return save(folder, transformers.ViTForImageClassification(config), processor)


def speech_model(folder):
    """A Whisper of letters for one second of sound."""
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", *special]
    words = {letter: number for number, letter in enumerate(letters)}
    end, start, plain = (words[name] for name in special)
    role = "<|endoftext|>"
    tokenizer = transformers.WhisperTokenizer(
        vocab=words, merges=[], unk_token=role, bos_token=role, eos_token=role, pad_token=role
    )
    features = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    config = transformers.WhisperConfig(
        vocab_size=len(words),
        num_mel_bins=8,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=28,
        decoder_ffn_dim=28,
        max_source_positions=50,
        max_target_positions=20,
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.no_timestamps_token_id = plain
    model.generation_config.is_multilingual = False
    return save(folder, model, transformers.WhisperProcessor(features, tokenizer))


def write_sound(path, seed=0, rate=16000, channels=1):
    """Half a second of noise."""
    samples = np.random.default_rng(seed).integers(-9000, 9000, rate // 2 * channels)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def write_pictures(folder, each=6):
    """Noise of two classes, dark and light, a subfolder each."""
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 150)):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(low, low + 100, (12, 10, 3)).astype("uint8")
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder
