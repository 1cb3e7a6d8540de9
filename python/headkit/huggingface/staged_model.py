"""A model as a GatedModel: its own forward, cut into stages."""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from headkit import _C
from headkit.gating import CALL, Call, Gating, bind, enter_call, leave_call
from headkit.huggingface.attention_block import BLOCK, Block
from headkit.huggingface.direct_paths import only_direct_paths
from headkit.huggingface.feed_forward import has_feed_forward
from headkit.huggingface.masks import read_mask
from headkit.huggingface.neurons import find_neurons, hook_neurons
from headkit.huggingface.shallow import with_modules
from headkit.huggingface.stream import find_stream, hook_stream
from headkit.huggingface.structure import (
    Structure,
    hands_down_keywords,
    is_transformers_model,
)
from headkit.huggingface.swapping import original_class
from headkit.huggingface.weight_replacement import (
    replace_attention,
    replace_feed_forward,
    set_sublayers,
)

# In a batch for the loss or the record, not for the model: labels would change its output. (Only an
# encoder-decoder that is given no inputs for its decoder makes them from labels.)
NOT_INPUTS = (
    "labels",
    "next_sentence_label",
    "start_positions",
    "end_positions",
    "example_id",
    "example_ids",
    "special_tokens_mask",
)
# What a model is told in every stage, if it knows the name.
SETTINGS = {"output_hidden_states": False, "output_attentions": False, "use_cache": False}


@dataclass
class _Journal:
    """What the layers of a model are called with, and what stands in for them meanwhile.

    Attributes:
        calls: by layer, positional and keyword arguments.
        front: outputs of costly modules before layer 0, by path.
        last: the layer at which a recording ends; None = run to the end.
        returned: by layer, the hidden states that its stand-in returns; others return their input.
    """

    calls: dict[int, tuple[tuple, dict[str, Any]]] = field(default_factory=dict)
    front: dict[str, Any] = field(default_factory=dict)
    last: int | None = None
    returned: dict[int, torch.Tensor] = field(default_factory=dict)


class _Reached(Exception):
    """Ends a forward at the last layer that is recorded."""


class _InPlaceOf(nn.Module):
    """Stands for a module; shows its attributes to those who read them."""

    def __init__(self, module: nn.Module):
        super().__init__()
        object.__setattr__(self, "module", module)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "module"), name)


class _StandIn(_InPlaceOf):
    """Stands for a layer: notes its call, computes nothing."""

    def __init__(self, layer: nn.Module, number: int, journal: _Journal, name: str, output):
        super().__init__(layer)
        self.number, self.journal, self.name, self.output = number, journal, name, output

    def forward(self, *args, **kwargs):
        self.journal.calls[self.number] = (args, kwargs)
        if self.number == self.journal.last:
            raise _Reached
        hidden = args[0] if args else kwargs[self.name]
        hidden = self.journal.returned.get(self.number, hidden)
        return self.output(self.module, hidden, args, kwargs)


class _Front(_InPlaceOf):
    """Stands for a module before layer 0: computes once, then remembers."""

    def __init__(self, module: nn.Module, path: str, journal: _Journal):
        super().__init__(module)
        self.path, self.journal = path, journal

    def forward(self, *args, **kwargs):
        if self.path not in self.journal.front:
            self.journal.front[self.path] = self.module(*args, **kwargs)
        return self.journal.front[self.path]


@dataclass(frozen=True)
class _Extra:
    """The Python part of a state.

    Attributes:
        journal: the calls of the layers of the stack that runs.
        stack: its number.
        pending: gates of blocks that a stage ended after, but whose layer has a block more: they
            run with the next stage.
    """

    journal: _Journal
    stack: int = 0
    pending: tuple[tuple[int, Gating], ...] = ()


