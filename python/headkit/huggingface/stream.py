"""Gates of the dimensions of the residual stream, where all that touches it is known."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from headkit.gating import Attachment, Call
from headkit.huggingface.attention_block import call_of_block
from headkit.huggingface.structure import Structure

# On a module that writes to the stream or norms it: what its hooks need.
STREAM = "headkit_stream"


@dataclass(frozen=True)
class StreamPaths:
    """Where a family touches the residual stream, beside its attention and feed-forward blocks.

    Attributes:
        start: paths below the base model; the first that is there begins the stream: a LayerNorm of
            what is embedded, or a Linear that projects it.
        norms: paths below a layer of the LayerNorms through which all goes that a layer writes.
    """

    start: tuple[str, ...]
    norms: tuple[str, ...]


@dataclass(frozen=True)
class StreamBlock:
    """What the hooks of a module need.

    Attributes:
        attachment: its model.
    """

    attachment: Attachment


def find_stream(structure: Structure, width: int) -> tuple[nn.Module, list[nn.Module]] | None:
    """What begins the residual stream of a model, and its norms; None if they are not known.

    Args:
        structure: of the model.
        width: of the stream, D.
    """
    adapter, layers = structure.sites[0].adapter, structure.layers()
    paths: StreamPaths | None = adapter.STREAM
    if paths is None or len(structure.stacks) != 1 or any(site.cross for site in structure.sites):
        return None
    base = structure.module(structure.base)
    start = next((one for path in paths.start if (one := _at(base, path)) is not None), None)
    norms = [_at(structure.module(layer), path) for layer in layers for path in paths.norms]
    normed = [one for one in norms if isinstance(one, nn.LayerNorm)]
    known = isinstance(start, nn.LayerNorm | nn.Linear) and len(normed) == len(norms)
    if not known or any(one.normalized_shape != (width,) for one in normed):
        return None
    wide = start.normalized_shape if isinstance(start, nn.LayerNorm) else (start.out_features,)
    return (start, normed) if tuple(wide) == (width,) else None


def hook_stream(start: nn.Module, norms: list[nn.Module], attachment: Attachment) -> None:
    """Gate the stream where it begins and where it is normed."""
    known: StreamBlock | None = vars(start).get(STREAM)
    if known is not None and known.attachment is attachment:
        return
    for module in (start, *norms):
        unhook_stream(module)
        setattr(module, STREAM, StreamBlock(attachment))
    if isinstance(start, nn.LayerNorm):
        start.register_forward_pre_hook(_gate_input)
        start.register_forward_hook(_norm_open)
    else:
        start.register_forward_hook(_gate_output)
    for norm in norms:
        norm.register_forward_hook(_norm_open)


def unhook_stream(module: nn.Module) -> None:
    """Take the hooks of ``hook_stream`` from a module, if it has some."""
    vars(module).pop(STREAM, None)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in _HOOKS]:
            del hooks[key]


def norm_open_dimensions(
    norm: nn.LayerNorm, hidden: torch.Tensor, gate: torch.Tensor
) -> torch.Tensor:
    """LayerNorm with the statistics of the open dimensions alone, times the gates; closed are 0."""
    if torch.compiler.is_compiling():  # sizes must not depend on data
        is_open = (gate.detach() != 0).to(hidden.dtype)
        count = is_open.sum().clamp_min(1)
        centred = (hidden - (hidden * is_open).sum(-1, keepdim=True) / count) * is_open
        variance = centred.square().sum(-1, keepdim=True) / count
        normed = centred * (variance + norm.eps).rsqrt() * norm.weight
        normed = normed if norm.bias is None else normed + norm.bias
        return (normed * gate.to(normed)).to(hidden.dtype)
    kept = gate.detach().nonzero().flatten()
    bias = None if norm.bias is None else norm.bias[kept]
    normed = hidden[..., kept]
    if len(kept):
        normed = functional.layer_norm(normed, (len(kept),), norm.weight[kept], bias, norm.eps)
    gated = normed * gate[kept].to(normed)
    return gated.new_zeros(hidden.shape).index_copy(-1, kept, gated)


def _gate(module: nn.Module) -> Any:
    block: StreamBlock = getattr(module, STREAM)
    call: Call = call_of_block(block, {})
    return None if call.gating is None else call.gating.hidden


def _gate_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    gate = _gate(module)
    return None if gate is None else (args[0] * gate.to(args[0]),)


def _gate_output(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    gate = _gate(module)
    return output if gate is None else output * gate.to(output)


def _norm_open(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    gate = _gate(module)
    if gate is None:
        return output
    return norm_open_dimensions(module, args[0], gate.to(args[0].device))


def _at(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = module._modules.get(name)
        if module is None:
            return None
    return module


_HOOKS = (_gate_input, _gate_output, _norm_open)
