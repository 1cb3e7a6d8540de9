"""Sentences as batches, and the sentence probe on dense embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headkit import _C
from headkit.demo.reviews import Review

MAX_TOKENS = 128


@dataclass(frozen=True)
class Part:
    """One part of the data, tokenised.

    Attributes:
        reviews: in the order of the part.
        labels: int64 [N].
        tokens: valid tokens of each sentence, int64 [N].
        batches: dictionaries of tensors, sentences of similar length together.
        order: place in ``reviews`` of each sentence, by batch.
    """

    reviews: list[Review]
    labels: torch.Tensor
    tokens: torch.Tensor
    batches: list[dict[str, torch.Tensor]]
    order: list[torch.Tensor]

    def in_order(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows of the batches' outputs in the order of ``reviews``."""
        joined = torch.cat(list(outputs))
        result = torch.empty_like(joined)
        result[torch.cat(self.order)] = joined
        return result


def encode(tokenizer: Any, reviews: Sequence[Review]) -> dict[str, torch.Tensor]:
    """One padded batch with labels."""
    batch = tokenizer(
        [review.text for review in reviews],
        padding=True,
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    )
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {**batch, "labels": torch.tensor([review.label for review in reviews])}


def tokenise(tokenizer: Any, reviews: Sequence[Review], batch_size: int) -> Part:
    """Batches of similar length, so that little is padding."""
    lengths = [len(ids) for ids in tokenizer([r.text for r in reviews])["input_ids"]]
    order = sorted(range(len(reviews)), key=lambda place: (lengths[place], place))
    places = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    return Part(
        reviews=list(reviews),
        labels=torch.tensor([review.label for review in reviews]),
        tokens=torch.tensor(lengths).clamp(max=MAX_TOKENS),
        batches=[encode(tokenizer, [reviews[place] for place in group]) for group in places],
        order=[torch.tensor(group) for group in places],
    )


def embed(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sentence embeddings by the model's own forward, [B, D]."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hidden = model(**inputs).last_hidden_state
    return _C.sentence_embedding(hidden, batch["attention_mask"].to(torch.bool))


@dataclass(frozen=True)
class Probe:
    """A two-class linear classifier on sentence embeddings.

    Attributes:
        weight: float32 [2, D]; the rows are minus and plus half of the regression's.
        bias: float32 [2].
        strength: inverse regularisation C, chosen on the calibration part.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    strength: float

    def logits(self, embedding: torch.Tensor) -> torch.Tensor:
        """[N, 2]."""
        return torch.nn.functional.linear(embedding, self.weight, self.bias)


def fit_probe(
    train: torch.Tensor,
    labels: torch.Tensor,
    calibration: torch.Tensor,
    calibration_labels: torch.Tensor,
    strengths: Sequence[float] = (1.0, 3.0, 10.0, 30.0),
) -> Probe:
    """Logistic regression by scikit-learn; its strength is the best one on ``calibration``.

    Raises:
        ValueError: if there is only one label.
    """
    from sklearn.linear_model import LogisticRegression

    if len(torch.unique(labels)) != 2:
        raise ValueError(
            f"[probe] expected examples of two labels; found {torch.unique(labels).tolist()}"
        )
    fits = [
        LogisticRegression(C=strength, max_iter=5000).fit(train.numpy(), labels.numpy())
        for strength in strengths
    ]
    right = [fit.score(calibration.numpy(), calibration_labels.numpy()) for fit in fits]
    best = max(range(len(fits)), key=lambda place: (right[place], -strengths[place]))
    half = torch.tensor(fits[best].coef_[0] / 2, dtype=torch.float32)
    offset = torch.tensor(fits[best].intercept_[0] / 2, dtype=torch.float32)
    return Probe(torch.stack([-half, half]), torch.stack([-offset, offset]), strengths[best])
