"""Gates of sequences that are generated token by token with a key and value cache.

A cache belongs to the gates that it was filled under: a head that was closed then left no keys and
values. So the gates are decided on the prompt and held, unless a context asks for new decisions;
then keys and values of all heads are written.
"""

import contextvars
from dataclasses import dataclass, replace
from typing import Any

import torch

from headkit.gating import Call, Gating

MEMORY = "headkit_memory"


@dataclass
class Memory:
    """What a cache remembers of the gates of its sequences.

    Attributes:
        given: the gates of the context that it was filled under.
        decided: what they came to.
        hidden: inputs of layer 0 so far, [B, S, D]; kept only where a policy is asked again.
        fresh: tokens since the last decision.
    """

    given: Gating
    decided: Gating
    hidden: torch.Tensor | None = None
    fresh: int = 0


# What the encoder of an encoder-decoder was decided to, for the decoder that is called apart.
_encoded: contextvars.ContextVar[tuple[Gating, Gating] | None] = contextvars.ContextVar(
    "headkit_encoded", default=None
)


def begin(call: Call, hidden: torch.Tensor, padding: torch.Tensor | None, cache: Any) -> None:
    """Settle the gates of a call when a stack of layers begins.

    Args:
        call: the call.
        hidden: [B, T, D], the input of the stack's first layer.
        padding: bool [B, S], True = token, of the tokens so far; what a cache has room for beyond
            them does not count. None = no padding.
        cache: the cache of the call, or None.

    Raises:
        ValueError: if the gates do not fit the batch, or are others than those that the cache was
            filled under, or a policy decides midway where a cache is filled.
    """
    if cache is None:
        call.begin(hidden, padding)
        return
    given = call.given if call.begun else call.gating
    if given is not None and given.policy is not None and len(given.policy.decision_layers) > 1:
        raise ValueError(
            "[gates] expected a call without a cache (use_cache=False) under a policy that decides "
            "midway; found a cache, whose keys and values belong to gates that hold for the "
            "sequence"
        )
    length = int(cache.get_seq_length())
    padding = None if padding is None else padding[:, : length + hidden.shape[1]]
    memory: Memory | None = getattr(cache, MEMORY, None) if length else None
    if memory is None:
        memory = _first(call, given, hidden, padding, length)
        setattr(cache, MEMORY, memory)
        if memory is not None and memory.hidden is not None:
            _reorder_with(cache)
    else:
        _continue(memory, given, hidden, padding, length)
    call.given, call.gating = given, None if memory is None else memory.decided
    if call.gating is not None:
        call.gating.check_batch(*hidden.shape[:2])
    call.begun = True


def note_encoded(given: Gating | None, decided: Gating | None) -> None:
    """Note what an encoder that runs apart was decided to."""
    _encoded.set(None if given is None or decided is None else (given, decided))


def _first(
    call: Call,
    given: Gating | None,
    hidden: torch.Tensor,
    padding: torch.Tensor | None,
    length: int,
) -> Memory | None:
    if given is None:
        return None
    if given.heads is not None and given.heads.dim() == 4:
        raise ValueError(
            "[gates] expected gates [L, H] or [B, L, H] where a cache is used; found shape "
            f"{list(given.heads.shape)}"
        )
    if length and given.every is None and not call.begun:
        raise ValueError(
            "[gates] expected an empty cache where gates are held for a sequence; found one of "
            f"{length} tokens that was filled without gates (every=n decides anew on a full cache)"
        )
    if call.begun:
        return Memory(given, call.gating)
    if given.policy is None:
        return Memory(given, given.repeated(len(hidden)))
    encoded = _encoded.get()
    if encoded is not None and encoded[0] is given:
        return Memory(given, encoded[1].repeated(len(hidden)))
    if length:
        raise ValueError(
            "[gates] expected a policy to see a sequence from its first token; found a cache of "
            f"{length} tokens"
        )
    keeps = hidden.detach() if given.every is not None else None
    return Memory(given, given.decided(hidden, padding), keeps)


def _continue(
    memory: Memory,
    given: Gating | None,
    hidden: torch.Tensor,
    padding: torch.Tensor | None,
    length: int,
) -> None:
    if given is not None and given.every is not None and memory.given.every is not None:
        if given.policy is None:
            memory.given, memory.decided = given, given.repeated(len(hidden))
            return
        if memory.hidden is None:
            return
        seen = memory.hidden[:, :length]  # a cache may have been cropped
        memory.hidden = torch.cat((seen, hidden.detach()), 1)
        memory.fresh += hidden.shape[1]
        if memory.fresh >= given.every:
            memory.decided = given.decided(memory.hidden, padding)
            memory.fresh = 0
        return
    if given is not None and not _same(given, memory.given):
        raise ValueError(
            "[gates] expected the gates that the cache was filled under; found others: keys and "
            "values of heads that were closed are not there (every=n writes all of them)"
        )


def _same(one: Gating, other: Gating) -> bool:
    if one is other:
        return True
    if one.policy is not None or other.policy is not None:
        return one.policy is other.policy
    if one.every != other.every or (one.heads is None) != (other.heads is None):
        return False
    return one.heads is None or (
        one.heads.shape == other.heads.shape and torch.equal(one.heads, other.heads)
    )


def _reorder_with(cache: Any) -> None:
    reorder = cache.reorder_cache

    def reorder_cache(beams: torch.Tensor) -> None:
        reorder(beams)
        memory: Memory | None = getattr(cache, MEMORY, None)
        if memory is None or memory.hidden is None:
            return
        memory.hidden = memory.hidden.index_select(0, beams.to(memory.hidden.device))
        heads = memory.decided.heads
        if heads is not None and heads.dim() > 2:
            chosen = heads.index_select(0, beams.to(heads.device))
            memory.decided = replace(memory.decided, heads=chosen)

    cache.reorder_cache = reorder_cache
