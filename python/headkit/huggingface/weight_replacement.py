"""New weights in place of those of a block, and blocks that close: checked first, then whole."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from headkit import _C
from headkit.huggingface.adapter import Weights
from headkit.huggingface.attention_block import BLOCK, ORIGIN, Block, Origin
from headkit.huggingface.neurons import NEURON_ORIGIN, NeuronSite
from headkit.huggingface.structure import Site

if TYPE_CHECKING:
    from headkit.huggingface.staged_model import StagedModel

# Attribute of a pruned model: the fingerprint it had with all its heads.
BASE = "headkit_base"


def replace_attention(
    gated: StagedModel, site: Site, weights: _C.AttentionWeights, kept: list[int]
) -> None:
    """Put new weights into an attention block.

    Args:
        gated: the model.
        site: the block in it.
        weights: of the heads that stay.
        kept: their original indices, ascending.

    Raises:
        ValueError: if heads or weights do not fit; nothing has changed.
    """
    block: Block = getattr(site.module, BLOCK)
    heads = block.origin.heads
    if kept != sorted(set(kept)) or any(not 0 <= head < heads for head in kept):
        raise ValueError(
            f"[replace_attention] expected ascending heads from 0 to {heads - 1}; found {kept}"
        )
    origin = replace(block.origin, kept=kept)
    new = _checked(weights, site.adapter.weights(site.module), origin, block.head_dim)
    if origin.is_pruned:
        _note_base(gated)
    site.adapter.assign(site.module, new, len(kept))
    block.origin = origin
    setattr(site.module, ORIGIN, origin)


def replace_feed_forward(
    gated: StagedModel, site: NeuronSite, weights: _C.FeedForwardWeights, kept: list[int]
) -> None:
    """Put new weights into a feed-forward block.

    Args:
        gated: the model.
        site: the block in it.
        weights: of the neurons that stay.
        kept: their original indices, ascending.

    Raises:
        ValueError: if neurons or weights do not fit; nothing has changed.
    """
    neurons = site.origin.neurons
    if kept != sorted(set(kept)) or any(not 0 <= one < neurons for one in kept):
        raise ValueError(
            f"[replace_feed_forward] expected ascending neurons from 0 to {neurons - 1}; found "
            f"{len(kept)} others"
        )
    _check_feed_forward(weights, site.weights(), len(kept))
    if len(kept) < neurons:
        _note_base(gated)
    site.assign(weights, kept)


def set_sublayers(gated: StagedModel, open: _C.Sublayers) -> None:
    """Note which blocks of a model are open; their weights stay as they are.

    Raises:
        ValueError: unless every block is told of; nothing has changed.
    """
    blocks, sites = gated.blocks(), gated.feed_forwards
    found = (len(open.attention), len(open.feed_forward))
    if found != (len(blocks), len(sites)):
        raise ValueError(
            f"[set_sublayers] expected {len(blocks)} attention blocks and {len(sites)} "
            f"feed-forward blocks; found {found[0]} and {found[1]}"
        )
    if not all((*open.attention, *open.feed_forward)):
        _note_base(gated)
    for block, site, is_open in zip(blocks, gated.structure.sites, open.attention, strict=True):
        block.origin = replace(block.origin, open=is_open)
        setattr(site.module, ORIGIN, block.origin)
    for site, is_open in zip(sites, open.feed_forward, strict=True):
        setattr(site.out, NEURON_ORIGIN, replace(site.origin, open=is_open))


def _note_base(gated: StagedModel) -> None:
    """Remember what the model was before its first removal."""
    if gated.is_whole():
        setattr(gated.model, BASE, gated.fingerprint())


def _checked(weights: _C.AttentionWeights, old: Weights, origin: Origin, head_dim: int) -> Weights:
    """New weights of a block, if they fit in place of the old ones."""
    rows, kv_rows = len(origin.kept) * head_dim, len(origin.kept_kv()) * head_dim
    shapes = {
        "q": (rows, old.q.shape[1]),
        "k": (kv_rows, old.k.shape[1]),
        "v": (kv_rows, old.v.shape[1]),
        "o": (old.o.shape[0], rows),
    }
    found = {}
    for name, shape in shapes.items():
        biases = {"q": rows, "k": kv_rows, "v": kv_rows, "o": old.o.shape[0]}
        found[name] = _fitting(name, getattr(weights, name), shape, old.q.dtype)
        bias, old_bias = getattr(weights, f"{name}_bias"), getattr(old, f"{name}_bias")
        # An output bias may be new, that of heads whose mean output stays, and may go again.
        optional = name == "o" and not origin.has_output_bias
        if (bias is None) != (old_bias is None) and not optional:
            raise ValueError(
                f"[replace_attention] expected {name}_bias as in the model; found "
                f"{'none' if bias is None else 'one'}"
            )
        found[f"{name}_bias"] = (
            None if bias is None else _fitting(f"{name}_bias", bias, (biases[name],), old.q.dtype)
        )
    return Weights(**found)


def _check_feed_forward(
    weights: _C.FeedForwardWeights, old: _C.FeedForwardWeights, neurons: int
) -> None:
    """Refuse weights of a feed-forward block that do not fit in place of the old ones."""
    operation, width = "replace_feed_forward", old.inner.shape[1]
    shapes = {
        "inner": (neurons, width),
        "out": (old.out.shape[0], neurons),
        "up": (neurons, width),
        "inner_bias": (neurons,),
        "up_bias": (neurons,),
        "out_bias": (old.out.shape[0],),
    }
    for name, shape in shapes.items():
        value, known = getattr(weights, name), getattr(old, name)
        if (value is None) != (known is None):
            raise ValueError(
                f"[{operation}] expected {name} as in the model; found "
                f"{'none' if value is None else 'one'}"
            )
        if value is not None:
            _fitting(name, value, shape, old.inner.dtype, operation)


def _fitting(
    name: str,
    value: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    operation: str = "replace_attention",
) -> torch.Tensor:
    if tuple(value.shape) != shape or value.dtype != dtype:
        raise ValueError(
            f"[{operation}] expected {name} of shape {list(shape)} and dtype {dtype}; "
            f"found shape {list(value.shape)} and dtype {value.dtype}"
        )
    return value
