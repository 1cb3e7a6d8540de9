"""A transformers model as a GatedModel: its own forward, cut into stages."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from headkit import _C
from headkit.gating import CALL, Call, Gating, check_batch
from headkit.huggingface.attention_block import BLOCK, KEPT, Block
from headkit.huggingface.padding import read_mask

# Attribute of a pruned model: the fingerprint it had with all its heads.
BASE = "headkit_base"

# In a batch for the loss or the record, never for the model: labels would change its output.
NOT_INPUTS = (
    "labels",
    "next_sentence_label",
    "start_positions",
    "end_positions",
    "example_id",
    "example_ids",
)


def shallow(module: nn.Module, **children: nn.Module | None) -> nn.Module:
    """A copy of ``module`` that shares everything but the named children."""
    clone = object.__new__(type(module))
    clone.__dict__.update(module.__dict__)
    clone.__dict__["_modules"] = {**module._modules, **children}
    return clone


def shallow_path(module: nn.Module, path: list[str], child: nn.Module) -> nn.Module:
    """A shallow copy of ``module`` in which the submodule at ``path`` is ``child``."""
    if not path:
        return child
    inner = shallow_path(module._modules[path[0]], path[1:], child)
    return shallow(module, **{path[0]: inner})


class _Reached(Exception):
    """Ends a forward at the encoder and carries what the encoder was called with."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        super().__init__()
        self.args_given, self.kwargs_given = args, kwargs


class _Capture(nn.Module):
    def forward(self, *args, **kwargs):
        raise _Reached(args, kwargs)


class _Returns(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, *args, **kwargs):
        return self.value