class StagedModel(_C.GatedModel):
    """What ``headkit.attach`` returns: a GatedModel over the model.

    No stage keeps anything between calls, so threads may share it.

    Attributes:
        model: the attached model.
        structure: where its attention blocks are.
        base: its innermost model, for example the ``BertModel`` inside a classifier.
        feed_forwards: where its feed-forward blocks are; empty if they are not known.
    """

    def __init__(self, structure: Structure):
        super().__init__()
        self.structure = structure
        self.model, self.base = structure.model, structure.module(structure.base)
        self.feed_forwards = find_neurons(structure)
        self._layers = structure.layers()
        self._first_block = [structure.blocks_of(layer)[0] for layer in self._layers]
        self._hidden_names = [self._parameters_of(place)[0] for place in range(len(self._layers))]
        first = structure.sites[0]
        self._batch_axis = first.adapter.batch_axis(first.module)
        accepted = inspect.signature(type(self.model).forward).parameters.values()
        self._inputs = [
            p.name
            for p in accepted
            if p.name != "self" and p.kind != p.VAR_KEYWORD and p.name not in NOT_INPUTS
        ]
        self._settings = {
            name: value
            for name, value in SETTINGS.items()
            if name in self._inputs or is_transformers_model(self.model)
        }

    def is_current(self) -> bool:
        """Whether the blocks are still where they were, and attached."""
        sites = self.structure.sites
        try:
            return all(
                self.structure.module(site.path) is site.module and BLOCK in vars(site.module)
                for site in sites
            )
        except AttributeError:
            return False

    def blocks(self) -> list[Block]:
        """Number, sizes and present heads of each attention block."""
        return [getattr(site.module, BLOCK) for site in self.structure.sites]

    def layout(self) -> _C.HeadLayout:
        """Sizes of the original model."""
        site = self.structure.sites[0]
        block: Block = getattr(site.module, BLOCK)
        sizes = (
            len(self.structure.sites),
            block.origin.heads,
            block.head_dim,
            site.adapter.weights(site.module).o.shape[0],
            self.feed_forwards[0].origin.neurons
            if self.feed_forwards
            else site.adapter.feed_forward(self.structure.module(site.layer)),
        )
        if block.origin.kv_heads != block.origin.heads:
            return _C.HeadLayout(*sizes, kv_heads=block.origin.kv_heads)
        return _C.HeadLayout(*sizes)

    def heads(self) -> _C.HeadMask:
        """Heads that are physically there."""
        blocks = self.blocks()
        keep = torch.zeros(len(blocks), blocks[0].origin.heads, dtype=torch.bool)
        for block in blocks:
            keep[block.number, block.origin.kept] = True
        return _C.HeadMask(keep)

    def gated_units(self) -> _C.GatedUnits:
        """Blocks, and neurons where the feed-forward blocks are known."""
        known = bool(self.feed_forwards)
        return _C.GatedUnits(
            neurons=known,
            attention_sublayers=True,
            feed_forward_sublayers=known,
            hidden=bool(self.blocks()[0].attachment.stream),
        )

    def neurons(self) -> torch.Tensor:
        """Neurons that are physically there, bool [L, F]."""
        self._check_feed_forwards("neurons")
        origins = [site.origin for site in self.feed_forwards]
        keep = torch.zeros(len(origins), origins[0].neurons, dtype=torch.bool)
        for row, origin in zip(keep, origins, strict=True):
            row[origin.kept if origin.is_pruned else slice(None)] = True
        return keep

    def sublayers(self) -> _C.Sublayers:
        """Blocks that are there."""
        return _C.Sublayers(
            [block.origin.open for block in self.blocks()],
            [site.origin.open for site in self.feed_forwards],
        )

    def embed(self, batch: dict[str, torch.Tensor]) -> _C.ModelState:
        """Everything before layer 0, by the model's own code."""
        inputs = self._read(batch)
        journal = self._record(inputs, _Journal(), 0)
        hidden = self._hidden(journal, 0)
        examples = len(next(iter(inputs.values())))
        if len(hidden) != examples:
            raise ValueError(
                f"[embed] expected one sequence for each of {examples} examples; found "
                f"{len(hidden)} (models that reshape their inputs, as for multiple choice, are not "
                "supported)"
            )
        return self._state(hidden, journal, 0, batch)

    def run(
        self,
        state: _C.ModelState,
        first: int,
        last: int,
        gates: _C.GateSet | None = None,
        taps: _C.Taps | None = None,
    ) -> _C.ModelState:
        """Blocks first .. last-1 under gates, by the model's own layers.

        A stage may end inside a layer with two blocks, as those of decoders with cross-attention
        have: the layer then runs with the next stage.
        """
        blocks = len(self.structure.sites)
        if state.layer != first or not first <= last <= blocks:
            raise ValueError(
                f"[run] expected layers {state.layer} to at most {blocks}; found {first} to {last}"
            )
        gating = Gating.of(
            _C.GateSet() if gates is None else gates, blocks, self.blocks()[0].origin.heads
        )
        gating.check_batch(*state.hidden.shape[:2])
        self.blocks()[0].attachment.check_gates(gating)
        self.hook_for(gating, taps)
        extra: _Extra = state.extra
        pending = (*extra.pending, *((block, gating) for block in range(first, last)))
        layers = self._whole_layers(pending[0][0] if pending else first, last)
        if not layers:
            return _C.ModelState(
                state.hidden,
                attention_mask=state.attention_mask,
                batch=state.batch,
                layer=last,
                extra=_Extra(extra.journal, extra.stack, pending),
            )
        ended = self._first_block[layers[-1] + 1] if layers[-1] + 1 < len(self._layers) else blocks
        call = Call(_joined(pending[: ended - pending[0][0]], gating, blocks), begun=True)
        call.padding = self._noted(extra.journal)
        hidden, mask = state.hidden, state.attention_mask
        if gating.hidden is not None and pending[0][0] == 0:
            # Gates of the stream hold from where it begins, before layer 0.
            with bind(self.blocks()[0].attachment, gating):
                journal = self._record(self._read(state.batch), _Journal(), 0)
            hidden, extra = self._hidden(journal, 0), replace(extra, journal=journal)
        call.taps, call.tokens = taps, mask
        journal, stack = extra.journal, extra.stack
        for layer in layers:
            if layer not in journal.calls:
                stack += 1
                journal = self._record(self._read(state.batch), journal, stack, hidden)
                hidden = self._hidden(journal, layer)
                mask = call.tokens = self._tokens(journal, hidden)
            hidden = self._call_layer(journal, layer, hidden, call)
        rest = tuple(entry for entry in pending if entry[0] >= ended)
        return _C.ModelState(
            hidden,
            attention_mask=mask,
            batch=state.batch,
            layer=last,
            extra=_Extra(journal, stack, rest),
        )

    def head(self, state: _C.ModelState) -> torch.Tensor:
        """Logits of a task model, last hidden state of a base model."""
        journal = _Journal(front=state.extra.journal.front)
        journal.returned[len(self._layers) - 1] = state.hidden.transpose(0, self._batch_axis)
        return _tensor_of(self._run_model(self._read(state.batch), journal))

    def select(self, state: _C.ModelState, index: torch.Tensor) -> _C.ModelState:
        """The state of these samples."""
        batch = len(state.hidden)

        def pick(value: Any, of_hidden: int = 0) -> Any:
            if isinstance(value, torch.Tensor) and value.dim() > 1:
                axis = of_hidden if value.dim() == 3 else 0
                chosen = value.shape[axis] == batch
                return value.index_select(axis, index.to(value.device)) if chosen else value
            if isinstance(value, tuple | list):
                return type(value)(pick(item, of_hidden) for item in value)
            if isinstance(value, dict):
                return {
                    name: item if name in square else pick(item, of_hidden)
                    for name, item in value.items()
                }
            if isinstance(value, Call):
                return Call(padding=pick(value.padding))
            return value

        square = self.structure.sites[0].adapter.SQUARE
        extra: _Extra = state.extra
        calls = {layer: pick(call, self._batch_axis) for layer, call in extra.journal.calls.items()}
        journal = _Journal(calls, pick(extra.journal.front))
        pending = tuple((block, gating.selected(index)) for block, gating in extra.pending)
        return _C.ModelState(
            state.hidden.index_select(0, index.to(state.hidden.device)),
            attention_mask=pick(state.attention_mask),
            batch={
                name: value.index_select(0, index.to(value.device)) if value.dim() else value
                for name, value in state.batch.items()
            },
            layer=state.layer,
            extra=_Extra(journal, extra.stack, pending),
        )

    def attention(self, layer: int) -> _C.AttentionWeights:
        """Weights of the heads that are physically there."""
        site = self._site(layer)
        weights = site.adapter.weights(site.module)
        return _C.AttentionWeights(
            weights.q,
            weights.k,
            weights.v,
            weights.o,
            q_bias=weights.q_bias,
            k_bias=weights.k_bias,
            v_bias=weights.v_bias,
            o_bias=weights.o_bias,
        )

    def replace_attention(self, layer: int, weights: _C.AttentionWeights, kept: list[int]) -> None:
        """Put new weights in place; everything is checked before anything changes."""
        replace_attention(self, self._site(layer), weights, list(kept))

    def feed_forward(self, layer: int) -> _C.FeedForwardWeights:
        """Weights of the neurons that are physically there."""
        return self._feed_forward_site(layer).weights()

    def replace_feed_forward(
        self, layer: int, weights: _C.FeedForwardWeights, kept: list[int]
    ) -> None:
        """Put new weights in place; everything is checked before anything changes."""
        replace_feed_forward(self, self._feed_forward_site(layer), weights, list(kept))

    def set_sublayers(self, open: _C.Sublayers) -> None:
        """Close blocks for good, or open them again."""
        set_sublayers(self, open)
        self.hook_closed()

    def stream_width(self) -> int:
        """Width of the residual stream, if its dimensions can be gated; else 0."""
        width = self.layout().model_dim
        known = self.feed_forwards and find_stream(self.structure, width) is not None
        return width if known else 0

    def hook_for(self, gating: Gating, taps: _C.Taps | None = None) -> None:
        """Put hooks where gates or taps reach what the model's own code runs.

        They stay until ``detach``: without any, a model costs what it cost before.
        """
        attachment = self.blocks()[0].attachment
        seen = taps is not None and (
            taps.feed_forward_inputs or taps.neuron_activations or taps.feed_forward_outputs
        )
        gated = gating.neurons is not None or gating.feed_forward_sublayers is not None
        if (gated or seen) and not attachment.feed_forwards:
            hook_neurons(self.feed_forwards, attachment)
        if gating.hidden is not None:
            hook_stream(*find_stream(self.structure, attachment.stream), attachment)

    def hook_closed(self) -> None:
        """Put hooks where a feed-forward block was closed for good: its bias must not train."""
        attachment = self.blocks()[0].attachment
        if not attachment.feed_forwards and not all(s.origin.open for s in self.feed_forwards):
            hook_neurons(self.feed_forwards, attachment)

    def _check_feed_forwards(self, operation: str) -> None:
        if not self.feed_forwards:
            raise ValueError(
                f"[{operation}] expected a model whose feed-forward blocks are linear, activation, "
                "linear; found one whose blocks are not known"
            )

    def _feed_forward_site(self, layer: int):
        self._check_feed_forwards("feed_forward")
        if not 0 <= layer < len(self.feed_forwards):
            raise IndexError(
                f"[feed_forward] expected a layer below {len(self.feed_forwards)}; found {layer}"
            )
        return self.feed_forwards[layer]

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

    def direct_paths(self) -> AbstractContextManager[None] | None:
        """Gradients along the residual stream alone while open; None where it is not known."""
        crossing = any(site.cross for site in self.structure.sites)
        if not self.feed_forwards or crossing or len(self.structure.stacks) != 1:
            return None
        maps: list[nn.Module] = []
        if not has_feed_forward(self.model):  # blocks that headkit runs read constants themselves
            maps += [site.inner for site in self.feed_forwards]
            maps += [site.up for site in self.feed_forwards if site.up is not None]
        return only_direct_paths(self.model, maps)

    def parameters(self) -> list[tuple[str, torch.Tensor]]:
        """The state dictionary: parameters and persistent buffers, shared ones once."""
        seen: set[int] = set()
        found = []
        for name, value in self.model.state_dict(keep_vars=True).items():
            if id(value) not in seen:
                seen.add(id(value))
                found.append((name, value))
        return found

    def _site(self, layer: int):
        sites = self.structure.sites
        if not 0 <= layer < len(sites):
            raise IndexError(f"[attention] expected a layer below {len(sites)}; found {layer}")
        return sites[layer]

    def _whole_layers(self, first: int, last: int) -> list[int]:
        """Layers whose blocks all lie in first .. last-1."""
        ends = [*self._first_block[1:], len(self.structure.sites)]
        return [
            layer
            for layer, (start, end) in enumerate(zip(self._first_block, ends, strict=True))
            if first <= start and end <= last
        ]

    def _record(
        self,
        inputs: dict[str, torch.Tensor],
        journal: _Journal,
        stack: int,
        hidden: torch.Tensor | None = None,
    ) -> _Journal:
        """Run the model up to the last layer of a stack, with stand-ins for all layers.

        Args:
            inputs: of the model.
            journal: the one of the stack before, or an empty one.
            stack: its number.
            hidden: what the stack before returned.
        """
        counts = [len(one.layers) for one in self.structure.stacks]
        first = sum(counts[:stack])
        fresh = _Journal(front=journal.front, last=first + counts[stack] - 1)
        if hidden is not None:
            fresh.returned[first - 1] = hidden.transpose(0, self._batch_axis)
        try:
            self._run_model(inputs, fresh)
        except _Reached:
            fresh.last = None
            fresh.calls = {layer: call for layer, call in fresh.calls.items() if layer >= first}
            return fresh
        raise RuntimeError("[embed] expected the model to call its layers; found that it did not")

    def _run_model(self, inputs: dict[str, torch.Tensor], journal: _Journal) -> Any:
        structure = self.structure
        replaced: dict[str, nn.Module] = {}
        for number, layer in enumerate(self._layers):
            output = structure.sites[structure.blocks_of(layer)[0]].adapter.layer_output
            name = self._hidden_names[number]
            replaced[layer] = _StandIn(structure.module(layer), number, journal, name, output)
        for path in structure.sites[0].adapter.FRONT:
            full = f"{structure.base}.{path}" if structure.base else path
            module = _submodule(self.model, full)
            if module is not None:
                replaced[full] = _Front(module, path, journal)
        return with_modules(self.model, replaced)(**inputs)

    def _hidden(self, journal: _Journal, layer: int) -> torch.Tensor:
        if layer not in journal.calls:
            raise RuntimeError(
                f"[run] expected the model to call layer {layer}; found that it did not (layer "
                "dropout: put the model into evaluation mode)"
            )
        args, kwargs = journal.calls[layer]
        hidden = args[0] if args else kwargs[self._hidden_names[layer]]
        return hidden.transpose(0, self._batch_axis)

    def _call_layer(
        self, journal: _Journal, layer: int, hidden: torch.Tensor, call: Call
    ) -> torch.Tensor:
        args, kwargs = journal.calls[layer]
        hidden = hidden.transpose(0, self._batch_axis)
        if args:
            args = (hidden, *args[1:])
        else:
            kwargs = {**kwargs, self._hidden_names[layer]: hidden}
        module = self.structure.module(self._layers[layer])
        if hands_down_keywords(module):
            kwargs = {**kwargs, CALL: call}
        # Not every layer hands its keywords down to all its blocks.
        attachment = self.blocks()[0].attachment
        enter_call(attachment, call)
        try:
            output = module(*args, **kwargs)
        finally:
            leave_call(attachment)
        output = output[0] if isinstance(output, tuple) else output
        return output.transpose(0, self._batch_axis)

    def _noted(self, journal: _Journal) -> torch.Tensor | None:
        for _, kwargs in journal.calls.values():
            call = kwargs.get(CALL)
            return None if call is None else call.padding
        return None

    def _state(
        self, hidden: torch.Tensor, journal: _Journal, stack: int, batch: dict[str, torch.Tensor]
    ) -> _C.ModelState:
        mask = self._tokens(journal, hidden)
        return _C.ModelState(
            hidden, attention_mask=mask, batch=batch, layer=0, extra=_Extra(journal, stack)
        )

    def _tokens(self, journal: _Journal, hidden: torch.Tensor) -> torch.Tensor | None:
        """Bool [B, T], True = token, of the stack that a journal is of; None = no padding."""
        mask = self._noted(journal)
        if mask is None or tuple(mask.shape) != tuple(hidden.shape[:2]):
            layer, (args, kwargs) = next(iter(journal.calls.items()))
            named = {**dict(zip(self._parameters_of(layer), args, strict=False)), **kwargs}
            adapter = self.structure.sites[self._first_block[layer]].adapter
            mask = read_mask(adapter.layer_mask(named), hidden).padding
        return None if mask is None or bool(mask.all()) else mask

    def _parameters_of(self, layer: int) -> list[str]:
        forward = original_class(self.structure.module(self._layers[layer])).forward
        return list(inspect.signature(forward).parameters)[1:]

    def _read(self, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
        unknown = [name for name in inputs if name not in self._inputs]
        if unknown or not inputs:
            raise ValueError(
                f"[embed] expected tensors named {', '.join((*self._inputs, *NOT_INPUTS))}; found "
                f"{', '.join(unknown) or 'none'}"
            )
        # An encoder-decoder makes the inputs of its decoder from labels [B, T], each in its way.
        given = {"decoder_input_ids", "decoder_inputs_embeds"}
        labels = batch.get("labels")
        shifts = bool(given & set(self._inputs)) and not given & set(inputs)
        if shifts and labels is not None and labels.dim() == 2:
            inputs["labels"] = labels
        return {**inputs, **self._settings}


def _joined(pending: tuple[tuple[int, Gating], ...], gating: Gating, blocks: int) -> Gating:
    """One gating in which each pending block has the gates that its own stage gave it."""
    if all(own is gating for _, own in pending):
        return gating
    whole = [(block, own.attention_sublayers) for block, own in pending]
    joined = _with_joined_heads(pending, blocks)
    if all(one is None for _, one in whole):
        return joined
    widest = max((one for _, one in whole if one is not None), key=lambda one: one.dim())
    gates = torch.ones_like(widest)
    for block, one in whole:
        if one is not None:
            gates[..., block] = one[..., block]
    return replace(joined, attention_sublayers=gates)


def _with_joined_heads(pending: tuple[tuple[int, Gating], ...], blocks: int) -> Gating:
    given = [own for _, own in pending if own.heads is not None]
    # A feed-forward block runs last in its layer, under the gates of the stage that ends the layer.
    last = pending[-1][1]
    if not given:
        return last
    # [L, H] before [B, L, H] before [B, L, T, H], so that each fits into the last.
    widest = max(given, key=lambda own: own.heads.dim()).heads
    heads = torch.ones_like(widest)
    compensated = next((c for own in given if (c := own.dropped_output) is not None), None)
    dropped = None if compensated is None else torch.zeros_like(compensated)
    for block, own in pending:
        if own.heads is None:
            continue
        place = heads[block] if heads.dim() == 2 else heads[:, block]
        row = own.heads[block] if own.heads.dim() == 2 else own.heads[:, block]
        if row.dim() == 2 and place.dim() == 3:
            row = row[:, None]
        place.copy_(row)
        if own.dropped_output is not None:
            dropped[block] = own.dropped_output[block]
    return replace(last, heads=heads, dropped_output=dropped, skip=all(o.skip for o in given))


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = module._modules.get(name)
        if module is None:
            return None
    return module


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
