"""Llama, Mistral, Qwen2, Qwen3, SmolLM2: causal, grouped queries, rotary positions."""

from collections import Counter
from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import LinearAdapter, Norms, Weights, example_rotation
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.feed_forward import (
    FeedForwardPaths,
    GatedFeedForward,
    run_feed_forward,
)
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; residual and norm are outside."""

    def forward(
        self,
        hidden_states,
        position_embeddings=None,
        attention_mask=None,
        past_key_values=None,
        **kwargs,
    ):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.scaling,
            cache=past_key_values,
            rotary=position_embeddings,
            causal=self.is_causal,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return run_block(self, inputs)


class GatedNeurons(GatedFeedForward):
    """The feed-forward block; residual and norm are outside."""

    METHOD = "forward"

    def forward(self, hidden_states):
        """Return the block's output [B, T, D]."""
        return run_feed_forward(self, hidden_states)


class Llama(LinearAdapter):
    """Decoders with grouped queries."""

    NAMES = ("Llama", "SmolLM2", "Mistral", "Qwen2", "Qwen3")
    FEED_FORWARD = FeedForwardPaths(
        owner="mlp",
        inner="gate_proj",
        activation="act_fn",
        out="down_proj",
        mixin=GatedNeurons,
        up="up_proj",
    )
    PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
    ATTRIBUTES = frozenset(
        {
            "config",
            "layer_idx",
            "layer_type",
            "head_dim",
            "num_key_value_groups",
            "scaling",
            "attention_dropout",
            "is_causal",
            "sliding_window",
        }
    )
    MODULES = frozenset({"q_norm", "k_norm"})

    def matches(self, module: nn.Module) -> bool:
        """Four projections and ``num_key_value_groups``."""
        return super().matches(module) and hasattr(module, "num_key_value_groups")

    def assign(self, module: nn.Module, weights: Weights, heads: int) -> None:
        """Replace the parameters, and say how many queries share a key."""
        super().assign(module, weights, heads)
        kv_heads = weights.k.shape[0] // module.head_dim
        if kv_heads and heads % kv_heads == 0:
            module.num_key_value_groups = heads // kv_heads

    def plain_refusal(self, module: nn.Module, heads: int, kept: list[int]) -> str:
        """Its own code shares keys evenly, and counts cached tokens in layer 0."""
        if not kept:
            return "no head left in layer 0" if module.layer_idx == 0 else ""
        group = heads // module.config.num_key_value_heads
        shares = Counter(head // group for head in kept)
        if len(set(shares.values())) > 1:
            return f"keys that {', '.join(map(str, shares.values()))} queries share"
        return ""

    def norms(self, module: nn.Module) -> Norms | None:
        """Qwen3 norms each head of queries and keys."""
        if "q_norm" not in module._modules:
            return None
        return Norms(module.q_norm.weight, module.k_norm.weight, module.q_norm.variance_epsilon)

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``mlp.up_proj``."""
        up = getattr(getattr(layer, "mlp", None), "up_proj", None)
        return up.out_features if isinstance(up, nn.Linear) else 0

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]

    def example(
        self, module: nn.Module, hidden: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """With rotations."""
        return {
            **super().example(module, hidden, mask),
            "position_embeddings": example_rotation(hidden, module.head_dim),
        }
