"""Sentence embeddings: how far pruning moves them from those of the whole model."""

from collections.abc import Sequence
from pathlib import Path

import torch

from headkit import _C
from headkit.cli.model_source import ModelSource
from headkit.cli.tasks.task import Example, Opened, Task
from headkit.cli.tasks.text import encode_text, is_text_encoder, token_names
from headkit.cli.text_lines import read_lines


class Embedding(Task):
    """Mean of the hidden states over tokens, of length 1.

    The loss has its minimum at the whole model, so every gradient is 0 there: heads are scored by
    closing them one by one.
    """

    NAME = "embedding"
    INPUT = "text"
    PROCESSOR = "AutoTokenizer"
    OBJECTIVE = "cosine_to_dense"
    METRIC = "ablation"
    QUALITY = "cosine to all heads"
    BATCH_SIZE = 32

    def auto_class(self, source: ModelSource) -> str:
        """A text encoder, without its head."""
        return "AutoModel" if is_text_encoder(source) else ""

    def read(self, path: Path, limit: int | None) -> list[Example]:
        """Lines of text."""
        lines = read_lines(path)[:limit]
        if all(line.rpartition("\t")[2].isdigit() and "\t" in line for _, line in lines):
            raise ValueError(
                f"[data] expected lines of text for embedding in {path}; found text<TAB>label in "
                "all of them: add --task text-classification, or take the labels away"
            )
        return [Example(line, line) for _, line in lines]

    def read_inputs(self, path: Path, limit: int | None) -> list[Example]:
        """Lines of text."""
        return self.read(path, limit)

    def encode(self, opened: Opened, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask."""
        return encode_text(opened, [example.value for example in examples])

    def headed(self, opened, batches):
        """The model ending in the embedding."""
        return self.running(opened), "the mean of the hidden states"

    def running(self, opened: Opened) -> _C.GatedModel:
        """The model ending in the embedding."""
        return _C.with_sentence_embedding(opened.gated)

    def tally(self, output, tensors, dense):
        """The cosine to the embedding with all heads."""
        return torch.cosine_similarity(output, dense, dim=-1).double()

    def results(self, opened, output, tensors):
        """The vector."""
        return [{"embedding": row} for row in output.float().tolist()]

    def summary(self, result):
        """Its first numbers."""
        values = result["embedding"]
        return f"[{', '.join(f'{value:.3f}' for value in values[:4])}, ...] of {len(values)}"

    def units(self, opened, tensors, tokens):
        """Tokens."""
        return token_names(opened, tensors)
