"""What stands in for an attention block: same parameters, one operator call."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from headkit import _C
from headkit.gating import (
    CALL,
    Attachment,
    Call,
    note_recomputed,
    open_gating,
    recomputed_call,
    running_call,
)
from headkit.huggingface.adapter import Adapter, refuse_altered
from headkit.huggingface.block_arguments import mask_of_call, operator_arguments
from headkit.huggingface.direct_paths import as_constant, reads_constants
from headkit.huggingface.key_value_cache import run_cached_block
from headkit.huggingface.probabilities import attention_probabilities, wants_probabilities

BLOCK = "headkit_block"
ORIGIN = "headkit_origin"


@dataclass
class Origin:
    """What a block was before any head of it was removed, and what is left.

    Attributes:
        heads: heads of the original block, H.
        kv_heads: heads of its keys and values, Hkv.
        kept: original indices of the heads that are there, ascending.
        has_output_bias: whether the output projection had a bias.
        open: whether the block adds anything, its output bias included.
    """

    heads: int
    kv_heads: int
    kept: list[int]
    has_output_bias: bool = True
    open: bool = True

    @property
    def is_pruned(self) -> bool:
        """Whether a head is missing."""
        return len(self.kept) < self.heads

    def kept_kv(self) -> list[int]:
        """Original indices of the key and value heads that a kept head uses, ascending."""
        group = self.heads // self.kv_heads
        return sorted({head // group for head in self.kept})


@dataclass
class Block:
    """Where a block stands in its model.

    Attributes:
        number: its place among the blocks of the model.
        adapter: its family.
        attachment: its model.
        origin: its heads.
        head_dim: width of one head, dh.
        cross: whether keys and values come from another sequence.
    """

    number: int
    adapter: Adapter
    attachment: Attachment
    origin: Origin
    head_dim: int
    cross: bool

    def kv_head(self, present: int) -> list[int] | None:
        """Which of the ``present`` key and value heads each kept head uses; None = evenly."""
        origin = self.origin
        if not origin.is_pruned:
            return None
        if present == len(origin.kept) and origin.kv_heads != origin.heads:
            return list(range(present))
        group = origin.heads // origin.kv_heads
        place = {head: index for index, head in enumerate(origin.kept_kv())}
        return [place[head // group] for head in origin.kept]


@dataclass
class Inputs:
    """What one call of a block computes on, whatever its family calls it.

    Attributes:
        hidden: [B, T, D].
        mask: as transformers hands it over.
        source: [B, S, Dk], where keys and values come from; None = ``hidden``.
        cache: a cache of transformers, or None.
        rotary: cos and sin, [B or 1, T, dr].
        position_bias: added to the scores, broadcastable to [B, H, T, S], H as in the original.
        scaling: factor on the scores.
        causal: whether the block is causal where its mask does not say.
        dropout: of the probabilities.
        window: distances between query and key that the block sees are below this; None = any.
        probabilities: whether the call itself asks for attention probabilities.
        keywords: the other keyword arguments of the call.
    """

    hidden: torch.Tensor
    mask: torch.Tensor | None
    keywords: dict[str, Any]
    scaling: float
    source: torch.Tensor | None = None
    cache: Any = None
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    position_bias: torch.Tensor | None = None
    causal: bool = False
    dropout: float = 0.0
    window: int | None = None
    probabilities: bool = False


def run_block(module: nn.Module, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run one attention block under the gates of its call.

    Args:
        module: the attention module; has a ``Block``.
        inputs: what it was called with.

    Returns:
        Output [B, T, D] after the output projection, and attention probabilities [B, kept heads, T,
        S] if the call asks for them and the model runs eager attention, else None.

    Raises:
        ValueError: if the block's projections were altered, or it cannot run such a call.
    """
    block: Block = getattr(module, BLOCK)
    if reads_constants():
        hidden, source = as_constant(inputs.hidden), as_constant(inputs.source)
        inputs = replace(inputs, hidden=hidden, source=source)
    adapter, hidden = block.adapter, inputs.hidden
    refuse_altered(adapter.projections(module), "attention")
    call = call_of_block(block, inputs.keywords)
    weights, norms = adapter.weights(module), adapter.norms(module)
    if inputs.cache is not None:
        output, probabilities = run_cached_block(module, block, call, inputs, weights, norms)
        return gate_whole(block, call, output), probabilities
    source = hidden if inputs.source is None else inputs.source
    mask = mask_of_call(call, inputs, source.shape[1])
    arguments = operator_arguments(block, inputs, weights, norms, mask, call)
    if call.taps is not None:
        tap(call, arguments)
    output = gate_whole(block, call, torch.ops.headkit.gated_attention(**arguments))
    probabilities = None
    if inputs.probabilities or wants_probabilities(adapter.config(module), inputs.keywords, call):
        probabilities = attention_probabilities(block, inputs, weights, norms, mask)
    return output, probabilities


def gate_whole(block: Block, call: Call, output: torch.Tensor) -> torch.Tensor:
    """What a block adds, [B, T, D], times its gate; nothing if it was closed for good."""
    if not block.origin.open:
        output = torch.zeros_like(output)
    elif call.gating is not None:
        output = call.gating.with_added(block.number, output)
        factor = call.gating.attention_factor(block.number, output)
        output = call.gating.of_stream(output if factor is None else output * factor)
    if call.taps is not None and call.taps.attention_outputs:
        call.taps.attention_output = [*call.taps.attention_output, output]
    return output


def call_of_block(block: Block, keywords: dict[str, Any]) -> Call:
    """The call that a block runs in.

    Raises:
        ValueError: if it is recomputed in a backward pass, where its gates are no longer known.
    """
    call = keywords.get(CALL)
    if torch.compiler.is_compiling():
        return Call(open_gating(block.attachment)) if call is None else call
    backward = torch._C._current_graph_task_id()
    if call is not None:
        if backward != -1:
            note_recomputed(block.attachment, backward, call)
        return call
    call = running_call(block.attachment)
    if call is not None:
        return call
    if backward != -1:
        call = recomputed_call(block.attachment, backward)
        if call is not None:
            return call
        raise ValueError(
            "[attention] expected a block that is recomputed in backward to be given the gates of "
            "its forward pass; found none: this model does not hand them down, so checkpoint "
            "without headkit, or not at all"
        )
    gating = open_gating(block.attachment)
    if gating is not None and gating.policy is not None:
        raise ValueError(
            "[gates] expected the model itself to be called under a policy; found a call of one "
            "of its parts"
        )
    return Call(gating)


def tap(call: Call, arguments: dict[str, Any]) -> None:
    """Show a block to a caller who asked for it, before its gates."""
    taps = call.taps
    if taps.attention_inputs:
        taps.attention_input = [*taps.attention_input, arguments["x"]]
    if taps.head_contexts:
        taps.head_context = [*taps.head_context, _C.head_contexts(**arguments)]
    if taps.attention_calls:
        taps.attention_call = [*taps.attention_call, _C.attention_block_call(**arguments)]
    if taps.head_contexts or taps.attention_calls:
        taps.valid = [*taps.valid, call.tokens]
