"""Whisper tiny.en on the prompts of a telephone exchange: word errors, and its alignment heads."""

import math
import random
from functools import cached_property
from typing import Any

import torch

from headkit import _C
from headkit.assets import Recording, prompts
from headkit.cli.model_source import find_model
from headkit.cli.tasks.speech import SAMPLE_RATE, encode_transcripts
from headkit.cli.tasks.task import cut
from headkit.huggingface import attach
from headkit.huggingface import gates as gated
from headkit.studies.alignment_heads import (
    alignment_focus,
    alignment_scores,
    cross_attention,
    precision_interval,
    published_heads,
)
from headkit.studies.domain import Domain, Tally
from headkit.studies.dynamic_task import Batch, Opened, frozen
from headkit.studies.forced_alignment import token_times
from headkit.studies.word_errors import word_errors

SHORTEST, LONG = 2.0, 5.0
SIZES = {"train": 48, "validation": 24}
BATCH, MOST_TOKENS = 4, 160
# How heads are ranked by following the sound.
ALIGNMENT = {"correlation": alignment_scores, "focus": alignment_focus}


class Speech(Domain):
    """Whisper writes down prompts of more than five seconds; shorter ones are learnt from."""

    NAME = "speech"
    MODEL = "Whisper tiny.en"
    MEASURE = "word error rate"
    HIGHER = False
    OBJECTIVE = "seq2seq"
    ASSET = "whisper-tiny-en"

    @property
    def configuration(self) -> dict[str, Any]:
        """The model, and names of the recordings."""
        names = {name: [each.name for each in part] for name, part in self._recordings.items()}
        return {"model": self.ASSET, **names}

    @cached_property
    def _recordings(self) -> dict[str, list[Recording]]:
        """By part; those of the test by length."""
        shorter = prompts(SHORTEST, LONG)
        random.Random(self.seed).shuffle(shorter)
        wanted = {name: min(n, self.limit or n) for name, n in SIZES.items()}
        long = sorted(prompts(LONG), key=lambda each: (len(each.samples), each.name))
        first = wanted["train"]
        return {
            "train": shorter[:first],
            "validation": shorter[first : first + wanted["validation"]],
            "test": long[: self.limit],
        }

    @cached_property
    def _processor(self) -> Any:
        return find_model(self.ASSET).load_processor("AutoProcessor")

    def plain(self) -> torch.nn.Module:
        """A fresh copy of the model as transformers made it, frozen."""
        return frozen(find_model(self.ASSET).load("AutoModelForSpeechSeq2Seq"))

    def open(self) -> Opened:
        """A fresh copy, attached and frozen."""
        module = self.plain()
        attached = attach(module)
        return Opened(module, attached, attached)

    def batches(self, part: str) -> list[Batch]:
        """Sounds, transcripts, and the place of each in its part."""
        recordings = self._recordings[part]
        return [
            self._encode([recordings[place] for place in places])
            | {"example_id": torch.tensor(places)}
            for places in cut(range(len(recordings)), BATCH)
        ]

    def _encode(self, recordings: list[Recording]) -> Batch:
        features = self._processor.feature_extractor(
            [each.samples for each in recordings], sampling_rate=SAMPLE_RATE, return_tensors="pt"
        )["input_features"]
        words = [each.transcript for each in recordings]
        return {
            "input_features": features,
            **encode_transcripts(find_model(self.ASSET).config, self._processor.tokenizer, words),
        }

    def tally(self, opened: Opened, batch: Batch, gates: _C.GateSet) -> Tally:
        """Word errors of each transcript, over its words."""
        with gated(opened.module, gates):
            output = opened.module.generate(
                input_features=batch["input_features"], max_new_tokens=MOST_TOKENS, do_sample=False
            )
        texts = self._processor.batch_decode(output, skip_special_tokens=True)
        known = [self._recordings["test"][place] for place in batch["example_id"].tolist()]
        found = [
            word_errors(each.transcript, text) for each, text in zip(known, texts, strict=True)
        ]
        return Tally(*torch.tensor(found, dtype=torch.float64).T)

    def forward(self, module: torch.nn.Module, batch: Batch) -> Any:
        """The encoder, and the decoder on the known words."""
        return module(
            input_features=batch["input_features"],
            decoder_input_ids=batch["decoder_input_ids"],
            use_cache=False,
        ).logits

    def head_flops(self, layout: _C.HeadLayout, batch: Batch) -> torch.Tensor:
        """Of a forward pass on the known words; cross-attention projects the sound's frames."""
        words = batch["decoder_input_ids"].shape[1]
        sites = self.opened.gated.structure.sites
        frames = self.opened.module.config.max_source_positions
        own = {count: float(_C.attention_flops(layout, 1, count)) for count in (words, frames)}
        wide, narrow = layout.model_dim, layout.head_dim
        cross = 4 * narrow * (words * wide + frames * wide + words * frames)
        return torch.tensor(
            [
                cross if site.path.endswith("encoder_attn")
                else own[frames if ".encoder." in f".{site.path}" else words]
                for site in sites
            ],
            dtype=torch.float64,
        )  # fmt: skip

    def alignment(self) -> dict[str, Any]:
        """How well a ranking by alignment finds the heads that Whisper's authors publish.

        Word times come from forced alignment with the dense model.

        Returns:
            dict: by measure of ``ALIGNMENT`` average precision with its interval over recordings
            and mean scores [layers][heads]; chance, the published heads, number of recordings and
            tokens.
        """
        found = []
        for done, recording in enumerate(self._recordings["test"]):
            found.append(self._aligned(recording))
            self.tell("alignment", done + 1, len(self._recordings["test"]))
        published = published_heads(self._dense)
        tokens = torch.tensor([each["tokens"] for each in found])
        return {
            "measures": {
                name: self._precision([each[name] for each in found], tokens, published)
                for name in ALIGNMENT
            },
            "chance": float(published.double().mean()),
            "published": published.nonzero().tolist(),
            "recordings": len(found),
            "tokens": int(tokens.sum()),
        }

    @staticmethod
    def _precision(
        scores: list[Any], tokens: torch.Tensor, published: torch.Tensor
    ) -> dict[str, Any]:
        each = torch.tensor(scores, dtype=torch.float64)
        value, lower, upper = precision_interval(each, tokens, published)
        weight = tokens.double()[:, None, None]
        mean = (each * weight).sum(0) / weight.sum()
        return {
            "average_precision": value, "lower": lower, "upper": upper, "scores": mean.tolist(),
        }  # fmt: skip

    @cached_property
    def _dense(self) -> torch.nn.Module:
        return self.plain()

    def _aligned(self, recording: Recording) -> dict[str, Any]:
        """Alignment scores of one recording, kept by its name."""

        def compute() -> Any:
            model, batch = self._dense, self._encode([recording])
            with torch.no_grad():
                encoded = model.model.encoder(batch["input_features"]).last_hidden_state[0]
            ids, labels = batch["decoder_input_ids"][0], batch["labels"][0]
            seconds = len(recording.samples) / SAMPLE_RATE
            times = token_times(model, encoded, ids, labels, seconds, model.config.eos_token_id)
            rows = cross_attention(model, encoded, ids)
            measured = {
                name: [measure(layer, times, seconds).tolist() for layer in rows]
                for name, measure in ALIGNMENT.items()
            }
            return {**measured, "tokens": sum(not math.isnan(time) for time in times)}

        asked = {"model": self.ASSET, "recording": recording.name, "measures": list(ALIGNMENT)}
        return self.results.get("domain_alignment", asked, compute)
