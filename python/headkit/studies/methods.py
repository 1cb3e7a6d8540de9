"""Every static pruning method as the study runs it: its settings, and on how much data."""

from dataclasses import dataclass, field
from typing import Any

from headkit import _C

RANDOM = "random"
# Calibration sentences of methods whose cost grows with heads times forwards; others take them all.
SENTENCES = {
    "ablation": 256,
    "all_but_one": 256,
    "backward_elimination": 128,
    "greedy_gnorm": 64,
    "iterative": 256,
    "shapley": 64,
}
# What keeps a method within minutes for one model and share.
SETTINGS: dict[str, dict[str, Any]] = {
    "backward_elimination": {"step": 6, "shortlist": 18},
    "cofi": {"steps": 100},
    "fixed_target": {"steps": 100},
    "iterative": {"step": 6},
    "shapley": {"permutations": 4},
    "subset": {"steps": 100},
    "voita": {"rounds": 3, "steps": 60},
}
# Methods that are another one with settings of its own. Michel 2019 ranks all heads of a model
# after dividing by the norm of their layer; absolute values are by token in the released code.
MICHEL = "michel"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    MICHEL: ("gate_gradient", {"granularity": "token", "normalization": "layer_l2"}),
}
COMPENSATED = "+mean"
# Heads go one after the other: a larger share is the beginning of the way to a smaller one.
BY_REMOVAL = ("backward_elimination", "iterative")


@dataclass(frozen=True)
class Method:
    """A pruning method and how it is called.

    Attributes:
        label: in tables: its name in ``headkit.pruners()`` or that of a variant, ``+mean`` where
            mean outputs replace what goes.
        name: in ``headkit.pruners()``.
        sentences: calibration sentences that it sees at most; None = all.
        settings: its own, as ``headkit.prune`` takes them.
    """

    label: str
    name: str
    sentences: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def compensate(self) -> bool:
        """Whether mean outputs replace what goes."""
        return self.label.endswith(COMPENSATED)

    @property
    def one_shot(self) -> bool:
        """Whether it scores once, so that one scoring serves every budget."""
        return self.name in _C.scorers()

    @property
    def by_removal(self) -> bool:
        """Whether one search, to the smallest share, serves every budget."""
        return self.name in BY_REMOVAL

    @property
    def budget(self) -> str:
        """What the share that it keeps is a share of."""
        return _C.pruners()[self.name].get("budget", "heads")

    def to_json(self) -> dict[str, Any]:
        """What results depend on."""
        return {
            "name": self.name,
            "compensate": self.compensate,
            "sentences": self.sentences,
            "settings": self.settings,
        }


def method_of(label: str) -> Method:
    """A method as the study calls it.

    Args:
        label: a name in ``headkit.pruners()`` or ``michel``, with or without ``+mean``.

    Raises:
        ValueError: for another name.

    Example:
        >>> method_of("ablation+mean").compensate
        True
    """
    plain = label.removesuffix(COMPENSATED)
    name, own = VARIANTS.get(plain, (plain, {}))
    if name not in _C.pruners():
        raise ValueError(
            f"[static] expected methods among {', '.join((*VARIANTS, *_C.pruners()))}, with or "
            f"without {COMPENSATED}; found {label!r}"
        )
    return Method(label, name, SENTENCES.get(name), SETTINGS.get(name, {}) | own)


def all_methods() -> tuple[str, ...]:
    """Labels of everything that is registered, and of some with mean outputs beside."""
    names = (*VARIANTS, *_C.pruners())
    beside = (RANDOM, MICHEL, "gate_gradient", "ablation", "backward_elimination")
    return names + tuple(name + COMPENSATED for name in beside if name in names)


def tuned_methods() -> tuple[str, ...]:
    """Labels of the six methods that are fine-tuned after pruning, as far as registered."""
    wanted = (
        *(RANDOM, MICHEL, "flap", "backward_elimination"),
        *("backward_elimination+mean", "subset", "fixed_target", "fisher"),
    )
    known = set(all_methods())
    return tuple(label for label in wanted if label in known)[:6]
