"""Copies of module trees that share everything but a few named modules."""

import copy
from collections import OrderedDict
from collections.abc import Mapping

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def shallow(module: nn.Module, **children: nn.Module | None) -> nn.Module:
    """A copy of ``module`` that shares everything but the named children."""
    clone = object.__new__(type(module))
    clone.__dict__.update(module.__dict__)
    clone.__dict__["_modules"] = {**module._modules, **children}
    return clone


def with_modules(module: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of ``module`` in which the submodules at these dotted paths are others."""
    if "" in replaced:
        return replaced[""]
    below: dict[str, dict[str, nn.Module]] = {}
    for path, value in replaced.items():
        first, _, rest = path.partition(".")
        below.setdefault(first, {})[rest] = value
    return shallow(
        module,
        **{name: with_modules(module._modules[name], inner) for name, inner in below.items()},
    )


def own_modules(module: nn.Module) -> nn.Module:
    """A copy with modules of its own, all the way down, and the same parameters and buffers."""
    children = {
        name: None if child is None else own_modules(child)
        for name, child in module._modules.items()
    }
    clone = shallow(module, **children)
    for name, value in vars(module).items():
        if isinstance(value, dict) and name != "_modules":
            clone.__dict__[name] = copy.copy(value)
    return clone


def without_hooks(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares parameters and has no hooks, all the way down."""
    children = {
        name: None if child is None else without_hooks(child)
        for name, child in module._modules.items()
    }
    clone = shallow(module, **children)
    clone.__dict__.update({name: OrderedDict() for name in HOOKS}, training=False)
    return clone
