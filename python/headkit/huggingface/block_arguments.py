"""What a call of an attention block hands to the operators: masks, biases, gates, dropout."""

from typing import TYPE_CHECKING, Any

import torch

from headkit.gating import Call, Gating
from headkit.huggingface.adapter import Norms, Weights
from headkit.huggingface.masks import Mask, read_mask

if TYPE_CHECKING:
    from headkit.huggingface.attention_block import Block, Inputs, Origin


def operator_arguments(
    block: "Block",
    inputs: "Inputs",
    weights: Weights,
    norms: Norms | None,
    mask: Mask,
    call: Call,
) -> dict[str, Any]:
    """The arguments of ``torch.ops.headkit.gated_attention`` for a call of a block."""
    hidden, origin = inputs.hidden, block.origin
    arguments: dict[str, Any] = {
        "x": hidden,
        "q_weight": weights.q,
        "k_weight": weights.k,
        "v_weight": weights.v,
        "o_weight": weights.o,
        "num_heads": len(origin.kept),
        "q_bias": weights.q_bias,
        "k_bias": weights.k_bias,
        "v_bias": weights.v_bias,
        "o_bias": weights.o_bias,
        "scale": inputs.scaling,
        "key_padding_mask": mask.padding,
        "is_causal": mask.causal,
        "attn_bias": attention_bias(origin, inputs, mask),
        **gate_arguments(block, call, hidden),
        **dropout_arguments(inputs),
    }
    if mask.window is not None:
        arguments["window"] = mask.window
    if inputs.source is not None:
        arguments["kv"] = inputs.source
    if inputs.rotary is not None:
        arguments["rotary_cos"], arguments["rotary_sin"] = inputs.rotary
    if norms is not None:
        arguments |= {
            "q_norm_weight": norms.q,
            "k_norm_weight": norms.k,
            "norm_eps": norms.eps,
        }
    if origin.kv_heads != origin.heads:
        present = weights.k.shape[0] // block.head_dim
        arguments["num_kv_heads"] = present
        if (kv_head := block.kv_head(present)) is not None:
            arguments["kv_head"] = kv_head
    return arguments


def gate_arguments(block: "Block", call: Call, hidden: torch.Tensor) -> dict[str, Any]:
    """The gate arguments of the operator: those of the heads that are there."""
    gating = call.gating
    gate = None if gating is None else gating.of_layer(block.number, hidden)
    if gating is not None and gating.skip:
        gate = _closed_with_block(block, gating, gate, hidden)
    if gating is None or gate is None:
        return {"gate": None, "skip": True, "dropped_output": None}
    dropped_output = gating.dropped_output
    if dropped_output is not None:
        dropped_output = dropped_output[block.number].to(hidden.device, hidden.dtype)
    if block.origin.is_pruned:
        kept = block.origin.kept
        gate = gate[..., kept]
        dropped_output = None if dropped_output is None else dropped_output[kept]
    return {"gate": gate, "skip": gating.skip, "dropped_output": dropped_output}


def _closed_with_block(
    block: "Block", gating: Gating, gate: torch.Tensor | None, hidden: torch.Tensor
) -> torch.Tensor | None:
    """Gates of heads, closed also where their whole block is: their work would be for nothing."""
    whole = gating.attention_sublayers
    if whole is None:
        return gate
    is_open = (whole[..., block.number].detach() != 0).to(hidden.device)
    if gate is None:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        gate = torch.ones(block.origin.heads, dtype=dtype, device=hidden.device)
    return gate * is_open.to(gate.dtype).reshape(*is_open.shape, *[1] * max(1, gate.dim() - 1))


def dropout_arguments(inputs: "Inputs") -> dict[str, Any]:
    """The dropout arguments of the operator, with a seed from torch's generator."""
    if inputs.dropout <= 0:
        return {}
    return {"dropout_p": inputs.dropout, "dropout_seed": int(torch.randint(2**62, ()))}


def attention_bias(origin: "Origin", inputs: "Inputs", mask: Mask) -> torch.Tensor | None:
    """What is added to the scores of the heads that are there."""
    parts = [part for part in (inputs.position_bias, mask.bias) if part is not None]
    if not parts:
        return None
    bias = parts[0] if len(parts) == 1 else parts[0] + parts[1]
    if origin.is_pruned and bias.shape[1] == origin.heads > 1:
        bias = bias[:, origin.kept]
    return bias


def mask_of_call(call: Call, inputs: "Inputs", keys: int) -> Mask:
    """The mask of a call over this many keys, read once for all blocks that are given the same."""
    hidden, mask = inputs.hidden, inputs.mask
    noted = call.padding
    if noted is not None and (
        inputs.source is not None or tuple(noted.shape) != (hidden.shape[0], keys)
    ):
        noted = None
    if noted is not None and not inputs.causal:
        # transformers hands over None for a mask of ones, and also where it has no mask function
        # for the chosen attention: then the padding would be lost.
        if mask is None and not torch.compiler.is_compiling() and not call.pads():
            noted = None
        return Mask(padding=noted, window=inputs.window)
    if mask is None:
        read = read_mask(None, hidden, keys, causal=inputs.causal, window=inputs.window)
        if noted is not None and call.pads():
            read = read._replace(padding=noted)
        return read
    key = (id(mask), inputs.window)
    known = call.masks.get(key)
    if known is None or known[0] is not mask:
        read = read_mask(mask, hidden, keys, causal=inputs.causal, window=inputs.window)
        known = (mask, read)
        call.masks[key] = known
    return known[1]
