"""The reaction model of RXNMapper: does its mapping head still find each atom?"""

import random
from functools import cached_property
from typing import Any

import torch

from headkit import _C
from headkit.cli.model_source import find_model
from headkit.cli.tasks.task import cut
from headkit.head_roles import for_each_attention
from headkit.huggingface import attach
from headkit.studies.domain import Domain, Tally
from headkit.studies.dynamic_task import Batch, Opened, frozen, inputs_of
from headkit.studies.reactions import Reaction, condensations, partners_of

SIZES = {"train": 32, "validation": 16, "test": 64}
BATCH, HIDDEN = 8, 4
# What the package maps atoms by (Schwaller et al. 2021).
LAYER, HEAD = 10, 5


class Chemistry(Domain):
    """Atoms of products that the mapping head assigns to the right atom of a reactant."""

    NAME = "chemistry"
    MODEL = "rxnmapper ALBERT"
    MEASURE = "share of atoms mapped right"
    ASSET = "rxnmapper"

    @property
    def configuration(self) -> dict[str, Any]:
        """The model, and the reactions."""
        return {"model": self.ASSET, "reactions": [each.smiles for each in self._parts["test"]]}

    @cached_property
    def _parts(self) -> dict[str, list[Reaction]]:
        """Reactions in a random order, none in two parts."""
        reactions = condensations()
        random.Random(self.seed).shuffle(reactions)
        parts, first = {}, 0
        for name, count in SIZES.items():
            parts[name] = reactions[first : first + count][: self.limit]
            first += count
        return parts

    @cached_property
    def _tokenizer(self) -> Any:
        return find_model(self.ASSET).load_processor("AutoTokenizer")

    def plain(self) -> torch.nn.Module:
        """A fresh copy of the model as transformers made it, frozen."""
        return frozen(find_model(self.ASSET).load("AutoModelForMaskedLM"))

    def open(self) -> Opened:
        """A fresh copy, attached and frozen."""
        module = self.plain()
        attached = attach(module)
        return Opened(module, attached, attached)

    def batches(self, part: str) -> list[Batch]:
        """Reactions; to learn from with every fourth token hidden, each hidden once."""
        found = []
        for places in cut(range(len(self._parts[part])), BATCH):
            texts = [self._parts[part][place].smiles for place in places]
            batch = dict(self._tokenizer(texts, padding=True, return_tensors="pt"))
            if part == "test":
                found.append(batch | {"example_id": torch.tensor(places)})
            else:
                found += [self._masked(batch, shift) for shift in range(HIDDEN)]
        return found

    def _masked(self, batch: Batch, shift: int) -> Batch:
        ids, kept = batch["input_ids"], batch["attention_mask"].bool()
        hidden = (torch.arange(ids.shape[1]) % HIDDEN == shift) & kept
        special = torch.tensor(self._tokenizer.all_special_ids)
        hidden &= ~torch.isin(ids, special)
        return batch | {
            "input_ids": ids.masked_fill(hidden, self._tokenizer.mask_token_id),
            "labels": ids.masked_fill(~hidden, -100),
        }

    def tally(self, opened: Opened, batch: Batch, gates: _C.GateSet) -> Tally:
        """Atoms of each product that are mapped right, over all of them."""
        looked: dict[int, torch.Tensor] = {}

        def visit(rows: _C.SampleAttention) -> None:
            if rows.layer == LAYER:
                looked[rows.row] = rows.probabilities[list(rows.heads).index(HEAD)].clone()

        for_each_attention(opened.gated, [batch], visit, gates=gates)
        found = []
        for row, place in enumerate(batch["example_id"].tolist()):
            targets, candidates = partners_of(self._parts["test"][place], self._tokenizer)
            atoms = [token for token, target in enumerate(targets) if target >= 0]
            best = looked[row][atoms][:, candidates].argmax(1).tolist()
            right = sum(
                candidates[b] == targets[token] for b, token in zip(best, atoms, strict=True)
            )
            found.append((right, len(atoms)))
        return Tally(*torch.tensor(found, dtype=torch.float64).T)

    def forward(self, module: torch.nn.Module, batch: Batch) -> Any:
        """Logits of all tokens."""
        inputs = {n: v for n, v in inputs_of(batch).items() if n != "example_id"}
        return module(**inputs).logits
