"""GPT-2: queries, keys and values are columns of one Conv1D."""

from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import Adapter, Weights, parameter, unknown_parts
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.feed_forward import (
    FeedForwardPaths,
    GatedFeedForward,
    run_feed_forward,
)
from headkit.huggingface.swapping import Swapped

ATTRIBUTES = frozenset(
    {
        "config",
        "embed_dim",
        "num_heads",
        "head_dim",
        "split_size",
        "scale_attn_weights",
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "is_cross_attention",
        "layer_idx",
        "scaling",
        "is_causal",
    }
)
MODULES = frozenset({"c_attn", "q_attn", "c_proj", "attn_dropout", "resid_dropout"})


class GatedAttention(Swapped):
    """The block; the dropout of its output is inside, residual and norm are outside."""

    def forward(
        self,
        hidden_states,
        past_key_values=None,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        **kwargs,
    ):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        if self.is_cross_attention:
            attention_mask = encoder_attention_mask
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.scaling,
            source=encoder_hidden_states if self.is_cross_attention else None,
            cache=past_key_values,
            causal=self.is_causal,
            dropout=self.attn_dropout.p if self.training else 0.0,
        )
        output, probabilities = run_block(self, inputs)
        return self.resid_dropout(output), probabilities


class GatedNeurons(GatedFeedForward):
    """The feed-forward block; residual and norm are outside."""

    METHOD = "forward"

    def forward(self, hidden_states):
        """Return ``dropout(feed-forward)``."""
        return self.dropout(run_feed_forward(self, hidden_states))


class Gpt2(Adapter):
    """GPT-2, with or without cross-attention."""

    NAMES = ("GPT-2",)
    FEED_FORWARD = FeedForwardPaths(
        owner="mlp", inner="c_fc", activation="act", out="c_proj", mixin=GatedNeurons
    )

    def matches(self, module: nn.Module) -> bool:
        """``c_attn`` and ``c_proj`` beside a ``split_size``."""
        return {"c_attn", "c_proj"} <= module._modules.keys() and hasattr(module, "split_size")

    def refusal(self, module: nn.Module) -> str:
        """Parts that GPT-2 does not have, and scores in float32 for models in half precision."""
        if reason := unknown_parts(module, ATTRIBUTES, MODULES):
            return reason
        if module.reorder_and_upcast_attn:
            return f"{type(module).__name__} with reorder_and_upcast_attn"
        return ""

    def is_cross(self, module: nn.Module) -> bool:
        """Has a module of its own for queries."""
        return getattr(module, "is_cross_attention", False)

    def head_dim(self, module: nn.Module) -> int:
        """The attribute ``head_dim``."""
        return module.head_dim

    def projections(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """Two, or three with cross-attention."""
        names = ("q_attn", "c_attn", "c_proj") if self.is_cross(module) else ("c_attn", "c_proj")
        return tuple(module._modules[name] for name in names)

    def weights(self, module: nn.Module) -> Weights:
        """Transposed views of the columns."""
        out = module.c_proj
        if self.is_cross(module):
            q, q_bias = module.q_attn.weight, module.q_attn.bias
            k, v = module.c_attn.weight.chunk(2, 1)
            k_bias, v_bias = module.c_attn.bias.chunk(2)
        else:
            q, k, v = module.c_attn.weight.chunk(3, 1)
            q_bias, k_bias, v_bias = module.c_attn.bias.chunk(3)
        return Weights(q.t(), k.t(), v.t(), out.weight.t(), q_bias, k_bias, v_bias, out.bias)

    def assign(self, module: nn.Module, weights: Weights, heads: int) -> None:
        """Join the columns again; ``split_size`` is how GPT-2 itself takes them apart."""
        w = weights
        if self.is_cross(module):
            _set_conv1d(module.q_attn, [w.q], [w.q_bias])
            _set_conv1d(module.c_attn, [w.k, w.v], [w.k_bias, w.v_bias])
        else:
            _set_conv1d(module.c_attn, [w.q, w.k, w.v], [w.q_bias, w.k_bias, w.v_bias])
        _set_conv1d(module.c_proj, [w.o], [w.o_bias])
        module.num_heads = heads
        module.split_size = heads * module.head_dim

    def feed_forward(self, layer: nn.Module) -> int:
        """Columns of ``mlp.c_fc``."""
        return layer.mlp.c_fc.nf

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]

    def example(
        self, module: nn.Module, hidden: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """A cross-attention block also gets the other sequence, with its own mask."""
        if self.is_cross(module):
            return {
                "hidden_states": hidden,
                "encoder_hidden_states": hidden.flip(1),
                "encoder_attention_mask": mask,
            }
        return super().example(module, hidden, mask)

    def plain_refusal(self, module: nn.Module, heads: int, kept: list[int]) -> str:
        """A Conv1D cannot have no rows or no columns."""
        return "" if kept else "a block without heads"


def _set_conv1d(conv: nn.Module, weights: list[torch.Tensor], biases: list[torch.Tensor]) -> None:
    conv.weight = parameter(torch.cat(weights).t().contiguous(), conv.weight)
    conv.bias = parameter(torch.cat(biases), conv.bias)
    conv.nx, conv.nf = conv.weight.shape
