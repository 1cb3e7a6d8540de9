"""BERT, RoBERTa, XLM-RoBERTa and ELECTRA: the output projection sits in a sibling of Q, K, V."""

from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import LinearAdapter, unknown_parts
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.feed_forward import (
    FeedForwardPaths,
    GatedFeedForward,
    run_feed_forward,
)
from headkit.huggingface.stream import StreamPaths
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block as the layer sees it."""

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        past_key_values=None,
        **kwargs,
    ):
        """Return ``(LayerNorm(attention + hidden_states), probabilities or None)``."""
        if self.is_cross_attention:
            attention_mask = encoder_attention_mask
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.self.scaling,
            source=encoder_hidden_states if self.is_cross_attention else None,
            cache=past_key_values,
            causal=self.self.is_causal,
            dropout=self.self.dropout.p if self.training else 0.0,
        )
        output, probabilities = self.self(self, inputs)
        return self.output(output, hidden_states), probabilities


class GatedSelfAttention(Swapped):
    """Attention with the output projection, which belongs to a sibling."""

    def forward(self, block, inputs):
        """Return the attention output [B, T, D], projected, and probabilities or None."""
        return run_block(block, inputs)


class ProjectedOutput(Swapped):
    """What is left of the output block: dropout, residual, norm."""

    def forward(self, hidden_states, input_tensor):
        """Return ``LayerNorm(dropout(hidden_states) + input_tensor)``."""
        return self.LayerNorm(self.dropout(hidden_states) + input_tensor)


class GatedLayer(GatedFeedForward):
    """The layer, as far as its feed-forward block goes."""

    METHOD = "feed_forward_chunk"

    def feed_forward_chunk(self, attention_output):
        """Return ``LayerNorm(dropout(feed-forward) + attention_output)``."""
        hidden = self.output.dropout(run_feed_forward(self, attention_output))
        return self.output.LayerNorm(hidden + attention_output)


class Bert(LinearAdapter):
    """BERT and what is built like it."""

    NAMES = ("BERT", "RoBERTa", "XLM-RoBERTa", "ELECTRA")
    FEED_FORWARD = FeedForwardPaths(
        owner="",
        inner="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        out="output.dense",
        mixin=GatedLayer,
    )
    FRONT = ("embeddings", "embeddings_project")
    STREAM = StreamPaths(
        start=("embeddings_project", "embeddings.LayerNorm"),
        norms=("attention.output.LayerNorm", "output.LayerNorm"),
    )
    PROJECTIONS = ("self.query", "self.key", "self.value", "output.dense")
    ATTRIBUTES = frozenset({"is_cross_attention"})
    MODULES = frozenset({"self", "output"})
    CORE_ATTRIBUTES = frozenset(
        {
            "config",
            "num_attention_heads",
            "attention_head_size",
            "all_head_size",
            "scaling",
            "is_decoder",
            "is_causal",
            "layer_idx",
        }
    )

    def matches(self, module: nn.Module) -> bool:
        """Query, key, value under ``self`` beside ``output`` with dense and LayerNorm."""
        return super().matches(module) and "LayerNorm" in module.output._modules

    def refusal(self, module: nn.Module) -> str:
        """Parts that BERT does not have, of the block or of its two modules."""
        core = {"query", "key", "value", "dropout"}
        return (
            super().refusal(module)
            or unknown_parts(module.self, self.CORE_ATTRIBUTES, core)
            or unknown_parts(module.output, frozenset(), {"dense", "LayerNorm", "dropout"})
        )

    def is_cross(self, module: nn.Module) -> bool:
        """Decoders have a second block with ``is_cross_attention`` set."""
        return getattr(module, "is_cross_attention", False)

    def head_dim(self, module: nn.Module) -> int:
        """``attention_head_size`` of the core."""
        return module.self.attention_head_size

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Replace the parameters, and say how many heads are there."""
        super().assign(module, weights, heads)
        module.self.num_attention_heads = heads
        module.self.all_head_size = heads * module.self.attention_head_size

    def cache_layer(self, module: nn.Module) -> int:
        """``layer_idx`` of the core."""
        return module.self.layer_idx

    def config(self, module: nn.Module) -> Any:
        """That of the core."""
        return module.self.config

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``intermediate.dense``."""
        return layer.intermediate.dense.out_features

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block, its core and its output."""
        return [
            (module, GatedAttention),
            (module.self, GatedSelfAttention),
            (module.output, ProjectedOutput),
        ]

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
