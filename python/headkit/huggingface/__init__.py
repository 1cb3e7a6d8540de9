"""headkit on models: attach to one, gate its heads, detach."""

import inspect
import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from headkit import _C
from headkit.gating import (
    CALL,
    Attachment,
    Call,
    Gating,
    bind,
    enter_call,
    leave_call,
    running_call,
)
from headkit.huggingface import sequence
from headkit.huggingface.adapter import Adapter, is_conv1d, refuse_altered
from headkit.huggingface.attention_block import BLOCK, ORIGIN, Block, Origin
from headkit.huggingface.data_parallel import forget_replicas, gating_of, hand_to_replicas
from headkit.huggingface.families import ADAPTERS, supported
from headkit.huggingface.feed_forward import (
    find_feed_forward,
    has_feed_forward,
    restore_feed_forward,
    swap_feed_forward,
)
from headkit.huggingface.masks import read_mask
from headkit.huggingface.neurons import find_neurons, unhook_neurons
from headkit.huggingface.staged_model import StagedModel
from headkit.huggingface.stream import unhook_stream
from headkit.huggingface.structure import (
    Site,
    Structure,
    find_structure,
    hands_down_keywords,
    is_transformers_model,
)
from headkit.huggingface.swapping import original_class
from headkit.huggingface.verification import verify
from headkit.hybrid import as_policy

PART = "headkit_part"
# On a layer before which a policy may decide: number of its first attention block, and its Part.
DECIDES = "headkit_decides"


