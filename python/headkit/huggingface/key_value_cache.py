"""One attention block whose keys and values are kept in a cache of transformers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headkit.gating import Call
from headkit.huggingface.adapter import Norms, Weights
from headkit.huggingface.block_arguments import (
    attention_bias,
    dropout_arguments,
    gate_arguments,
    mask_of_call,
)
from headkit.huggingface.probabilities import (
    normed_and_turned,
    probabilities_of,
    project_heads,
    wants_probabilities,
)

if TYPE_CHECKING:
    from headkit.huggingface.attention_block import Block, Inputs


@dataclass(frozen=True)
class Written:
    """The key and value heads of a block that a cache holds.

    Attributes:
        rows: their places among those that are physically there, ascending; None = all.
        kv_head: for each kept query head its place in the cache; None = evenly shared. 0 for a
            head that is closed for all samples.
    """

    rows: list[int] | None
    kv_head: list[int] | None

    @property
    def is_empty(self) -> bool:
        """Whether the cache holds no head."""
        return self.rows is not None and not self.rows


def run_cached_block(
    module: nn.Module,
    block: "Block",
    call: Call,
    inputs: "Inputs",
    weights: Weights,
    norms: Norms | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run a block against its cache; the keys and values of new tokens are written to it.

    Heads that are closed for a sequence leave none: those closed for the whole batch take no place
    in the cache, those closed for one sample are not computed for it.

    Args:
        module: the attention module.
        block: its place.
        call: the call it runs in.
        inputs: what it was called with.
        weights: its weights.
        norms: of queries and keys, or None.

    Returns:
        As ``run_block``.
    """
    gates = gate_arguments(block, call, inputs.hidden)
    holds = call.gating is not None and call.gating.every is None and gates["skip"]
    written = _written(block, weights, gates["gate"] if holds else None)
    cache, layer = _own_cache(block, inputs), block.adapter.cache_layer(module)
    if written.is_empty:
        _write_nothing(cache, layer, inputs)
        return _closed_output(inputs.hidden, weights, gates), None

    keys, values = _keys_and_values(
        block, cache, layer, inputs, weights, norms, written, gates["gate"] if holds else None
    )
    mask = mask_of_call(call, inputs, keys.shape[2])
    arguments: dict[str, Any] = {
        "q_bias": weights.q_bias,
        "o_bias": weights.o_bias,
        "scale": inputs.scaling,
        "key_padding_mask": mask.padding,
        "is_causal": mask.causal,
        "query_offset": mask.offset,
        "window": mask.window,
        "attn_bias": attention_bias(block.origin, inputs, mask),
        **gates,
        **dropout_arguments(inputs),
    }
    if written.kv_head is not None:
        arguments["kv_head"] = written.kv_head
    if inputs.rotary is not None:
        arguments["rotary_cos"], arguments["rotary_sin"] = inputs.rotary
    if norms is not None:
        arguments |= {"q_norm_weight": norms.q, "norm_eps": norms.eps}
    output = torch.ops.headkit.attend(
        inputs.hidden, keys, values, weights.q, weights.o, len(block.origin.kept), **arguments
    )
    probabilities = None
    if wants_probabilities(block.adapter.config(module), inputs.keywords, call):
        query = project_heads(inputs.hidden, weights.q, weights.q_bias, block.head_dim)
        query = normed_and_turned(query, None if norms is None else norms.q, norms, inputs.rotary)
        probabilities = probabilities_of(block, inputs, query, keys, mask, written.kv_head)
        if holds and gates["gate"] is not None:
            # Of a head that was closed there are no keys.
            is_open = (gates["gate"] != 0).to(probabilities.dtype)
            probabilities = probabilities * is_open[..., None, None]
    return output, probabilities


def _own_cache(block: "Block", inputs: "Inputs") -> Any:
    """The part of an encoder-decoder cache that a block uses."""
    cache = inputs.cache
    if not hasattr(cache, "cross_attention_cache"):
        return cache
    return cache.cross_attention_cache if block.cross else cache.self_attention_cache


