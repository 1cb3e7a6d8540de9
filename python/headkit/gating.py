"""Gates bound to calls: what a model's attention blocks read, and the context that users open."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from headkit import _C

CALL = "headkit_call"
# Neurons of a block that a gate opens or closes.
NEURON_BLOCK = 32


@dataclass(frozen=True)
class Gating:
    """The gates of one model, as a user gave them.

    Attributes:
        heads: [L, H], [B, L, H] or [B, L, T, H]; None = all heads run.
        dropped_output: [L, H, D]; what a closed head adds instead of nothing.
        blocks: gates of blocks of neurons, [L, N] or [B, L, N]; None = all run.
        dropped_blocks: [L, N, D]; what a closed block adds instead of nothing.
        neurons: gates of neurons, [L, F] or [B, L, F]; None = all run.
        attention_sublayers, feed_forward_sublayers: gates of whole blocks, [L] or [B, L].
        hidden: gates of the dimensions of the residual stream, [D]; None = all are open.
        added_output: [B, L, D], what the closed heads of each sample add together, where that
            differs between samples; beside ``dropped_output``.
        added_blocks: [B, L, D], the same of closed blocks of neurons.
        skip: False computes closed heads and blocks and multiplies them by 0.
        policy: decides the rest for each call instead.
        model: GatedModel that the policy may look at, or None.
        state: what the policy writes its records to, or None.
        every: number of tokens after which a sequence that is generated with a cache is decided
            anew; None = what was decided on the prompt holds.
    """

    heads: torch.Tensor | None = None
    dropped_output: torch.Tensor | None = None
    skip: bool = True
    policy: Any = None
    model: Any = None
    state: Any = None
    every: int | None = None
    blocks: torch.Tensor | None = None
    dropped_blocks: torch.Tensor | None = None
    neurons: torch.Tensor | None = None
    attention_sublayers: torch.Tensor | None = None
    feed_forward_sublayers: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    added_output: torch.Tensor | None = None
    added_blocks: torch.Tensor | None = None

    @staticmethod
    def of(
        gates: Any, layers: int, heads: int, state: Any = None, every: int | None = None
    ) -> "Gating":
        """Read a tensor, HeadMask, GateSet or GatePolicy, and check its shape.

        Raises:
            ValueError: if it is something else, or does not fit a model of ``layers`` x ``heads``.
        """
        if every is not None and (isinstance(every, bool) or every < 1):
            raise ValueError(f"[gates] expected every of at least 1 token, or None; found {every}")
        if hasattr(_C, "GatePolicy") and isinstance(gates, _C.GatePolicy):
            return Gating(policy=gates, state=state, every=every)
        if isinstance(gates, _C.HeadMask):
            gates = _C.GateSet.from_mask(gates)
        if isinstance(gates, torch.Tensor):
            if gates.dtype not in (torch.float32, torch.float64):
                gates = gates.to(torch.float32)
            gates = _C.GateSet(gates)
        if not isinstance(gates, _C.GateSet):
            raise ValueError(
                "[gates] expected a tensor, HeadMask, GateSet or GatePolicy; found "
                f"{type(gates).__name__}"
            )
        gates.check(-1, layers, heads)
        return Gating.of_set(gates, every)

    @staticmethod
    def of_set(gates: Any, every: int | None = None) -> "Gating":
        """The gates of a GateSet that was checked."""
        return Gating(
            gates.heads,
            gates.dropped_output,
            gates.skip,
            every=every,
            blocks=gates.blocks,
            dropped_blocks=gates.dropped_blocks,
            neurons=gates.neurons,
            attention_sublayers=gates.attention_sublayers,
            feed_forward_sublayers=gates.feed_forward_sublayers,
            hidden=gates.hidden,
        )

    def started(self) -> "Gating":
        """The same with a state of this call for a policy that decides more than once."""
        if self.policy is None or self.state is not None or len(self.policy.decision_layers) < 2:
            return self
        return replace(self, state=self.policy.start())

    def decided(self, hidden: torch.Tensor, padding: torch.Tensor | None) -> "Gating":
        """The gates for one call: asks the policy, if there is one.

        Args:
            hidden: [B, T, D], the input of layer 0.
            padding: bool [B, T], True = token; None = no padding.
        """
        if self.policy is None:
            return self
        return self._decided(_C.GateSet(), 0, hidden, padding)

    def decided_at(
        self, layer: int, hidden: torch.Tensor, padding: torch.Tensor | None, before: "Gating"
    ) -> "Gating":
        """The gates of a call from a layer on: asks the policy again.

        Args:
            layer: attention block that runs next.
            hidden: [B, T, D], its input.
            padding: as for ``decided``.
            before: the gates up to there.
        """
        gates = _C.GateSet(
            before.heads,
            dropped_output=before.dropped_output,
            blocks=before.blocks,
            dropped_blocks=before.dropped_blocks,
            skip=before.skip,
        )
        return self._decided(gates, layer, hidden, padding)

    def _decided(
        self, before: Any, layer: int, hidden: torch.Tensor, padding: torch.Tensor | None
    ) -> "Gating":
        parts = self.policy.decide_parts(layer, hidden, padding, self.state, self.model)
        gates = parts[0][1]
        added: dict[str, Any] = {}
        if layer:
            if gates.heads is None or gates.heads.dim() == 2:
                # What differs between samples is added apart, also where they happen to agree: a
                # sample's output must not depend on its neighbours.
                gates, added = _gathered(parts, layer, hidden)
            gates = _C.join_gates(before, gates, layer, len(hidden))
        gating = replace(Gating.of_set(gates, self.every), **added)
        if gating.needs_hooks:
            raise ValueError(
                "[gates] expected a policy of heads, attention blocks and blocks of neurons; found "
                "one that gates neurons, feed-forward blocks or the residual stream"
            )
        return gating

    @property
    def needs_hooks(self) -> bool:
        """Whether it gates what may run by the model's own code."""
        gates = (self.neurons, self.feed_forward_sublayers, self.hidden)
        return any(gate is not None for gate in gates)

    def repeated(self, batch: int) -> "Gating":
        """The gates of a batch in which each sample stands several times in a row, as for beams."""
        repeated: dict[str, Any] = {
            name: gate.repeat_interleave(batch // len(gate), 0)
            for name, gate in self.by_sample().items()
            if len(gate) and batch % len(gate) == 0
        }
        return replace(self, **repeated) if repeated else self

    def selected(self, index: torch.Tensor) -> "Gating":
        """The gates of these samples, in this order."""
        chosen: dict[str, Any] = {
            name: gate.index_select(0, index.to(gate.device))
            for name, gate in self.by_sample().items()
        }
        return replace(self, **chosen) if chosen else self

    def by_sample(self) -> dict[str, torch.Tensor]:
        """The gates that have an axis for samples."""
        given = {name: getattr(self, name) for name in _SHARED_AXES}
        return {
            name: gate
            for name, gate in given.items()
            if gate is not None and gate.dim() > _SHARED_AXES[name]
        }

    def check_batch(self, batch: int, tokens: int) -> None:
        """Refuse gates made for another batch before a layer runs.

        Raises:
            ValueError: if the first axis of the gates is not ``batch``, or the third not
                ``tokens``.
        """
        heads = self.heads
        for name, gate in self.by_sample().items():
            if gate.shape[0] != batch:
                what = _MEANINGS[name]
                raise ValueError(
                    f"[gates] expected gates{what} for a batch of {batch}; found shape "
                    f"{list(gate.shape)}"
                )
        if heads is not None and heads.dim() == 4 and heads.shape[2] != tokens:
            raise ValueError(
                f"[gates] expected gates for {tokens} tokens; found shape {list(heads.shape)}"
            )

    def of_layer(self, layer: int, like: torch.Tensor) -> torch.Tensor | None:
        """[H], [B, H] or [B, T, H] of one layer, in the gate dtype and on the device of
        ``like``."""
        if self.heads is None:
            return None
        heads = self.heads[layer] if self.heads.dim() == 2 else self.heads[:, layer]
        return heads.to(like.device, _gate_dtype(like))

    def of_neurons(self, layer: int, like: torch.Tensor) -> torch.Tensor | None:
        """[F] or [B, 1, F] of one layer, on the device of ``like``."""
        if self.neurons is None:
            return None
        gate = self.neurons[layer] if self.neurons.dim() == 2 else self.neurons[:, layer, None]
        return gate.to(like.device, _gate_dtype(like))

    def of_stream(self, written: torch.Tensor) -> torch.Tensor:
        """What is written to the residual stream, [B, T, D], times its gates."""
        return written if self.hidden is None else written * self.hidden.to(written)

    def with_added(self, layer: int, output: torch.Tensor, *, blocks: bool = False) -> torch.Tensor:
        """The output of an attention or feed-forward block, [B, T, D], and what is added apart."""
        added = self.added_blocks if blocks else self.added_output
        return output if added is None else output + added[:, layer, None].to(output)

    def attention_factor(self, layer: int, like: torch.Tensor) -> torch.Tensor | None:
        """Gate of a whole attention block, [] or [B, 1, 1], dtype and device of ``like``."""
        return _factor(self.attention_sublayers, layer, like)

    def feed_forward_factor(self, layer: int, like: torch.Tensor) -> torch.Tensor | None:
        """The same of a feed-forward block."""
        return _factor(self.feed_forward_sublayers, layer, like)

    def neuron_arguments(self, layer: int, like: torch.Tensor) -> dict[str, Any]:
        """The gate arguments of the feed-forward operator for one layer."""
        if self.blocks is None:
            return {}
        gate = self.blocks[layer] if self.blocks.dim() == 2 else self.blocks[:, layer]
        dropped = self.dropped_blocks
        return {
            "gate": gate.to(like.device, _gate_dtype(like)),
            "skip": self.skip,
            "dropped_output": None if dropped is None else dropped[layer].to(like),
        }


def _gathered(parts: Any, layer: int, hidden: torch.Tensor) -> tuple[Any, dict[str, Any]]:
    """Gates [B, L, H] of a batch from those of its parts, and what closed units add to each sample.

    Args:
        parts: of places in the batch and their GateSet, [L, H].
        layer: the gates of layers below it do not count.
        hidden: [B, T, D].
    """
    batch, found = len(hidden), {}
    for units, dropped in (("heads", "dropped_output"), ("blocks", "dropped_blocks")):
        given = [
            (places, getattr(gates, units), getattr(gates, dropped)) for places, gates in parts
        ]
        like = next((gate for _, gate, _ in given if gate is not None), None)
        if like is None:
            continue
        whole = found[units] = like.new_ones(batch, *like.shape)
        for places, gate, adds in given:
            places = places.to(like.device)
            if gate is not None:
                whole[places] = gate
            if gate is None or adds is None:
                continue
            closed = (1 - gate[layer:]).to(adds.dtype)
            sums = torch.zeros(len(gate), adds.shape[2], dtype=adds.dtype, device=adds.device)
            sums[layer:] = (closed[..., None] * adds[layer:]).sum(1)
            name = "added_output" if units == "heads" else "added_blocks"
            if name not in found:
                found[name] = sums.new_zeros(batch, *sums.shape)
            found[name][places] = sums
    gates = _C.GateSet(found.get("heads"), blocks=found.get("blocks"))
    return gates, {name: found[name] for name in found if name.startswith("added")}


# Axes of gates that are the same for all samples; with one more the first counts these.
_SHARED_AXES = {
    "heads": 2,
    "blocks": 2,
    "neurons": 2,
    "attention_sublayers": 1,
    "feed_forward_sublayers": 1,
    "added_output": 2,
    "added_blocks": 2,
}
_MEANINGS = {
    "heads": "",
    "blocks": " of neuron blocks",
    "neurons": " of neurons",
    "attention_sublayers": " of attention blocks",
    "feed_forward_sublayers": " of feed-forward blocks",
    "added_output": " with what closed heads add",
    "added_blocks": " with what closed blocks of neurons add",
}


def _factor(gates: torch.Tensor | None, layer: int, like: torch.Tensor) -> torch.Tensor | None:
    if gates is None:
        return None
    gate = gates[..., layer].to(like)
    return gate if gate.dim() == 0 else gate[:, None, None]


def _gate_dtype(like: torch.Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


@dataclass
class Call:
    """Everything of headkit that one forward pass carries through the keyword arguments.

    Attention modules hold no gates: a call that is recomputed later, or runs in another thread,
    sees the gates that it was made with.

    Attributes:
        gating: the gates; a policy decides when layer 0 begins. None = all heads run.
        padding: bool [B, S], True = attend, as the model was given it; None = not known.
        given: what ``gating`` was before layer 0 began.
        begun: whether layer 0 has begun.
        asked: the layer before which a policy was asked last.
        attentions: whether the model was asked for attention probabilities; None = it was not said.
        taps: what a caller wants to see of each block.
        tokens: bool [B, T], True = token, of the stack that runs, where there are taps; None = all.
        masks: masks that were read in this pass, by identity and window.
    """

    gating: Gating | None = None
    padding: torch.Tensor | None = None
    given: Gating | None = None
    begun: bool = False
    asked: int = 0
    attentions: bool | None = None
    taps: Any = None
    tokens: torch.Tensor | None = None
    masks: dict[tuple[int, int | None], Any] = field(default_factory=dict)
    _pads: tuple[torch.Tensor, bool] | None = field(default=None, init=False, repr=False)

    def pads(self) -> bool:
        """Whether ``padding`` closes a key; looked at once in a pass, which a GPU must wait for."""
        padding = self.padding
        if padding is None:
            return False
        if self._pads is None or self._pads[0] is not padding:
            self._pads = (padding, not bool(padding.all()))
        return self._pads[1]

    def begin(self, hidden: torch.Tensor, padding: torch.Tensor | None) -> None:
        """Settle the gates on the input of layer 0, [B, T, D]; later calls change nothing."""
        if self.begun:
            return
        self.given = self.gating
        if self.gating is not None:
            self.given = self.gating = self.gating.started()
            self.gating = self.gating.decided(hidden, padding)
            self.gating.check_batch(*hidden.shape[:2])
        self.begun = True

    def decide_at(self, layer: int, hidden: torch.Tensor, padding: torch.Tensor | None) -> None:
        """Ask the policy again before a layer, if it decides there; once for each layer."""
        given, gating = self.given, self.gating
        if given is None or gating is None or given.policy is None or self.asked >= layer:
            return
        if layer in given.policy.decision_layers:
            self.gating = given.decided_at(layer, hidden, padding, gating)
            self.asked = layer


class Attachment:
    """The identity of one attached model; its modules share it, and those of a copy another one.

    Attributes:
        layers: attention blocks, L.
        heads: heads of one, H.
        notes_padding: whether a mask [B, T] that the model is given is the padding of its blocks.
        one_stack: whether it is an encoder or a decoder, not both.
        feed_forwards: layers whose feed-forward block is attached; 0 or all.
        neuron_blocks: blocks of neurons in one of them, N.
        stream: width of the residual stream, if its dimensions can be gated; else 0.
        neurons: feed-forward blocks whose neurons can be gated, and neurons of one; 0, 0 = none.
    """

    def __init__(
        self, layers: int, heads: int, notes_padding: bool = True, *, one_stack: bool = True
    ):
        self.layers, self.heads = layers, heads
        self.notes_padding, self.one_stack = notes_padding, one_stack
        self.feed_forwards, self.neuron_blocks = 0, 0
        self.neurons = (0, 0)
        self.stream = 0

    def check_gates(self, gating: Gating) -> None:
        """Refuse gates that no call of this model can have.

        Raises:
            ValueError: as ``check_tokens``, or if gates of neurons do not fit the model, or its
                feed-forward blocks are not attached.
        """
        self.check_tokens(gating)
        self._check_neurons(gating)
        if gating.blocks is None:
            return
        if not self.feed_forwards:
            raise ValueError(
                "[gates] expected a model that was attached with feed_forward=True, for gates of "
                "neuron blocks; found attention attached alone"
            )
        shape = (self.feed_forwards, self.neuron_blocks)
        if tuple(gating.blocks.shape[-2:]) != shape:
            raise ValueError(
                f"[gates] expected gates of neuron blocks of shape {list(shape)} or [batch, "
                f"{shape[0]}, {shape[1]}]; found shape {list(gating.blocks.shape)}"
            )

    def _check_neurons(self, gating: Gating) -> None:
        if gating.hidden is not None:
            if not self.stream:
                raise ValueError(
                    "[gates] expected an encoder of the BERT line for gates of the residual "
                    "stream; found a model of which not all is known that touches its stream"
                )
            if tuple(gating.hidden.shape) != (self.stream,):
                raise ValueError(
                    f"[gates] expected gates of the residual stream of shape [{self.stream}]; "
                    f"found shape {list(gating.hidden.shape)}"
                )
        layers, count = self.neurons
        for name, shape in (("neurons", (layers, count)), ("feed_forward_sublayers", (layers,))):
            gate = getattr(gating, name)
            if gate is None:
                continue
            if not layers:
                raise ValueError(
                    "[gates] expected a model whose feed-forward blocks are linear, activation, "
                    f"linear, for gates{_MEANINGS[name]}; found one whose blocks are not known"
                )
            axes = len(shape)
            if gate.dim() not in (axes, axes + 1) or tuple(gate.shape[-axes:]) != shape:
                raise ValueError(
                    f"[gates] expected gates{_MEANINGS[name]} of shape {list(shape)} or [batch, "
                    f"{', '.join(map(str, shape))}]; found shape {list(gate.shape)}"
                )

    def check_tokens(self, gating: Gating) -> None:
        """Refuse gates by token where not all blocks run on the same tokens.

        Raises:
            ValueError: if the gates are [B, L, T, H] and the model has an encoder and a decoder.
        """
        if not self.one_stack and gating.heads is not None and gating.heads.dim() == 4:
            raise ValueError(
                "[gates] expected gates [L, H] or [B, L, H] for an encoder-decoder; found shape "
                f"{list(gating.heads.shape)}"
            )


# (attachment, gating) of the contexts that are open in this thread or task, innermost last.
_open: contextvars.ContextVar[tuple[tuple[Attachment, Gating], ...]] = contextvars.ContextVar(
    "headkit_gates", default=()
)


def open_gating(attachment: Attachment) -> Gating | None:
    """The gates that the innermost open context binds to a model."""
    for owner, gating in reversed(_open.get()):
        if owner is attachment:
            return gating
    return None


@contextmanager
def bind(attachment: Attachment, gating: Gating) -> Iterator[None]:
    """Bind gates to a model for calls of this thread or task while the context is open."""
    token = _open.set((*_open.get(), (attachment, gating)))
    try:
        yield
    finally:
        _open.reset(token)


# (attachment, call) of the forward passes that run in this thread or task, innermost last: for
# models that do not hand keyword arguments down to their attention.
_running: contextvars.ContextVar[tuple[tuple[Attachment, Call], ...]] = contextvars.ContextVar(
    "headkit_calls", default=()
)


def enter_call(attachment: Attachment, call: Call) -> None:
    """Note that a forward pass of a model begins in this thread or task."""
    _running.set((*_running.get(), (attachment, call)))


def leave_call(attachment: Attachment) -> None:
    """Note that the innermost forward pass of a model has ended."""
    calls = _running.get()
    if calls and calls[-1][0] is attachment:
        _running.set(calls[:-1])


def running_call(attachment: Attachment) -> Call | None:
    """The innermost forward pass of a model in this thread or task."""
    for owner, call in reversed(_running.get()):
        if owner is attachment:
            return call
    return None


# (attachment, number of the backward pass, call) of the block that was recomputed last.
_recomputed: contextvars.ContextVar[tuple[Attachment, int, Call] | None] = contextvars.ContextVar(
    "headkit_recomputed", default=None
)


def note_recomputed(attachment: Attachment, backward: int, call: Call) -> None:
    """Note the forward pass that a block belongs to while it is recomputed in a backward pass.

    A layer may hand keyword arguments to its first block only: what it hands to the others is
    computed right after it.
    """
    _recomputed.set((attachment, backward, call))


def recomputed_call(attachment: Attachment, backward: int) -> Call | None:
    """The forward pass of the block of a model that was recomputed last in a backward pass."""
    known = _recomputed.get()
    return known[2] if known is not None and known[:2] == (attachment, backward) else None