@dataclass
class Part:
    """What a hooked module knows.

    Attributes:
        attachment: its model.
        keywords: whether its forward takes keyword arguments that it does not know.
        places: of its positional arguments, by name.
        encoder: whether it is the encoder of an encoder-decoder, which may run apart.
        base: whether it is the innermost model that holds all blocks: its calls are new ones.
        adapter: of a layer, the family of its blocks.
        batch_axis: of a layer, which axis of its hidden states counts the samples.
    """

    attachment: Attachment
    keywords: bool
    places: dict[str, int]
    encoder: bool
    base: bool = False
    adapter: Adapter | None = None
    batch_axis: int = 0

    @staticmethod
    def of(
        module: nn.Module,
        attachment: Attachment,
        *,
        encoder: bool = False,
        base: bool = False,
        block: Site | None = None,
    ) -> "Part":
        """Read the signature of a module."""
        names = list(inspect.signature(original_class(module).forward).parameters)[1:]
        places = {name: place for place, name in enumerate(names)}
        part = Part(attachment, hands_down_keywords(module), places, encoder, base)
        if block is not None:
            part.adapter = block.adapter
            part.batch_axis = block.adapter.batch_axis(block.module)
        return part

    def argument(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """An argument of a call by its name; None if it was not given."""
        if name in kwargs:
            return kwargs[name]
        place = self.places.get(name)
        return args[place] if place is not None and place < len(args) else None

    def hidden(self, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        """Hidden states [B, T, D] that a layer is called with: its first argument."""
        hidden = args[0] if args else kwargs[next(iter(self.places))]
        return hidden.transpose(0, self.batch_axis)

    def mask(self, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The mask that a layer is called with."""
        named = {name: args[place] for name, place in self.places.items() if place < len(args)}
        return self.adapter.layer_mask({**named, **kwargs})


_attached: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[StagedModel]]" = (
    weakref.WeakKeyDictionary()
)


def is_attached(model: nn.Module) -> bool:
    """Whether ``attach`` was called on the model, or on what it is a copy of."""
    return any(BLOCK in vars(module) for module in _plain(model).modules())


def attach(model: nn.Module, *, feed_forward: bool = False) -> StagedModel:
    """Swap the attention blocks of a model for gated ones, in place.

    Outputs, parameters and their names stay; only when gates are set do heads stay closed, and
    then their work is not done. Attaching again returns the same object. A deep copy of an attached
    model is attached.

    Blocks are known by how they are built, not by their names; one of each kind is run on random
    inputs, by its own code and by headkit's, and must give the same.

    Args:
        model: a model whose attention is that of one of ``headkit.huggingface.supported()``, with
            or without a task head.
        feed_forward: swap the feed-forward blocks too, so that whole layers run on headkit's
            kernels and blocks of 32 neurons can be gated. For BERT, RoBERTa, XLM-RoBERTa, ELECTRA,
            ALBERT, DistilBERT, ViT and DeiT, Wav2Vec2 and HuBERT, GPT-2, Llama and its relatives.

    Returns:
        StagedModel: the GatedModel that scorers, pruners and policies use.

    Raises:
        ValueError: if the model is of another kind, or has adapters, quantised projections or hooks
            on them, or feed-forward blocks that headkit does not run are asked for. The model
            stays as it was.

    Example:
        >>> import transformers
        >>> model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2))
        >>> headkit.attach(model).layout()
        HeadLayout({"feed_forward":3072,"head_dim":64,"heads":12,"layers":2,"model_dim":768})
    """
    model = _plain(model)
    known = _attached.get(model)
    gated = known() if known is not None else None
    if gated is not None and gated.is_current():
        if feed_forward and not has_feed_forward(model):
            swap_feed_forward(find_feed_forward(gated.structure), gated.blocks()[0].attachment)
        return gated
    feed_forward = feed_forward or has_feed_forward(model)
    fresh = not is_attached(model)
    if fresh:
        for adapter in ADAPTERS:
            adapter.prepare(model)
    try:
        structure = find_structure(model, ADAPTERS, ", ".join(supported()))
        feed_forwards = find_feed_forward(structure) if feed_forward else []
        if any(BLOCK not in vars(site.module) for site in structure.sites):
            _swap(structure)
    except BaseException:
        if fresh:
            for adapter in ADAPTERS:
                adapter.restore(model)
        raise
    gated = StagedModel(structure)
    attachment = gated.blocks()[0].attachment
    if gated.feed_forwards:
        attachment.neurons = len(gated.feed_forwards), gated.feed_forwards[0].origin.neurons
    attachment.stream = gated.stream_width()
    if feed_forwards:
        swap_feed_forward(feed_forwards, attachment)
    gated.hook_closed()
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
        ValueError: if it is not attached, or heads are gone in a way that its own code cannot run.

    Example:
        >>> import transformers
        >>> model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1))
        >>> gated = headkit.attach(model)
        >>> type(headkit.detach(model).encoder.layer[0].attention).__name__
        'BertAttention'
    """
    model = _plain(model)
    _check_attached(model, "detach")
    structure = find_structure(model, ADAPTERS, ", ".join(supported()))
    for site in structure.sites:
        origin: Origin = getattr(site.module, BLOCK).origin
        if origin.is_pruned and (
            reason := site.adapter.plain_refusal(site.module, origin.heads, origin.kept)
        ):
            raise ValueError(
                f"[detach] expected heads left that {original_class(site.module).__name__} can run "
                f"without headkit; found {reason} at {site.path}"
            )
    for neurons in find_neurons(structure):
        if is_conv1d(neurons.out) and not neurons.origin.kept:
            raise ValueError(
                "[detach] expected neurons left in each block, which GPT-2 cannot run without; "
                f"found none at {neurons.path}"
            )
    for site in structure.sites:
        site.adapter.detach(site.module)
        delattr(site.module, BLOCK)
    restore_feed_forward(model)
    for module in model.modules():
        _remove_hooks(module)
    for adapter in ADAPTERS:
        adapter.restore(model)
    _attached.pop(model, None)
    return model


def gates(
    model: nn.Module | StagedModel, gates: Any, *, state: Any = None, every: int | None = None
) -> AbstractContextManager[None]:
    """Gate the heads of an attached model while the context is open.

    The context holds for the thread or task that opened it, and for what a call made inside it
    still does later: gradients under activation checkpointing are those of the gates of the forward
    pass.

    Args:
        model: an attached model, or what ``attach`` returned.
        gates: a tensor [L, H] or [B, L, H] (1 = the head as it is, 0 = it does not run), a
            HeadMask, a GateSet, a GatePolicy or a fitted HybridPruner; always in original indices.
            L counts the attention blocks in the order in which they run: a decoder layer with
            cross-attention has two. A GateSet may also gate neurons, whole blocks, the dimensions
            of the residual stream (encoders of the BERT line) and, if the model was attached with
            ``feed_forward=True``, blocks of neurons: there L counts the layers.
            A policy that decides midway is asked where that layer begins; calls with a cache are
            then refused.
        state: a PolicyState that collects the records of a policy's decisions; for one thread.
        every: for models that generate with a cache. None: what is decided on the prompt holds for
            the sequence, and closed heads write no keys and values. A number of tokens: a policy is
            asked again after each so many, and the keys and values of all heads are written.

    Raises:
        ValueError: if the model is not attached or the gates do not fit, or if a policy was
            calibrated for another model; gates for another batch are refused by the forward pass
            before a layer runs.

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
    attachment = _check_attached(model, "gates")
    gating = Gating.of(as_policy(gates), attachment.layers, attachment.heads, state, every)
    attachment.check_gates(gating)
    if gating.needs_hooks:
        attach(model).hook_for(gating)
    if gating.policy is not None:
        gated = attach(model)
        gating.policy.check_model(gated)
        gating = replace(gating, model=gated)
        _hook_decisions(attach(model).structure, attachment, gating.policy.decision_layers[1:])
    return bind(attachment, gating)


def attached(model: nn.Module, operation: str) -> StagedModel:
    """The GatedModel of a model that ``attach`` was called on.

    Args:
        model: the model.
        operation: who asks, for the error message.

    Raises:
        ValueError: if it is not attached.
    """
    _check_attached(_plain(model), operation)
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
        _check_attached(model.model if isinstance(model, StagedModel) else _plain(model), "refresh")
    _C.refresh_packed_weights()


def _plain(model: nn.Module) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"[attach] expected a torch module; found {type(model).__name__}")
    return getattr(model, "_orig_mod", model)


def _check_attached(model: nn.Module, operation: str) -> Attachment:
    for module in model.modules():
        if BLOCK in vars(module):
            return getattr(module, BLOCK).attachment
    raise ValueError(
        f"[{operation}] expected an attached model (headkit.attach); found a plain "
        f"{type(model).__name__}"
    )


def _swap(structure: Structure) -> None:
    for site in structure.sites:
        refuse_altered(site.adapter.projections(site.module), "attach")
    origins = [_origin(site) for site in structure.sites]
    sizes = {
        (origin.heads, origin.kv_heads, *_widths(site))
        for site, origin in zip(structure.sites, origins, strict=True)
    }
    if len(sizes) != 1:
        found = ", ".join(f"{heads} of {width} in {dim}" for heads, _, width, dim in sorted(sizes))
        raise ValueError(f"[attach] expected equal heads in all blocks; found {found}")
    seen = set()
    for site, origin in zip(structure.sites, origins, strict=True):
        kind = (original_class(site.module), site.cross)
        if kind not in seen and BLOCK not in vars(site.module) and not origin.is_pruned:
            verify(site, origin, site.cross)
            seen.add(kind)

    one_stack = len(structure.stacks) == 1
    notes_padding = (
        one_stack
        and is_transformers_model(structure.module(structure.base))
        and structure.sites[0].adapter.NOTES_PADDING
    )
    count, heads = len(structure.sites), origins[0].heads
    attachment = Attachment(count, heads, notes_padding, one_stack=one_stack)
    for number, (site, origin) in enumerate(zip(structure.sites, origins, strict=True)):
        width = site.adapter.head_dim(site.module)
        block = Block(number, site.adapter, attachment, origin, width, site.cross)
        if BLOCK not in vars(site.module):
            site.adapter.attach(site.module)
        setattr(site.module, BLOCK, block)
    for stack in structure.stacks:
        blocks = [site for site in structure.sites if site.layer in stack.layers]
        for site in blocks:
            site.adapter.connect(site.module, blocks[0].module)
    hooked = {structure.base, *(stack.owner for stack in structure.stacks)}
    for path in hooked:
        module = structure.module(path)
        _remove_hooks(module)
        encoder = not one_stack and path == structure.stacks[0].owner
        part = Part.of(module, attachment, encoder=encoder, base=path == structure.base)
        setattr(module, PART, part)
        hand_to_replicas(module, attachment)
        module.register_forward_pre_hook(_begin_call, with_kwargs=True)
        module.register_forward_hook(_end_call, always_call=True)
    for stack in structure.stacks:
        for number, path in enumerate(stack.layers):
            layer = structure.module(path)
            _remove_hooks(layer)
            if number == 0 or _drops_layers(structure.model):
                block = structure.sites[structure.blocks_of(path)[0]]
                setattr(layer, PART, Part.of(layer, attachment, block=block))
                hook = _begin_later_layers if number else _begin_layers
                layer.register_forward_pre_hook(hook, with_kwargs=True)


def _hook_decisions(structure: Structure, attachment: Attachment, layers: list[int]) -> None:
    """Put hooks where a policy decides midway; they stay until ``detach``.

    Raises:
        ValueError: if a layer is not one of a single stack, or inside one.
    """
    if not layers:
        return
    paths = {structure.blocks_of(path)[0]: path for path in structure.layers()}
    for number in layers:
        if len(structure.stacks) != 1 or number not in paths:
            raise ValueError(
                "[gates] expected a policy that decides midway to do so before a layer of a model "
                f"with one stack; found block {number} of a model of {len(structure.stacks)} "
                f"stacks with layers before blocks {sorted(paths)}"
            )
    for number in layers:
        layer = structure.module(paths[number])
        if DECIDES in vars(layer):
            continue
        part = Part.of(layer, attachment, block=structure.sites[number])
        setattr(layer, DECIDES, (number, part))
        layer.register_forward_pre_hook(_decide_midway, with_kwargs=True)


def _drops_layers(model: nn.Module) -> bool:
    """Whether a training step may leave out layers, the first ones too."""
    settings = vars(getattr(model, "config", model)).items()
    return any(name.endswith("layerdrop") and value for name, value in settings)


def _widths(site: Site) -> tuple[int, int]:
    return site.adapter.head_dim(site.module), site.adapter.weights(site.module).o.shape[0]


def _origin(site: Site) -> Origin:
    known = getattr(site.module, ORIGIN, None)
    weights = site.adapter.weights(site.module)
    width = site.adapter.head_dim(site.module)
    if known is None:
        heads, kv_heads = weights.q.shape[0] // width, weights.k.shape[0] // width
        whole = kv_heads > 0 and heads % kv_heads == 0
        shapes = (weights.q.shape[0], weights.k.shape[0], weights.v.shape[0], weights.o.shape[1])
        if not whole or shapes != (heads * width, kv_heads * width, kv_heads * width, shapes[0]):
            raise ValueError(
                f"[attach] expected whole heads of {width} at {site.path}; found projections of "
                f"{', '.join(map(str, shapes))} (load a pruned model with headkit.load)"
            )
        return Origin(heads, kv_heads, list(range(heads)), weights.o_bias is not None)
    if weights.q.shape[0] != len(known.kept) * width:
        raise ValueError(
            f"[attach] expected {len(known.kept)} heads of {width} at {site.path}; found "
            f"{weights.q.shape[0]} rows (load a pruned model with headkit.load)"
        )
    return known


def _remove_hooks(module: nn.Module) -> None:
    vars(module).pop(PART, None)
    forget_replicas(module)
    vars(module).pop(DECIDES, None)
    unhook_neurons(module)
    unhook_stream(module)
    for hooks, flags in (
        (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
        (module._forward_hooks, module._forward_hooks_always_called),
    ):
        for key in [key for key, hook in hooks.items() if hook in _HOOKS]:
            del hooks[key]
            flags.pop(key, None)


def _begin_call(module: nn.Module, args: tuple, kwargs: dict[str, Any]):
    if kwargs.get("head_mask") is not None:
        raise ValueError(
            "[attention] expected gates from headkit.gates; found head_mask, which transformers "
            "ignores"
        )
    part: Part = getattr(module, PART)
    call = kwargs.get(CALL) if part.base else _call_of(part, kwargs)
    mask = part.argument("attention_mask", args, kwargs)
    known = part.attachment.notes_padding and isinstance(mask, torch.Tensor) and mask.dim() == 2
    if call is None:
        call = Call(gating_of(module, part.attachment), mask.to(torch.bool) if known else None)
        call.attentions = kwargs.get("output_attentions")
    elif known and not call.begun:
        # Speech models are given a mask of samples, and their encoders one of frames.
        call.padding = mask.to(torch.bool)
    if not torch.compiler.is_compiling():
        enter_call(part.attachment, call)
    if part.keywords:
        kwargs = {**kwargs, CALL: call}
    return args, kwargs


def _end_call(module: nn.Module, args: tuple, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    part: Part = getattr(module, PART)
    call = running_call(part.attachment)
    leave_call(part.attachment)
    if part.encoder and call is not None and running_call(part.attachment) is None:
        sequence.note_encoded(call.given, call.gating)


def _call_of(part: Part, kwargs: dict[str, Any]) -> Call | None:
    """The call that a module is part of, if one was begun above it."""
    call = kwargs.get(CALL)
    if call is None and not torch.compiler.is_compiling():
        call = running_call(part.attachment)
    return call


def _begin_layers(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
    part: Part = getattr(layer, PART)
    call = _call_of(part, kwargs)
    if call is None:
        return None
    hidden = part.hidden(args, kwargs)
    cache = part.argument("past_key_values", args, kwargs)
    padding = None
    if call.gating is not None and call.gating.policy is not None:
        padding = _tokens(part, call, hidden, args, kwargs)
    sequence.begin(call, hidden, padding, cache)
    if call.gating is not None and call.given is not None and call.given.policy is not None:
        part.attachment.check_gates(call.gating)
    return None


def _begin_later_layers(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
    call = _call_of(getattr(layer, PART), kwargs)
    if call is not None and not call.begun:
        _begin_layers(layer, args, kwargs)
    return None


def _decide_midway(layer: nn.Module, args: tuple, kwargs: dict[str, Any]):
    number, part = getattr(layer, DECIDES)
    call = _call_of(part, kwargs)
    if call is not None and call.begun:
        hidden = part.hidden(args, kwargs)
        call.decide_at(number, hidden, _tokens(part, call, hidden, args, kwargs))
    return None


def _tokens(
    part: Part, call: Call, hidden: torch.Tensor, args: tuple, kwargs: dict[str, Any]
) -> torch.Tensor | None:
    """Bool [B, S], True = token, of all tokens so far; None = all are."""
    if call.padding is not None and call.padding.shape[1] >= hidden.shape[1]:
        return call.padding
    mask = part.mask(args, kwargs)
    keys = None if mask is None else mask.shape[-1]
    return read_mask(mask, hidden, keys).padding


_HOOKS = (_begin_call, _end_call, _begin_layers, _begin_later_layers, _decide_midway)
