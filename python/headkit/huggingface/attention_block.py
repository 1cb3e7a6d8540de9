"""The module that stands in for an attention block: same parameters, one operator call."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from headkit.gating import CALL, Call, gates_of_layer
from headkit.huggingface.padding import read_mask

BLOCK = "headkit_block"
KEPT = "headkit_kept_heads"


@dataclass
class Block:
    """Where a block stands in its model.

    Attributes:
        layer: its number.
        heads: heads of the original layer, H.
        head_dim: width of one head.
        kept: original indices of the heads that are there, ascending.
    """

    layer: int
    heads: int
    head_dim: int
    kept: list[int]


@cache
def gated_class(mixin: type, original: type) -> type:
    """The class that an ``original`` module gets while it is attached.

    A subclass of the original's, so that transformers still records its outputs.
    """
    return type(f"Gated{original.__name__}", (mixin, original), {"__module__": mixin.__module__})


def _restore(mixin: type, original: type) -> nn.Module:
    cls = gated_class(mixin, original)
    return cls.__new__(cls)


class Swapped:
    """Base of the mixins. A module changes its class in place: parameters, hooks and mode stay."""

    def __reduce__(self):
        mixin, original = type(self).__bases__
        return _restore, (mixin, original), self.__dict__.copy()


def swap_in(module: nn.Module, mixin: type) -> None:
    """Make ``module`` behave as ``mixin`` says."""
    module.__class__ = gated_class(mixin, type(module))


def swap_out(module: nn.Module) -> None:
    """Give ``module`` its own class back."""
    module.__class__ = type(module).__bases__[1]


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def refuse_altered(linears: Sequence[nn.Module], operation: str) -> None:
    """Refuse projections that the operator would not run as they are.

    Raises:
        ValueError: if one is no plain ``nn.Linear`` (adapters, quantisation) or has hooks.
    """
    for linear in linears:
        if type(linear) is not nn.Linear:
            raise ValueError(
                f"[{operation}] expected projections of type Linear; found {type(linear).__name__} "
                "(merge adapters first)"
            )
        for hooks in HOOKS:
            if getattr(linear, hooks):
                raise ValueError(
                    f"[{operation}] expected projections without hooks, because the block runs "
                    "them as one operator; found a hook"
                )


def run_block(
    module: nn.Module,
    hidden: torch.Tensor,
    linears: tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear],
    attention_mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Run one attention block under the gates of the call.

    Args:
        module: the attention module; has ``scaling``, ``dropout``, ``config`` and a ``Block``.
        hidden: [B, T, D].
        linears: Q, K, V and output projection.
        attention_mask: as transformers hands it over.
        kwargs: the keyword arguments of the call, gates included.

    Returns:
        Output [B, T, D] after the output projection, and attention probabilities [B, kept heads, T,
        T] if the call asks for them and runs eager attention, else None.
    """
    if kwargs.get("past_key_values") is not None or kwargs.get("encoder_hidden_states") is not None:
        raise ValueError(
            "[attention] expected encoder self-attention; found a cache or cross-attention"
        )
    refuse_altered(linears, "attention")
    q, k, v, o = linears
    block: Block = getattr(module, BLOCK)
    call: Call | None = kwargs.get(CALL)
    if call is None:
        padding, bias = read_mask(attention_mask, hidden)
        call = Call(padding=padding, bias=bias, bound=True)
    if call.attention_inputs is not None:
        call.attention_inputs.append(hidden)

    gate = dropped_output = None
    skip = True
    gating = call.gating
    pruned = len(block.kept) < block.heads
    if gating is not None:
        gate = gates_of_layer(gating, block.layer, hidden)
        skip = gating.skip
        if gate is not None and gating.dropped_output is not None:
            dropped_output = gating.dropped_output[block.layer].to(hidden.device, hidden.dtype)
        if pruned and gate is not None:
            gate = gate[..., block.kept]
            dropped_output = None if dropped_output is None else dropped_output[block.kept]
    bias = call.bias
    if pruned and bias is not None and bias.shape[1] == block.heads:
        bias = bias[:, block.kept]

    dropout = module.dropout.p if module.training else 0.0
    output = torch.ops.headkit.gated_attention(
        hidden,
        q.weight,
        k.weight,
        v.weight,
        o.weight,
        len(block.kept),
        q_bias=q.bias,
        k_bias=k.bias,
        v_bias=v.bias,
        o_bias=o.bias,
        scale=module.scaling,
        gate=gate,
        skip=skip,
        key_padding_mask=call.padding,
        attn_bias=bias,
        dropped_output=dropped_output,
        dropout_p=dropout,
        dropout_seed=int(torch.randint(2**62, ())) if dropout > 0 else 0,
    )
    wants = kwargs.get("output_attentions")
    wants = module.config.output_attentions if wants is None else wants
    if not wants or module.config._attn_implementation != "eager":
        return output, None
    return output, _probabilities(hidden, q, k, block, module.scaling, attention_mask)


def _probabilities(
    hidden: torch.Tensor,
    q: nn.Linear,
    k: nn.Linear,
    block: Block,
    scaling: float,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    shape = (*hidden.shape[:2], len(block.kept), block.head_dim)
    query = q(hidden).view(shape).transpose(1, 2)
    key = k(hidden).view(shape).transpose(1, 2)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        padding, bias = read_mask(attention_mask, hidden)
        if padding is not None:
            bias = torch.zeros_like(scores[:, :1]).masked_fill(
                ~padding[:, None, None], torch.finfo(scores.dtype).min
            )
        elif bias.shape[1] == block.heads:
            bias = bias[:, block.kept]
        scores = scores + bias
    return scores.softmax(-1)
