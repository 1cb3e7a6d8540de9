"""headkit on Hugging Face transformers: attach to a model, gate its heads, detach."""

import weakref
from contextlib import AbstractContextManager
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from headkit import _C
from headkit.gating import CALL, Call, Gating, bind, check_batch, open_gating
from headkit.huggingface import bert, distilbert
from headkit.huggingface.attention_block import BLOCK, KEPT, Block, Swapped, refuse_altered
from headkit.huggingface.staged_model import StagedModel, call_of_encoder

FAMILIES = (bert, distilbert)

_attached: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[StagedModel]]" = (
    weakref.WeakKeyDictionary()
)


def is_attached(model: nn.Module) -> bool:
    """Whether ``attach`` was called on the model, or on what it is a copy of."""
    family, base = _find(_plain(model))
    return all(isinstance(family.core(layer), Swapped) for layer in family.layers(base))


def supported() -> list[str]:
    """The architectures that ``attach`` takes."""
    return [name for family in FAMILIES for name in family.NAME.split(", ")]


def attach(model: nn.Module) -> StagedModel:
    """Swap the attention blocks of a transformers model for gated ones, in place.

    Outputs, parameters and their names stay; only when gates are set do heads stay closed, and
    then their work is not done. Attaching again returns the same object. A deep copy of an attached
    model is attached.

    Args:
        model: BERT, RoBERTa, XLM-RoBERTa, ELECTRA or DistilBERT, with or without a task head.

    Returns:
        StagedModel: the GatedModel that scorers, pruners and policies use.

    Raises:
        ValueError: if the model is of another kind, is a decoder, or has adapters, quantised
            projections or hooks on them. The model stays as it was.

    Example:
        >>> import transformers
        >>> model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2))
        >>> headkit.attach(model).layout()
        HeadLayout({"feed_forward":3072,"head_dim":64,"heads":12,"layers":2,"model_dim":768})
    """
    model = _plain(model)
    known = _attached.get(model)
    gated = known() if known is not None else None
    family, base = _find(model)
    if gated is not None and gated.base is base:
        return gated
    layers = family.layers(base)
    fresh = [not isinstance(family.core(layer), Swapped) for layer in layers]
    if any(fresh):
        blocks = [_block(family, layer, index) for index, layer in enumerate(layers)]
        for layer, block in zip(layers, blocks, strict=True):
            setattr(family.core(layer), BLOCK, block)
            family.attach(layer)
        base.register_forward_pre_hook(_note_padding, with_kwargs=True)
        getattr(base, family.ENCODER).register_forward_pre_hook(_bind_gates, with_kwargs=True)
    gated = StagedModel(model, base, family)
    _attached[model] = weakref.ref(gated)
    return gated


def detach(model: nn.Module) -> nn.Module:
    """Put the original attention blocks back.

    Heads that were removed stay removed: what is left is a plain, pruned model.

    Args:
        model: a model that ``attach`` was called on, or a copy of one.

    Returns:
        The same model.

    Raises:
        ValueError: if it is not attached.

    Example:
        >>> import transformers
        >>> model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1))
        >>> gated = headkit.attach(model)
        >>> type(headkit.detach(model).encoder.layer[0].attention).__name__
        'BertAttention'
    """
    model = _plain(model)
    family, base = _find_attached(model, "detach")
    for layer in family.layers(base):
        family.detach(layer)
        delattr(family.core(layer), BLOCK)
    for module, hook in (
        (base, _note_padding),
        (getattr(base, family.ENCODER), _bind_gates),
    ):
        for key in [key for key, value in module._forward_pre_hooks.items() if value is hook]:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
    _attached.pop(model, None)
    return model


def gates(
    model: nn.Module | StagedModel, gates: Any, *, state: Any = None
) -> AbstractContextManager[None]:
    """Gate the heads of an attached model while the context is open.

    The context holds for the thread or task that opened it, and for what a call made inside it
    still does later: gradients under activation checkpointing are those of the gates of the forward
    pass.

    Args:
        model: an attached model, or what ``attach`` returned.
        gates: a tensor [L, H] or [B, L, H] (1 = the head as it is, 0 = it does not run), a
            HeadMask, a GateSet or a GatePolicy; always in original head indices.
        state: a PolicyState that collects the records of a policy's decisions; for one thread.

    Raises:
        ValueError: if the model is not attached or the gates do not fit; gates for another batch
            are refused by the forward pass before a layer runs.

    Example:
        >>> import transformers
        >>> model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2)).eval()
        >>> gated = headkit.attach(model)
        >>> with headkit.gates(model, torch.zeros(2, 12)):
        ...     closed = model(torch.tensor([[1, 2, 3]])).last_hidden_state
        >>> torch.equal(closed, model(torch.tensor([[1, 2, 3]])).last_hidden_state)
        False
    """
    model = model.model if isinstance(model, StagedModel) else _plain(model)
    family, base = _find_attached(model, "gates")
    layers = family.layers(base)
    block: Block = getattr(family.core(layers[0]), BLOCK)
    return bind(getattr(base, family.ENCODER), Gating.of(gates, len(layers), block.heads, state))


