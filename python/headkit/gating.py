"""Gates bound to calls: what a model's attention blocks read, and the context that users open."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from headkit import _C

CALL = "headkit_call"


@dataclass(frozen=True)
class Gating:
    """The gates of one model, as a user gave them.

    Attributes:
        heads: [L, H], [B, L, H] or [B, L, T, H]; None = all heads run.
        dropped_output: [L, H, D]; what a closed head adds instead of nothing.
        skip: False computes closed heads and multiplies them by 0.
        policy: decides the rest for each call instead.
        state: what the policy writes its records to, or None.
    """

    heads: torch.Tensor | None = None
    dropped_output: torch.Tensor | None = None
    skip: bool = True
    policy: Any = None
    state: Any = None

    @staticmethod
    def of(gates: Any, layers: int, heads: int, state: Any = None) -> "Gating":
        """Read a tensor, HeadMask, GateSet or GatePolicy, and check its shape.

        Raises:
            ValueError: if it is something else, or does not fit a model of ``layers`` x ``heads``.
        """
        if hasattr(_C, "GatePolicy") and isinstance(gates, _C.GatePolicy):
            return Gating(policy=gates, state=state)
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
        if gates.heads is not None:
            gates.check(-1, layers, heads)
        return Gating(gates.heads, gates.dropped_output, gates.skip)

    def decided(self, hidden: torch.Tensor, padding: torch.Tensor | None) -> "Gating":
        """The gates for one call: asks the policy, if there is one.

        Args:
            hidden: [B, T, D], the input of layer 0.
            padding: bool [B, T], True = token; None = no padding.
        """
        if self.policy is None:
            return self
        gates = self.policy.decide(hidden, padding, self.state)
        return Gating(gates.heads, gates.dropped_output, gates.skip)


@dataclass(frozen=True)
class Call:
    """Everything of headkit that one forward pass carries through the keyword arguments.

    Attention modules hold no gates: a call that is recomputed later, or runs in another thread,
    sees the gates that it was made with.

    Attributes:
        padding: bool [B, T], True = attend; None = no padding.
        bias: broadcastable to [B, H, T, T], for masks that are not padding.
        gating: the gates; a policy has decided.
        bound: whether the gates were looked up already.
        attention_inputs: where each layer appends its input, if asked for.
    """

    padding: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    gating: Gating | None = None
    bound: bool = False
    attention_inputs: list[torch.Tensor] | None = None


# (encoder, gating) of the contexts that are open in this thread or task, innermost last.
_open: contextvars.ContextVar[tuple[tuple[torch.nn.Module, Gating], ...]] = contextvars.ContextVar(
    "headkit_gates", default=()
)


def open_gating(encoder: torch.nn.Module) -> Gating | None:
    """The gates that the innermost open context binds to ``encoder``."""
    for owner, gating in reversed(_open.get()):
        if owner is encoder:
            return gating
    return None


@contextmanager
def bind(encoder: torch.nn.Module, gating: Gating) -> Iterator[None]:
    """Bind gates to ``encoder`` for calls of this thread or task while the context is open."""
    token = _open.set((*_open.get(), (encoder, gating)))
    try:
        yield
    finally:
        _open.reset(token)


def gates_of_layer(gating: Gating, layer: int, like: torch.Tensor) -> torch.Tensor | None:
    """[H], [B, H] or [B, T, H] of one layer, in the gate dtype and on the device of ``like``."""
    if gating.heads is None:
        return None
    heads = gating.heads[layer] if gating.heads.dim() == 2 else gating.heads[:, layer]
    return heads.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)


def check_batch(gating: Gating, batch: int, tokens: int) -> None:
    """Refuse gates made for another batch before a layer runs.

    Raises:
        ValueError: if the first axis of the gates is not ``batch``, or the third not ``tokens``.
    """
    heads = gating.heads
    if heads is None or heads.dim() == 2:
        return
    if heads.shape[0] != batch:
        raise ValueError(
            f"[gates] expected gates for a batch of {batch}; found shape {list(heads.shape)}"
        )
    if heads.dim() == 4 and heads.shape[2] != tokens:
        raise ValueError(
            f"[gates] expected gates for {tokens} tokens; found shape {list(heads.shape)}"
        )