def _written(block: "Block", weights: Weights, gate: torch.Tensor | None) -> Written:
    present = weights.k.shape[0] // block.head_dim
    if not present:
        return Written([], [])
    kv_head = block.kv_head(present)
    if gate is None:
        return Written(None, kv_head)
    heads = len(block.origin.kept)
    if kv_head is None:
        kv_head = [head * present // heads for head in range(heads)] if heads else []
    open_heads = (gate != 0).reshape(-1, heads).any(0).tolist()
    rows = sorted({kv_head[head] for head in range(heads) if open_heads[head]})
    if len(rows) == present:
        return Written(None, block.kv_head(present))
    place = {row: index for index, row in enumerate(rows)}
    return Written(rows, [place.get(row, 0) for row in kv_head])


def _keys_and_values(
    block: "Block",
    cache: Any,
    layer: int,
    inputs: "Inputs",
    weights: Weights,
    norms: Norms | None,
    written: Written,
    gate: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, heads in the cache, S, dh] of all tokens so far."""
    updated = getattr(inputs.cache, "is_updated", None) if block.cross else None
    if updated is not None and updated.get(layer):
        return cache.layers[layer].keys, cache.layers[layer].values
    source = inputs.hidden if inputs.source is None else inputs.source
    heads = weights.k.shape[0] // block.head_dim if written.rows is None else len(written.rows)
    arguments: dict[str, Any] = {
        "k_bias": _rows(weights.k_bias, written.rows, block.head_dim),
        "v_bias": _rows(weights.v_bias, written.rows, block.head_dim),
        "gate": _open_for(gate, heads, written),
    }
    if inputs.rotary is not None:
        arguments["rotary_cos"], arguments["rotary_sin"] = inputs.rotary
    if norms is not None:
        arguments |= {"k_norm_weight": norms.k, "norm_eps": norms.eps}
    keys, values = torch.ops.headkit.project_kv(
        source,
        _rows(weights.k, written.rows, block.head_dim),
        _rows(weights.v, written.rows, block.head_dim),
        heads,
        **arguments,
    )
    keys, values = cache.update(keys, values, layer)
    if updated is not None:
        updated[layer] = True
    return keys, values


def _rows(
    weight: torch.Tensor | None, rows: list[int] | None, head_dim: int
) -> torch.Tensor | None:
    if weight is None or rows is None:
        return weight
    return weight.unflatten(0, (-1, head_dim))[rows].flatten(0, 1)


def _open_for(gate: torch.Tensor | None, heads: int, written: Written) -> torch.Tensor | None:
    """Which samples need a key and value head, [B, heads]; None = all of them."""
    if gate is None or gate.dim() != 2 or len(gate) == 1:
        return None
    is_open = gate != 0
    kv_head = written.kv_head
    if kv_head is None:
        kv_head = [head * heads // gate.shape[1] for head in range(gate.shape[1])]
    index = torch.tensor(kv_head, device=gate.device).expand_as(gate)
    needed = torch.zeros(len(gate), heads, dtype=gate.dtype, device=gate.device)
    needed = needed.scatter_reduce(1, index, is_open.to(gate.dtype), "amax")
    return None if bool(needed.all()) else needed


def _write_nothing(cache: Any, layer: int, inputs: "Inputs") -> None:
    """Keep the cache's count of tokens, which it reads from its layers, right.

    The growing cache of transformers takes its length from layer 0, and takes an empty tensor for
    no tokens: one number a token stands in.
    """
    source = inputs.hidden if inputs.source is None else inputs.source
    updated = getattr(inputs.cache, "is_updated", None) if inputs.source is not None else None
    if updated is not None:
        if updated.get(layer):
            return
        updated[layer] = True
    nothing = source.new_zeros(len(source), 1, source.shape[1], 1)
    cache.update(nothing, nothing, layer)


def _closed_output(hidden: torch.Tensor, weights: Weights, gates: dict[str, Any]) -> torch.Tensor:
    """What a block without an open head adds: biases and compensation."""
    output = hidden.new_zeros(*hidden.shape[:2], weights.o.shape[0])
    if weights.o_bias is not None:
        output = output + weights.o_bias
    if gates["dropped_output"] is not None:
        output = output + gates["dropped_output"].sum(0)
    return output
