"""Recordings that a model writes down."""

import wave
from collections.abc import Sequence
from math import exp
from pathlib import Path

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
        start = opened.model.config.decoder_start_token_id
        if any(example.label is None for example in examples):
            return batch
        texts = [f" {example.label}" for example in examples]
        labels = _padded([opened.processor.tokenizer(text)["input_ids"] for text in texts], start)
        labels = labels[:, : opened.model.config.max_target_positions]
        shifted = torch.full_like(labels, start)
        shifted[:, 1:] = labels[:, :-1].masked_fill(
            labels[:, :-1] == -100, opened.model.config.pad_token_id
        )
        return {**batch, "labels": labels, "decoder_input_ids": shifted}

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
