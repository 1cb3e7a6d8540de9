"""What a torch optimiser remembers of parameters, cut as heads and neurons are cut out of them."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from headkit import _C
from headkit.huggingface.adapter import Weights
from headkit.huggingface.neurons import NeuronSite
from headkit.huggingface.staged_model import StagedModel
from headkit.huggingface.structure import Site

# A parameter: its block (of attention, or a feed-forward one, by number), path below it.
Place = tuple[tuple[str, int], str]


class _Mirror(StagedModel):
    """The blocks of a model with other tensors in place of their parameters."""

    def __init__(self, gated: StagedModel, values: dict[int, torch.Tensor]):
        sites = tuple(
            replace(site, module=_with_values(site, values)) for site in gated.structure.sites
        )
        super().__init__(replace(gated.structure, sites=sites))
        self.feed_forwards = [_with_values_of_maps(site, values) for site in gated.feed_forwards]
        self._present = gated.heads()

    def heads(self) -> _C.HeadMask:
        return self._present

    def replace_attention(self, layer: int, weights: _C.AttentionWeights, kept: list[int]) -> None:
        site = self.structure.sites[layer]
        values = Weights(*(getattr(weights, name) for name in Weights._fields))
        site.adapter.assign(site.module, values, len(kept))

    def replace_feed_forward(
        self, layer: int, weights: _C.FeedForwardWeights, kept: list[int]
    ) -> None:
        self.feed_forwards[layer].assign(weights, kept)

    def set_sublayers(self, open: _C.Sublayers) -> None:
        pass


@dataclass(frozen=True)
class StateCut:
    """What becomes of an optimiser when heads, neurons or blocks go.

    Attributes:
        optimizer: the optimiser; unchanged until ``carry_over``.
        before: parameters of all attention and feed-forward blocks.
        states: by place, the state after the cut of each parameter that has one.
    """

    optimizer: torch.optim.Optimizer
    before: dict[Place, nn.Parameter]
    states: dict[Place, dict[str, Any]]

    def carry_over(self, gated: StagedModel) -> None:
        """Put the parameters that the model has now in place of those that it had.

        Blocks that shared a parameter each have their own now. An output bias that is new trains in
        the group of its weight.
        """
        after = _parameters(gated)
        heirs: dict[int, dict[int, Place]] = {}
        for place, old in self.before.items():
            heirs.setdefault(id(old), {}).setdefault(id(after[place]), place)
        for group in self.optimizer.param_groups:
            names = group.get("param_names")
            params, param_names = [], []
            for number, old in enumerate(group["params"]):
                places = list(heirs.get(id(old), {}).values())
                params += [after[place] for place in places] or [old]
                if names is not None:
                    one_name = len(places) < 2
                    param_names += [names[number]] if one_name else _paths(gated, places)
            for block, name in after.keys() - self.before.keys():
                weight = after[block, f"{name.rpartition('.')[0]}.weight"]
                if any(one is weight for one in params):
                    params.append(after[block, name])
                    param_names += _paths(gated, [(block, name)])
            group["params"][:] = params
            if names is not None:
                names[:] = param_names
        for old in self.before.values():
            self.optimizer.state.pop(old, None)
        for places in heirs.values():
            for place in places.values():
                if place in self.states:
                    state = self.states[place]
                    self.optimizer.state[after[place]] = state if len(places) == 1 else _own(state)


def cut_state(
    gated: StagedModel, gates: _C.HeadMask | _C.GateSet, optimizer: torch.optim.Optimizer
) -> StateCut:
    """Cut the state of an optimiser as ``remove_units`` cuts the parameters; nothing is changed.

    Args:
        gated: the model, with its heads.
        gates: the heads that stay, or static gates, each 0 or 1.
        optimizer: of parameters of the model.

    Raises:
        ValueError: if a gate is neither, if it is no torch optimiser, trains nothing of the model,
            or remembers something of a parameter that has another shape; or the gates do not fit.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"[apply] expected a torch optimiser; found {type(optimizer).__name__}")
    for name, gate in _units(gates).items():
        if not bool(((gate == 0) | (gate == 1)).all()):
            raise ValueError(
                f"[apply] expected {name} at 0 or 1 beside an optimiser, whose state would not fit "
                "scaled weights; found others (prune without it and make a new one)"
            )
    trained = [one for group in optimizer.param_groups for one in group["params"]]
    if not {id(one) for one in trained} & {id(one) for one in gated.model.parameters()}:
        raise ValueError(
            "[apply] expected an optimiser of this model's parameters; found one of others"
        )
    # All of them, not only those that are cut: some optimisers remember everything in one place.
    shaped = {
        id(one): {
            name: value
            for name, value in optimizer.state.get(one, {}).items()
            if _has_shape(optimizer, name, value, one)
        }
        for one in trained
    }
    before = _parameters(gated)
    states = {
        place: dict(optimizer.state[one])
        for place, one in before.items()
        if optimizer.state.get(one)
    }
    shapes = {place: one.shape for place, one in _cut(gated, gates, {}).items()}
    smaller = [place for place in states if shapes[place] != before[place].shape]
    for name in sorted({name for place in smaller for name in shaped[id(before[place])]}):
        values = {key: kept[name] for key, kept in shaped.items() if name in kept}
        parts = _cut(gated, gates, values)
        for place in smaller:
            if name in shaped[id(before[place])]:
                states[place][name] = parts[place].detach()
    return StateCut(optimizer, before, states)


