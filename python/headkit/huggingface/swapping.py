"""Changing what a module does by changing its class: parameters, hooks, names and mode stay."""

from functools import cache

from torch import nn


@cache
def gated_class(mixin: type, original: type) -> type:
    """The class that an ``original`` module gets while it is attached.

    A subclass of the original's, so that transformers still records its outputs.
    """
    return type(f"Gated{original.__name__}", (mixin, original), {"__module__": mixin.__module__})


def _restore(mixin: type, original: type) -> nn.Module:
    cls = gated_class(mixin, original)
    return cls.__new__(cls)


class Swapped:
    """Base of the mixins."""

    def __reduce__(self):
        mixin, original = type(self).__bases__
        return _restore, (mixin, original), self.__dict__.copy()


def swap_in(module: nn.Module, mixin: type) -> None:
    """Make ``module`` behave as ``mixin`` says."""
    module.__class__ = gated_class(mixin, type(module))


def swap_out(module: nn.Module) -> None:
    """Give ``module`` its own class back."""
    module.__class__ = original_class(module)


def original_class(module: nn.Module) -> type:
    """The class that a module has, or had before it was swapped."""
    return type(module).__bases__[1] if isinstance(module, Swapped) else type(module)