def attached(model: nn.Module, operation: str) -> StagedModel:
    """The GatedModel of a model that ``attach`` was called on.

    Args:
        model: the model.
        operation: who asks, for the error message.

    Raises:
        ValueError: if it is not attached.
    """
    _find_attached(_plain(model), operation)
    return attach(model)


def refresh(model: nn.Module | StagedModel | None = None) -> None:
    """Forget what was derived from weights.

    Needed only after an edit that torch does not count: ``.data``, numpy views, fused optimisers.

    Args:
        model: an attached model; None = every model and module.

    Raises:
        ValueError: if the model is not attached.

    Example:
        >>> import transformers
        >>> model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1))
        >>> gated = headkit.attach(model)
        >>> _ = model.encoder.layer[0].attention.self.query.weight.data.mul_(2)
        >>> headkit.refresh(model)
    """
    if model is not None:
        _find_attached(model.model if isinstance(model, StagedModel) else _plain(model), "refresh")
    _C.refresh_packed_weights()


def _plain(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"[attach] expected a torch module; found {type(model).__name__}")
    return getattr(model, "_orig_mod", model)


def _find(model: nn.Module) -> tuple[ModuleType, nn.Module]:
    found = [
        (family, module)
        for module in model.modules()
        for family in FAMILIES
        if f"{type(module).__module__}.{type(module).__qualname__}" in family.MODELS
    ]
    if len(found) != 1:
        what = type(model).__name__ if not found else f"{len(found)} encoders in one model"
        raise ValueError(
            f"[attach] expected a model with one encoder of {', '.join(supported())}; found {what}"
        )
    family, base = found[0]
    if reason := family.refusal(base):
        raise ValueError(
            f"[attach] expected an encoder of {', '.join(supported())} as transformers makes it; "
            f"found {reason}"
        )
    return family, base


def _find_attached(model: nn.Module, operation: str) -> tuple[ModuleType, nn.Module]:
    family, base = _find(model)
    if not all(isinstance(family.core(layer), Swapped) for layer in family.layers(base)):
        raise ValueError(
            f"[{operation}] expected an attached model (headkit.attach); found a plain "
            f"{type(model).__name__}"
        )
    return family, base


def _block(family: ModuleType, layer: nn.Module, index: int) -> Block:
    linears = family.linears(layer)
    refuse_altered(linears, "attach")
    core = family.core(layer)
    head_dim = core.attention_head_size
    heads = core.config.num_attention_heads
    kept = getattr(core, KEPT, list(range(heads)))
    if linears[0].out_features != len(kept) * head_dim:
        raise ValueError(
            f"[attach] expected {len(kept)} heads of {head_dim} in layer {index}; found "
            f"{linears[0].out_features} rows (load a pruned model with headkit.load)"
        )
    return Block(index, heads, head_dim, list(kept))


def _note_padding(base: nn.Module, args: tuple, kwargs: dict[str, Any]):
    if kwargs.get("head_mask") is not None:
        raise ValueError(
            "[attention] expected gates from headkit.gates; found head_mask, which transformers "
            "ignores"
        )
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if CALL not in kwargs and isinstance(mask, torch.Tensor) and mask.dim() == 2:
        kwargs = {**kwargs, CALL: Call(padding=mask.to(torch.bool))}
    return args, kwargs


def _bind_gates(encoder: nn.Module, args: tuple, kwargs: dict[str, Any]):
    call = kwargs.get(CALL)
    if call is not None and call.bound:
        return args, kwargs
    hidden = args[0] if args else kwargs["hidden_states"]
    call = call_of_encoder(call, args[1:], kwargs, hidden)
    gating = open_gating(encoder)
    if gating is not None:
        gating = gating.decided(hidden, call.padding)
        check_batch(gating, *hidden.shape[:2])
    return args, {**kwargs, CALL: replace(call, gating=gating, bound=True)}