def _paths(gated: StagedModel, places: list[Place]) -> list[str]:
    paths = {id(module): path for path, module in gated.model.named_modules()}
    found = []
    for (kind, number), name in places:
        if kind == "attention":
            found.append(f"{gated.structure.sites[number].path}.{name}")
        else:
            part, _, own = name.partition(".")
            found.append(f"{paths[id(getattr(gated.feed_forwards[number], part))]}.{own}")
    return found


def _own(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }


def _parameters(gated: StagedModel) -> dict[Place, nn.Parameter]:
    of_attention = {
        (("attention", number), name): parameter
        for number, site in enumerate(gated.structure.sites)
        for name, parameter in site.module.named_parameters()
    }
    of_neurons = {
        (("feed_forward", site.number), f"{part}.{name}"): parameter
        for site in gated.feed_forwards
        for part in ("inner", "out", "up")
        if getattr(site, part) is not None
        for name, parameter in getattr(site, part).named_parameters()
    }
    return of_attention | of_neurons


def _cut(
    gated: StagedModel, gates: _C.HeadMask | _C.GateSet, values: dict[int, torch.Tensor]
) -> dict[Place, nn.Parameter]:
    """The parameters of the blocks, or the values that stand for them, without what goes."""
    mirror = _Mirror(gated, values)
    if isinstance(gates, _C.HeadMask):
        _C.remove_heads(mirror, gates, None)
    else:
        # Mean outputs fold into biases of the model, not into what is remembered of these.
        _C.remove_units(mirror, _C.GateSet(**_units(gates)))
    return _parameters(mirror)


def _units(gates: _C.HeadMask | _C.GateSet) -> dict[str, torch.Tensor]:
    if isinstance(gates, _C.HeadMask):
        return {}
    names = ("heads", "blocks", "neurons", "attention_sublayers", "feed_forward_sublayers")
    return {name: gate for name in names if (gate := getattr(gates, name)) is not None}


def _with_values(site: Site, values: dict[int, torch.Tensor]) -> nn.Module:
    known: dict[int, Any] = {
        id(one): nn.Parameter(values[id(one)], requires_grad=False) if id(one) in values else one
        for one in site.module.parameters()
    }
    config = site.adapter.config(site.module)
    return copy.deepcopy(site.module, {**known, id(config): config})


def _with_values_of_maps(site: NeuronSite, values: dict[int, torch.Tensor]) -> NeuronSite:
    def copied(part: nn.Module | None) -> nn.Module | None:
        if part is None:
            return None
        known = {
            id(one): nn.Parameter(values[id(one)], requires_grad=False)
            if id(one) in values
            else one
            for one in part.parameters()
        }
        return copy.deepcopy(part, known)

    return replace(site, inner=copied(site.inner), out=copied(site.out), up=copied(site.up))


def _has_shape(
    optimizer: torch.optim.Optimizer, name: str, value: Any, parameter: nn.Parameter
) -> bool:
    """Whether a value is to be cut with its parameter; others are one number each."""
    if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return True
    if value is None or isinstance(value, bool | int | float):
        return False
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        return False
    found = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps optimisers
    raise ValueError(
        f"[apply] expected an optimiser whose state has the shape of its parameter, "
        f"{list(parameter.shape)}; found {name} of {type(inner).__name__}: {found} (prune without "
        "it and make a new one)"
    )
