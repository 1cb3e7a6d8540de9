"""Syntactic roles of a model as tables of a page."""

from collections.abc import Iterable, Sequence
from typing import Any

from headkit import _C
from headkit.known_roles import syntactic_labels
from headkit.studies.tables import interval, table

DIRECTIONS = {"row": "dependent to head", "column": "head to dependent"}


def roles_parts(
    found: _C.RoleTable, syntax: Sequence[_C.SequenceSyntax], model: str, treebank: str
) -> dict[str, str]:
    """The parts of the page: setting, heads, relations, limits.

    Args:
        found: what ``syntactic_roles`` returned.
        syntax: the sequences that it saw.
        model, treebank: their names.
    """
    return {
        "setting": _setting(found, syntax, model, treebank),
        "heads": _heads(found),
        "relations": _relations(found, syntax),
        "limits": _limits(found),
    }


def roles_markdown(parts: dict[str, str]) -> str:
    """All parts, each under its name."""
    return "\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items()) + "\n"


def _setting(
    found: _C.RoleTable, syntax: Sequence[_C.SequenceSyntax], model: str, treebank: str
) -> str:
    words = sum(len(each.head_of_word) for each in syntax)
    arcs = sum(head >= 0 for each in syntax for head in each.head_of_word)
    skipped = sum(each.skipped_arcs for each in syntax)
    return (
        f"{model}, {found.layout.layers} layers of {found.layout.heads} heads; {treebank}, "
        f"{len(syntax):,} sentences, {words:,} words, {arcs:,} arcs in the tokens of the model, "
        f"{skipped:,} skipped. Registry of roles {found.registry_version}, seed {found.seed}."
    )


def _name(layer: int, head: int) -> str:
    return f"L{layer} H{head}"


def _offset(score: _C.RoleScore, baseline: float) -> str:
    return f"{100 * baseline:.1f} ({score.details['best_offset']:+.0f})"


def _null(score: _C.RoleScore, name: str) -> float:
    return next((null.value for null in score.nulls if null.name == name), float("nan"))


def _heads(found: _C.RoleTable) -> str:
    body = []
    for layer, head, score in syntactic_labels(found):
        relation, direction = score.variant.split("/")
        baseline = _null(score, "best_offset")
        body.append(
            [
                f"`{relation}`",
                DIRECTIONS[direction],
                _name(layer, head),
                interval(score.score, score.lower, score.upper),
                _offset(score, baseline),
                f"{100 * (score.score - baseline):+.1f}",
                f"{100 * score.details['score_where_chosen']:.1f}",
                f"{score.rows:,}",
            ]
        )
    if not body:
        return "None."
    titles = ["relation", "looks from", "head", "% right", "best offset", "points over it"]
    return table([*titles, "where chosen", "arcs"], body)


def _all_scores(found: _C.RoleTable) -> Iterable[tuple[int, int, Any]]:
    for layer, heads in enumerate(found.heads):
        for head, scores in enumerate(heads):
            for score in scores:
                if score.role == "syntactic" and score.assessed:
                    yield layer, head, score


def _relations(found: _C.RoleTable, syntax: Sequence[_C.SequenceSyntax]) -> str:
    """For each relation the head that is best where heads are chosen, as it does elsewhere."""
    best: dict[str, tuple[int, int, Any]] = {}
    for layer, head, score in _all_scores(found):
        relation = score.variant.split("/")[0]
        if relation not in best or (
            score.details.get("score_where_chosen", 0)
            > best[relation][2].details.get("score_where_chosen", 0)
        ):
            best[relation] = (layer, head, score)
    whole = {each.relation: each for each in _C.offset_baselines(list(syntax), list(syntax))}
    body = []
    for relation, each in whole.items():
        if relation not in best:
            continue
        layer, head, score = best[relation]
        body.append(
            [
                f"`{relation}`",
                f"{each.arcs:,}",
                f"{100 * each.accuracy:.1f} ({each.offset:+d})",
                f"{_name(layer, head)}, {DIRECTIONS[score.variant.split('/')[1]]}",
                interval(score.score, score.lower, score.upper),
                _offset(score, _null(score, "best_offset")),
                f"{100 * _null(score, 'uniform'):.1f}",
                f"{100 * _null(score, 'best_of_n'):.1f}",
                "yes" if score.assigned else "no",
            ]
        )
    titles = ["relation", "arcs", "best offset, all arcs", "best head", "% right"]
    return table([*titles, "best offset", "uniform", "best of shuffled", "label"], body)


def _limits(found: _C.RoleTable) -> str:
    caution = _C.role_registry()["syntactic"]["caution"]
    lines = [f"{caution[0].upper()}{caution[1:]}.", *found.warnings]
    return "\n".join(f"* {line}" for line in lines)