class StagedModel(_C.GatedModel):
    """What ``headkit.attach`` returns: a GatedModel over a transformers model.

    No stage keeps anything between calls, so threads may share it.

    Attributes:
        model: the attached model.
        base: its encoder model, for example the ``BertModel`` inside a classifier.
        encoder: the module that holds the layers.
    """

    def __init__(self, model: nn.Module, base: nn.Module, family: ModuleType):
        super().__init__()
        self.model, self.base, self._family = model, base, family
        self._path = next(name for name, module in model.named_modules() if module is base)
        accepted = inspect.signature(type(model).forward).parameters.values()
        self._inputs = [
            p.name
            for p in accepted
            if p.name != "self" and p.kind != p.VAR_KEYWORD and p.name not in NOT_INPUTS
        ]

    @property
    def encoder(self) -> nn.Module:
        """The module that holds the layers."""
        return getattr(self.base, self._family.ENCODER)

    def blocks(self) -> list[Block]:
        """Layer number, sizes and present heads of each attention block."""
        family = self._family
        return [getattr(family.core(layer), BLOCK) for layer in family.layers(self.base)]

    def layout(self) -> _C.HeadLayout:
        """Sizes of the original model."""
        blocks = self.blocks()
        layer = self._family.layers(self.base)[0]
        return _C.HeadLayout(
            len(blocks),
            blocks[0].heads,
            blocks[0].head_dim,
            self._family.linears(layer)[3].out_features,
            self._family.feed_forward(layer),
        )

    def heads(self) -> _C.HeadMask:
        """Heads that are physically there."""
        blocks = self.blocks()
        keep = torch.zeros(len(blocks), blocks[0].heads, dtype=torch.bool)
        for block in blocks:
            keep[block.layer, block.kept] = True
        return _C.HeadMask(keep)

    def embed(self, batch: dict[str, torch.Tensor]) -> _C.ModelState:
        """Everything before layer 0, by the model's own code."""
        path = [*filter(None, self._path.split(".")), self._family.ENCODER]
        inputs = self._read(batch)
        try:
            self._run(shallow_path(self.model, path, _Capture()), inputs)
        except _Reached as reached:
            args, kwargs = reached.args_given, reached.kwargs_given
        else:
            raise RuntimeError(
                "[embed] expected the model to call its encoder; found that it did not"
            )
        if args:
            hidden, args = args[0], args[1:]
        else:
            hidden = kwargs.pop("hidden_states")
        examples = len(next(iter(inputs.values())))
        if len(hidden) != examples:
            raise ValueError(
                f"[embed] expected one sequence for each of {examples} examples; found "
                f"{len(hidden)} (models that reshape their inputs, as for multiple choice, are not "
                "supported)"
            )
        call = call_of_encoder(kwargs.pop(CALL, None), args, kwargs, hidden)
        return _C.ModelState(
            hidden, attention_mask=call.padding, batch=batch, layer=0, extra=(args, kwargs, call)
        )

    def run(
        self,
        state: _C.ModelState,
        first: int,
        last: int,
        gates: _C.GateSet | None = None,
        taps: _C.Taps | None = None,
    ) -> _C.ModelState:
        """Layers first .. last-1 under gates, by the encoder's own loop."""
        layers = self._family.layers(self.base)
        if state.layer != first or not first <= last <= len(layers):
            raise ValueError(
                f"[run] expected layers {state.layer} to at most {len(layers)}; found {first} to "
                f"{last}"
            )
        if gates is None:
            gates = _C.GateSet()
        gating = Gating.of(gates, len(layers), self.blocks()[0].heads)
        check_batch(gating, *state.hidden.shape[:2])
        args, kwargs, call = state.extra
        inputs = [] if taps is not None and taps.attention_inputs else None
        call = replace(call, gating=gating, bound=True, attention_inputs=inputs)
        encoder = shallow(self.encoder, layer=layers[first:last])
        hidden = encoder(state.hidden, *args, **{**kwargs, CALL: call}).last_hidden_state
        if inputs is not None:
            taps.attention_input = taps.attention_input + inputs
        return _C.ModelState(
            hidden,
            attention_mask=state.attention_mask,
            batch=state.batch,
            layer=last,
            extra=state.extra,
        )

    def head(self, state: _C.ModelState) -> torch.Tensor:
        """Logits of a task model, last hidden state of a base model."""
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        hidden = state.hidden
        stubs = {name: _Returns(hidden) for name in self._family.FRONT if hasattr(self.base, name)}
        stubs[self._family.ENCODER] = _Returns(
            BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)
        )
        base = shallow(self.base, **stubs)
        path = [*filter(None, self._path.split("."))]
        return _tensor_of(self._run(shallow_path(self.model, path, base), self._read(state.batch)))

    def select(self, state: _C.ModelState, index: torch.Tensor) -> _C.ModelState:
        """The state of these samples."""
        batch = len(state.hidden)

        def pick(value):
            if isinstance(value, torch.Tensor) and value.dim() > 0 and len(value) == batch:
                return value.index_select(0, index.to(value.device))
            return value

        args, kwargs, call = state.extra
        return _C.ModelState(
            pick(state.hidden),
            attention_mask=pick(state.attention_mask),
            batch={name: pick(value) for name, value in state.batch.items()},
            layer=state.layer,
            extra=(
                tuple(pick(value) for value in args),
                {name: pick(value) for name, value in kwargs.items()},
                Call(padding=pick(call.padding), bias=pick(call.bias)),
            ),
        )

    def attention(self, layer: int) -> _C.AttentionWeights:
        """Weights of the heads that are physically there."""
        q, k, v, o = self._family.linears(self._layer(layer))
        return _C.AttentionWeights(
            q.weight,
            k.weight,
            v.weight,
            o.weight,
            q_bias=q.bias,
            k_bias=k.bias,
            v_bias=v.bias,
            o_bias=o.bias,
        )

    def replace_attention(self, layer: int, weights: _C.AttentionWeights, kept: list[int]) -> None:
        """Put new weights in place; everything is checked before anything changes."""
        module = self._layer(layer)
        core = self._family.core(module)
        block: Block = getattr(core, BLOCK)
        kept = list(kept)
        if kept != sorted(set(kept)) or any(not 0 <= head < block.heads for head in kept):
            raise ValueError(
                f"[replace_attention] expected ascending heads from 0 to {block.heads - 1}; found "
                f"{kept}"
            )
        width = len(kept) * block.head_dim
        linears = self._family.linears(module)
        model_dim = linears[3].out_features
        names = ("q", "k", "v", "o")
        shapes = [(width, model_dim)] * 3 + [(model_dim, width)]
        new = []
        for linear, name, shape in zip(linears, names, shapes, strict=True):
            weight = getattr(weights, name)
            bias = getattr(weights, f"{name}_bias")
            if (bias is None) != (linear.bias is None):
                raise ValueError(
                    f"[replace_attention] expected {name}_bias as in the model; found "
                    f"{'none' if bias is None else 'one'}"
                )
            if bias is not None:
                bias = _parameter(f"{name}_bias", bias, shape[:1], linear.bias)
            new.append((_parameter(name, weight, shape, linear.weight), bias))
        if len(kept) < block.heads and not self.heads().removed():
            setattr(self.model, BASE, self.fingerprint())
        for linear, (weight, bias) in zip(linears, new, strict=True):
            linear.weight, linear.bias = weight, bias
            linear.out_features, linear.in_features = weight.shape
        block.kept = kept
        setattr(core, KEPT, kept)
        self._family.describe(module, len(kept))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Keep dropout off while open; modules get their modes back after."""
        training = [module for module in self.model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True

    def parameters(self) -> list[tuple[str, torch.Tensor]]:
        """The state dictionary: parameters and persistent buffers."""
        return list(self.model.state_dict(keep_vars=True).items())

    def _layer(self, layer: int) -> nn.Module:
        layers = self._family.layers(self.base)
        if not 0 <= layer < len(layers):
            raise IndexError(f"[attention] expected a layer below {len(layers)}; found {layer}")
        return layers[layer]

    def _read(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
        unknown = [name for name in inputs if name not in self._inputs]
        if unknown or not inputs:
            raise ValueError(
                f"[embed] expected tensors named {', '.join((*self._inputs, *NOT_INPUTS))}; found "
                f"{', '.join(unknown) or 'none'}"
            )
        return inputs

    def _run(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
        # Recording would install transformers' hooks a second time, through the clone.
        if hasattr(model, "config"):
            inputs = {**inputs, "output_hidden_states": False, "output_attentions": False}
        return model(**inputs)


def _parameter(
    name: str, value: torch.Tensor, shape: tuple[int, ...], old: nn.Parameter
) -> nn.Parameter:
    if tuple(value.shape) != shape or value.dtype != old.dtype:
        raise ValueError(
            f"[replace_attention] expected {name} of shape {list(shape)} and dtype {old.dtype}; "
            f"found shape {list(value.shape)} and dtype {value.dtype}"
        )
    return nn.Parameter(value.detach().to(old.device), requires_grad=old.requires_grad)


def _tensor_of(output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor):
        return output
    for name in ("logits", "prediction_logits", "start_logits", "last_hidden_state"):
        value = getattr(output, name, None)
        if value is not None:
            if name == "start_logits":
                return torch.stack((value, output.end_logits), -1)
            return value
    raise ValueError(
        f"[head] expected an output with logits or last_hidden_state; found {type(output).__name__}"
    )


def call_of_encoder(
    call: Call | None, args: tuple, kwargs: dict[str, Any], hidden: torch.Tensor
) -> Call:
    """The call that an encoder's keyword arguments carry, with its mask read.

    Args:
        call: what the model's pre-hook noted, or None.
        args: the encoder's positional arguments after the hidden states.
        kwargs: its keyword arguments.
        hidden: [B, T, D].
    """
    mask = kwargs.get("attention_mask", args[0] if args else None)
    noted = None if call is None else call.padding
    if noted is not None:
        # transformers hands over None for a mask of ones, and also where it has no mask function
        # for the chosen attention: then the padding would be lost.
        skip = mask is None and not torch.compiler.is_compiling() and bool(noted.all())
        return Call(padding=None if skip else noted)
    padding, bias = read_mask(mask, hidden)
    return Call(padding=padding, bias=bias)
