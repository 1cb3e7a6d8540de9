"""Head cards: what each head of a model does on several tasks, as a model hub shows it."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from headkit import _C
from headkit.files import write_text

ROLES_SHOWN = 3
HEAD = """---
library_name: headkit
tags:
- attention-heads
- interpretability
{tags}---
"""
INTRODUCTION = (
    "What is told of a head are three separate claims. **Selection**: how often a policy runs it. "
    "**Explanation**: what it looks at, with interval and the best null; a role describes, it does "
    "not say that the head matters. **Effect**: what the output loses, in the mean over inputs, "
    "when the head is taken out. Intervals are 95 %, each on its own."
)


@dataclass(frozen=True)
class HeadBehaviour:
    """What heads do on one task; None = not measured.

    Attributes:
        usage: selection, from ``headkit.head_usage``.
        roles: explanation, from ``headkit.roles``, ``image_roles`` or ``audio_roles``.
        effects: effect, what ``headkit.effects`` returned for some inputs.
    """

    usage: _C.CorpusReport | None = None
    roles: _C.RoleTable | None = None
    effects: Sequence[_C.InputEffects] | None = None


@dataclass(frozen=True)
class TaskAgreement:
    """How alike the heads of a model behave on two tasks; None = not measured on both.

    Attributes:
        tasks: their names.
        selection: rank correlation over heads of how often each runs; None also where one task runs
            all heads equally often.
        explanation: share of heads with the same labels, of those that have one on either task;
            None also where none has.
        effect: rank correlation over heads of the mean effects.
    """

    tasks: tuple[str, str]
    selection: float | None
    explanation: float | None
    effect: float | None


class HeadCards:
    """Cards of the heads of one model, in Markdown without HTML.

    Attributes:
        agreement: TaskAgreement of every two tasks.
    """

    def __init__(
        self, name: str, tasks: Mapping[str, HeadBehaviour], *, tags: Sequence[str] = ()
    ) -> None:
        self.name, self._tasks, self._tags = name, dict(tasks), list(tags)
        self._layout = _layout_of(self._tasks)
        self._effects = {
            task: _C.mean_effects(list(each.effects))
            for task, each in self._tasks.items()
            if each.effects
        }
        self.agreement = [self._agreement(*pair) for pair in itertools.combinations(self._tasks, 2)]

    def __repr__(self) -> str:
        return f"HeadCards({self._layout.total_heads} heads, {', '.join(self._tasks)})"

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def markdown(self, heads: Sequence[_C.HeadId] | None = None) -> str:
        """The cards as one page.

        Args:
            heads: whose; None = all.

        Raises:
            ValueError: for a head that the model does not have.
        """
        layout = self._layout
        every = [(lay, head) for lay in range(layout.layers) for head in range(layout.heads)]
        chosen = every if heads is None else [tuple(head) for head in heads]
        for head in chosen:
            if head not in every:
                raise ValueError(
                    f"[head_cards] expected heads of {layout.layers} layers of {layout.heads}; "
                    f"found {head}"
                )
        tags = "".join(f"- {tag}\n" for tag in self._tags)
        parts = [
            HEAD.format(tags=tags),
            f"# Head cards of {self.name}\n",
            f"{layout.layers} layers of {layout.heads} heads. {INTRODUCTION}\n",
            self._setting(),
        ]
        if self.agreement:
            parts.append(self._stability())
        parts += [self._card(*head) for head in chosen]
        return "\n".join(parts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the cards of all heads; the file appears whole or not at all.

        Raises:
            RuntimeError: if it cannot be written.
        """
        return write_text(path, self.markdown())

    def _setting(self) -> str:
        lines = []
        for name, task in self._tasks.items():
            told = []
            if task.usage is not None:
                mean = task.usage.mean_selected
                told.append(
                    f"selection on {task.usage.inputs} inputs, {mean:.1f} heads in the mean"
                )
            if task.roles is not None:
                told.append(f"roles on {task.roles.sequences} inputs")
            if name in self._effects:
                found = self._effects[name]
                told.append(
                    f"effects on {found.input} inputs ({found.metric}, ablation {found.ablation})"
                )
            lines.append(f"- {name}: {'; '.join(told)}")
        return "\n".join(lines) + "\n"

    def _stability(self) -> str:
        rows = [
            f"| {' / '.join(each.tasks)} | {_number(each.selection)} | "
            f"{_number(each.explanation)} | {_number(each.effect)} |"
            for each in self.agreement
        ]
        return "\n".join(
            [
                "## Stability across tasks\n",
                "Selection and effect: rank correlation over heads. Explanation: share of labelled "
                "heads with the same labels.\n",
                "| tasks | selection | explanation | effect |",
                "|---|---:|---:|---:|",
                *rows,
                "",
            ]
        )

    def _card(self, layer: int, head: int) -> str:
        rows = [
            f"| {name} | {self._selection(name, layer, head)} | "
            f"{self._explanation(name, layer, head)} | {self._effect(name, layer, head)} |"
            for name in self._tasks
        ]
        return "\n".join(
            [
                f"## L{layer} H{head}\n",
                "| task | selection: on, % | explanation: looks at | effect |",
                "|---|---:|---|---:|",
                *rows,
                "",
            ]
        )

    def _selection(self, name: str, layer: int, head: int) -> str:
        usage = self._tasks[name].usage
        if usage is None:
            return "not measured"
        found = usage.heads[layer * self._layout.heads + head]
        value, lower, upper = (100 * v for v in (found.frequency, found.lower, found.upper))
        return f"{value:.0f} ({lower:.0f}..{upper:.0f})"

    def _explanation(self, name: str, layer: int, head: int) -> str:
        roles = self._tasks[name].roles
        if roles is None:
            return "not measured"
        labels = roles.labels(layer, head)[:ROLES_SHOWN]
        if labels:
            return "; ".join(_role(score) for score in labels)
        # Roles without a threshold are to be ranked: the one furthest above its null is told.
        ranked = [
            (score.score - score.best_null, place)
            for place, score in enumerate(roles.heads[layer][head])
            if score.score is not None
            and score.best_null is not None
            and score.assessed
            and score.threshold is None
        ]
        if not ranked:
            return "no label"
        _, best = max(ranked)
        return f"no label; {_role(roles.heads[layer][head][best])}"

    def _effect(self, name: str, layer: int, head: int) -> str:
        if name not in self._effects:
            return "not measured"
        found = self._effects[name].heads[layer * self._layout.heads + head].toggle
        if found is None:
            return "not measured"
        interval = found.interval
        told = "" if interval is None else f" ({interval[0]:+.3g}..{interval[1]:+.3g})"
        return f"{found.frozen:+.3g}{told}"

    def _agreement(self, first: str, second: str) -> TaskAgreement:
        a, b = self._tasks[first], self._tasks[second]
        selection = effect = explanation = None
        if a.usage is not None and b.usage is not None:
            selection = _spearman(
                [head.frequency for head in a.usage.heads],
                [head.frequency for head in b.usage.heads],
            )
        if a.roles is not None and b.roles is not None:
            explanation = self._same_labels(a.roles, b.roles)
        if first in self._effects and second in self._effects:
            sides = [
                [head.toggle.frozen for head in self._effects[name].heads if head.toggle]
                for name in (first, second)
            ]
            effect = _spearman(*sides) if len(sides[0]) == len(sides[1]) else None
        return TaskAgreement((first, second), selection, explanation, effect)

    def _same_labels(self, a: _C.RoleTable, b: _C.RoleTable) -> float | None:
        same = labelled = 0
        for layer in range(self._layout.layers):
            for head in range(self._layout.heads):
                one, other = (
                    {(score.role, score.variant) for score in table.labels(layer, head)}
                    for table in (a, b)
                )
                labelled += bool(one or other)
                same += bool(one or other) and one == other
        return same / labelled if labelled else None


