"""Recordings that a model writes down."""

import wave
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headkit import _C
from headkit.cli.model_source import ModelSource
from headkit.cli.tasks.task import Example, Opened, Task
from headkit.cli.text_lines import before_tab, read_lines

SAMPLE_RATE = 16000


class Speech(Task):
    """Whisper: an encoder of sound, a decoder that writes words."""

    NAME = "speech"
    INPUT = "audio"
    PROCESSOR = "AutoProcessor"
    OBJECTIVE = "seq2seq"
    QUALITY = "perplexity of the transcripts"
    BATCH_SIZE = 4
    GENERATES = True

    def auto_class(self, source: ModelSource) -> str:
        """Whisper."""
        is_whisper = source.architecture == "WhisperForConditionalGeneration"
        return "AutoModelForSpeechSeq2Seq" if is_whisper else ""

    def read(self, path: Path, limit: int | None) -> list[Example]:
        """Lines of ``path.wav<TAB>transcript``; paths are from the folder of the file."""
        examples = []
        for number, line in read_lines(path)[:limit]:
            name, transcript = before_tab(path, number, line, "path.wav<TAB>transcript")
            if not transcript:
                raise ValueError(
                    f"[data] expected a transcript in line {number} of {path}; found none"
                )
            examples.append(Example(name, path.parent / name, transcript))
        return examples

    def read_inputs(self, path: Path, limit: int | None) -> list[Example]:
        """The same, or lines of paths."""
        lines = [line for _, line in read_lines(path)[:limit]]
        if all("\t" in line for line in lines):
            return self.read(path, limit)
        return [self.given(path.parent / line.strip()) for line in lines]

    def encode(self, opened: Opened, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """input_features; with transcripts also labels and what the decoder is given."""
        sounds = [read_sound(example.value) for example in examples]
        features = opened.processor.feature_extractor(
            sounds, sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )["input_features"]
        batch = {"input_features": features}
        if any(example.label is None for example in examples):
            return batch
        transcripts = [str(example.label) for example in examples]
        return {
            **batch,
            **encode_transcripts(opened.model.config, opened.processor.tokenizer, transcripts),
        }

    def tally(self, output, tensors, dense):
        """The mean loss of each transcript."""
        return _C.make_objective(self.OBJECTIVE)(output, tensors).double()

    def quality(self, mean: float) -> float:
        """e to the mean loss."""
        return exp(min(mean, 700.0))

    def results(self, opened, output, tensors):
        """The words."""
        texts = opened.processor.batch_decode(output, skip_special_tokens=True)
        return [{"text": text.strip()} for text in texts]

    def summary(self, result):
        """The words."""
        return " ".join(result["text"].split())

    def units(self, opened, tensors, tokens):
        """Frames of the encoder."""
        return [f"frame {number}" for number in range(tokens)]


def encode_transcripts(
    config: Any, tokenizer: Any, transcripts: Sequence[str]
) -> dict[str, torch.Tensor]:
    """What Whisper should say, ``labels`` [B, T], and what its decoder reads meanwhile.

    Args:
        config: of the model.
        tokenizer: of the model.
        transcripts: the words.

    Returns:
        dict: ``labels``, -100 behind the end of each, and ``decoder_input_ids``, the same moved by
        one.
    """
    start = config.decoder_start_token_id
    labels = _padded([tokenizer(f" {text}")["input_ids"] for text in transcripts], start)
    labels = labels[:, : config.max_target_positions]
    shifted = torch.full_like(labels, start)
    shifted[:, 1:] = labels[:, :-1].masked_fill(labels[:, :-1] == -100, config.pad_token_id)
    return {"labels": labels, "decoder_input_ids": shifted}


def read_sound(path: Path) -> np.ndarray:
    """Samples of a WAV file, float32 in [-1, 1).

    Raises:
        ValueError: if it is none, is empty, or is not 16 kHz, one channel, 16 bits.
    """
    try:
        with wave.open(str(path), "rb") as file:
            form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise ValueError(
            f"[audio] expected a WAV file {path}; found: {error or 'an empty file'}"
        ) from error
    if form != (1, 16, SAMPLE_RATE):
        raise ValueError(
            f"[audio] expected one channel of 16 bits at {SAMPLE_RATE} Hz in {path}; found "
            f"{form[0]} of {form[1]} bits at {form[2]} Hz"
        )
    if len(data) < 2:
        raise ValueError(f"[audio] expected sound in {path}; found no sample")
    return np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768


def _padded(rows: list[list[int]], start: int) -> torch.Tensor:
    """Token ids with -100 after each; a start token that the tokenizer put first goes."""
    rows = [row[1:] if row[:1] == [start] else row for row in rows]
    width = max(map(len, rows))
    return torch.tensor([row + [-100] * (width - len(row)) for row in rows])
