"""Gradients along the residual stream alone: what heads write straight to the output."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

# Whether runs of this thread let gradients through the residual stream only.
_ONLY_DIRECT: ContextVar[bool] = ContextVar("headkit_only_direct", default=False)


def reads_constants() -> bool:
    """Whether blocks that run now read constants, because only direct paths count."""
    return not torch.compiler.is_compiling() and _ONLY_DIRECT.get()


def as_constant(values: torch.Tensor | None) -> torch.Tensor | None:
    """What a block reads, without a gradient."""
    return None if values is None else values.detach()


@contextmanager
def only_direct_paths(model: nn.Module, maps: Iterable[nn.Module]) -> Iterator[None]:
    """Let gradients of this thread's runs flow along the residual stream alone.

    Blocks read constants; norms keep their scale, LayerNorm still centres. Outputs stay as they
    are. Hooks are there while it is open, and do nothing in other threads.

    Args:
        model: an attached model with one stack of layers.
        maps: the linear maps that its feed-forward blocks begin with.
    """
    hooks = [linear.register_forward_pre_hook(_read_constant) for linear in maps]
    norms = [module for module in model.modules() if _is_norm(module)]
    hooks += [norm.register_forward_hook(_keep_scale) for norm in norms]
    token = _ONLY_DIRECT.set(True)
    try:
        yield
    finally:
        _ONLY_DIRECT.reset(token)
        for hook in hooks:
            hook.remove()


def _is_norm(module: nn.Module) -> bool:
    known = isinstance(module, nn.LayerNorm | nn.RMSNorm)
    return known or type(module).__name__.endswith("RMSNorm")


def _read_constant(module: nn.Module, args: tuple) -> tuple | None:
    return (as_constant(args[0]), *args[1:]) if reads_constants() else None


def _keep_scale(norm: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor | None:
    if not reads_constants() or not args[0].requires_grad:
        return None
    hidden = args[0]
    if isinstance(norm, nn.LayerNorm):
        axes = tuple(range(-len(norm.normalized_shape), 0))
        centred = hidden - hidden.mean(axes, keepdim=True)
        scale = (centred.detach().square().mean(axes, keepdim=True) + norm.eps).rsqrt()
        normed = centred * scale
        normed = normed if norm.weight is None else normed * norm.weight.detach()
        return normed if norm.bias is None else normed + norm.bias
    # An RMS norm multiplies every feature by one number.
    known = hidden.detach()
    factor = torch.where(known == 0, torch.zeros_like(known), output.detach() / known)
    return hidden * factor