def head_cards(
    name: str, tasks: Mapping[str, HeadBehaviour], *, tags: Sequence[str] = ()
) -> HeadCards:
    """Cards of a model's heads: selection, explanation and effect apart, on one task or several.

    Args:
        name: of the model.
        tasks: name -> what was measured there.
        tags: for the hub, for example ``"image-classification"``.

    Returns:
        HeadCards: ``markdown()``, ``save(path)``, ``agreement`` of tasks; a notebook shows it.

    Raises:
        ValueError: for no task, a task without any measurement, or tasks of other models.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> gated = headkit.attach(transformers.BertForSequenceClassification(config).eval())
        >>> data = [{"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}]
        >>> mask = headkit.HeadMask(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]))
        >>> usage = headkit.head_usage(gated, data, headkit.MaskPolicy(mask))
        >>> cards = headkit.head_cards("tiny", {"news": headkit.HeadBehaviour(usage)})
        >>> cards
        HeadCards(8 heads, news)
        >>> print(cards.markdown([headkit.HeadId(0, 3)]).splitlines()[-1])
        | news | 100 (34..100) | not measured | not measured |
    """
    return HeadCards(name, tasks, tags=tags)


def _layout_of(tasks: Mapping[str, HeadBehaviour]) -> _C.HeadLayout:
    if not tasks:
        raise ValueError("[head_cards] expected at least one task; found none")
    layouts: dict[str, _C.HeadLayout] = {}
    sizes_of: dict[str, set[tuple[int, int]]] = {}
    for name, task in tasks.items():
        there = [each.layout for each in (task.usage, task.roles) if each is not None]
        if not there:
            raise ValueError(
                f"[head_cards] expected usage or roles of each task; found neither for {name!r}"
            )
        sizes = {(layout.layers, layout.heads) for layout in there}
        if any(len(each.heads) != there[0].total_heads for each in task.effects or ()):
            raise ValueError(
                f"[head_cards] expected effects of {there[0].total_heads} heads; found others for "
                f"{name!r}"
            )
        layouts[name], sizes_of[name] = there[0], sizes
    if len(set().union(*sizes_of.values())) > 1:
        told = {name: sorted(sizes) for name, sizes in sizes_of.items()}
        raise ValueError(f"[head_cards] expected tasks of one model; found layers and heads {told}")
    return layouts[next(iter(tasks))]


def _role(score: _C.RoleScore) -> str:
    told = f"{score.role} {score.variant}".strip()
    interval = "" if score.lower is None else f" ({score.lower:.2f}..{score.upper:.2f})"
    null = "" if score.best_null is None else f", null {score.best_null:.2f}"
    return f"{told} {score.score:.2f}{interval}{null}"


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    found = _C.spearman(list(a), list(b)) if len(a) > 1 else math.nan
    return None if math.isnan(found) else found


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:+.2f}"
