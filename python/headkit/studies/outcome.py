"""What a model says about every test sentence, and what follows from it."""

from dataclasses import dataclass
from typing import Any

import torch

from headkit.demo.encoder import Part


@dataclass(frozen=True)
class Outcome:
    """Logits of a model on one part of the data.

    Attributes:
        logits: float64 [N, classes], in the order of the part.
        labels: int64 [N].
    """

    logits: torch.Tensor
    labels: torch.Tensor

    @property
    def right(self) -> torch.Tensor:
        """Bool [N]."""
        return self.logits.argmax(1) == self.labels

    @property
    def accuracy(self) -> float:
        """Share of sentences that are right."""
        return float(self.right.double().mean())

    @property
    def loss(self) -> float:
        """Mean cross entropy."""
        return float(torch.nn.functional.cross_entropy(self.logits, self.labels))

    @property
    def one_class(self) -> float:
        """Largest share of sentences that are given one class: 1 = a constant answer."""
        return float(self.logits.argmax(1).bincount().max() / len(self.labels))

    def kl_from(self, dense: "Outcome") -> torch.Tensor:
        """KL(dense || this) of every sentence, float64 [N]."""
        reference, own = dense.logits.log_softmax(1), self.logits.log_softmax(1)
        return (reference.exp() * (reference - own)).sum(1)

    def flips_from(self, dense: "Outcome") -> float:
        """Share of sentences with another class than the dense model's."""
        return float((self.logits.argmax(1) != dense.logits.argmax(1)).double().mean())

    def to_json(self) -> list[list[float]]:
        """The logits, rounded to seven places; labels belong to the data."""
        return [[round(value, 7) for value in row] for row in self.logits.tolist()]

    @staticmethod
    def from_json(logits: list[list[float]], labels: torch.Tensor) -> "Outcome":
        """What ``to_json`` gave."""
        return Outcome(torch.tensor(logits, dtype=torch.float64), labels)


@torch.no_grad()
def outcome_of(model: torch.nn.Module, part: Part, gates: Any = None) -> Outcome:
    """Run a classifier over a part of the data.

    Args:
        model: of transformers, attached.
        part: the data.
        gates: what ``headkit.gates`` takes; None = all heads.
    """
    import contextlib

    from headkit.huggingface import gates as gated

    model.eval()
    context = contextlib.nullcontext() if gates is None else gated(model, gates)
    rows = []
    with context:
        for batch in part.batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            rows.append(model(**inputs).logits.double())
    return Outcome(part.in_order(rows), part.labels)
