"""Language models that continue a text."""

from collections.abc import Sequence
from math import exp
from pathlib import Path

import torch

from headkit import _C
from headkit.cli.model_source import ModelSource
from headkit.cli.tasks.task import Example, Opened, Task, cut
from headkit.cli.tasks.text import token_names
from headkit.cli.text_lines import read_lines, read_whole

WINDOW = 128


class CausalLm(Task):
    """Scored on windows of a plain text, each token predicted from those before it."""

    NAME = "causal-lm"
    INPUT = "text"
    PROCESSOR = "AutoTokenizer"
    OBJECTIVE = "next_token"
    QUALITY = "perplexity"
    BATCH_SIZE = 4
    GENERATES = True

    def auto_class(self, source: ModelSource) -> str:
        """A decoder with a language model's head."""
        return "AutoModelForCausalLM" if _is_language_model(source.architecture) else ""

    def read(self, path: Path, limit: int | None) -> list[Example]:
        """The whole file as one text; ``prepare`` cuts it."""
        text = read_whole(path)
        if not text.strip():
            raise ValueError(f"[data] expected text in {path}; found no line of it")
        return [Example(str(path), text)]

    def read_inputs(self, path: Path, limit: int | None) -> list[Example]:
        """Each line is a prompt."""
        return [Example(line, line) for _, line in read_lines(path)[:limit]]

    def prepare(
        self, opened: Opened, examples: Sequence[Example], limit: int | None
    ) -> list[Example]:
        """Windows of equal length, one after the other; what is left over is not used."""
        name = examples[0].name
        ids = opened.processor(examples[0].value, verbose=False)["input_ids"]
        places = getattr(opened.model.config, "max_position_embeddings", None) or WINDOW
        width = min(WINDOW, places, len(ids))
        if width < 2:
            raise ValueError(
                f"[data] expected a text of at least 2 tokens in {name}; found {len(ids)}"
            )
        windows = list(cut(ids[: len(ids) // width * width], width))[:limit]
        return [Example(f"{name}, part {n}", window) for n, window in enumerate(windows)]

    def encode(self, opened: Opened, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Windows of one length, or one prompt."""
        if isinstance(examples[0].value, str):
            encoded = opened.processor([examples[0].value], return_tensors="pt")
            if encoded["input_ids"].shape[1] == 0:
                raise ValueError("[data] expected a prompt with a token; found none")
            return {key: encoded[key] for key in ("input_ids", "attention_mask")}
        ids = torch.tensor([example.value for example in examples])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def tally(self, output, tensors, dense):
        """The mean loss of each window."""
        return _C.make_objective(self.OBJECTIVE)(output, tensors).double()

    def quality(self, mean: float) -> float:
        """Perplexity: e to the mean loss; all windows have the same length."""
        return exp(min(mean, 700.0))

    def results(self, opened, output, tensors):
        """The text after the prompt."""
        prompt = tensors["input_ids"].shape[1]
        new = output[:, prompt:]
        texts = opened.processor.batch_decode(new, skip_special_tokens=True)
        return [{"text": text, "tokens": len(row)} for text, row in zip(texts, new, strict=True)]

    def summary(self, result):
        """The text."""
        return " ".join(result["text"].split())

    def units(self, opened, tensors, tokens):
        """Tokens."""
        return token_names(opened, tensors)


def _is_language_model(architecture: str) -> bool:
    return architecture.endswith(("ForCausalLM", "LMHeadModel"))
