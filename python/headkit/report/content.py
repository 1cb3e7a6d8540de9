"""What a report shows, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sentence:
    """One input and what each policy decided for it.

    Attributes:
        text: as the reader knows it.
        tokens: of the model, special ones included.
        label, prediction: what it is and what the dense model says, in words.
        note: one line about why it is shown.
        decisions: policy name -> decision record, the dictionary that ``to_json`` writes.
    """

    text: str
    tokens: Sequence[str]
    label: str
    prediction: str
    note: str
    decisions: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        title, summary: head of the page; ``summary`` is a list of sentences.
        scores: importance of every head, [layers][heads]; larger = more important.
        score_label: what was measured.
        rows: the measured models, dictionaries with ``name``, ``mean_heads``, ``probe_accuracy``,
            ``agreement``, ``cosine``, ``useful_flops`` and ``ms``; the first is dense.
        sentences: inputs with their decisions.
        method: paragraphs that say how it was measured.
        facts: versions, seeds, sizes; name -> text.
    """

    title: str
    summary: Sequence[str]
    scores: Sequence[Sequence[float]]
    score_label: str
    rows: Sequence[Mapping[str, Any]]
    sentences: Sequence[Sentence] = ()
    method: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
