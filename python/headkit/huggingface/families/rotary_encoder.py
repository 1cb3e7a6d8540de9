"""NomicBERT, GTE, Jina embeddings v3: bidirectional, rotary positions."""

from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import LinearAdapter, example_rotation
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; residual and norm are outside."""

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **kwargs):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.scaling,
            rotary=position_embeddings,
            dropout=self.attention_dropout if self.training else 0.0,
        )
        return run_block(self, inputs)


class RotaryEncoder(LinearAdapter):
    """Text encoders with rotary positions and projections q_proj to o_proj."""

    NAMES = ("NomicBERT", "GTE", "Jina embeddings v3")
    FRONT = ("embeddings",)
    PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
    ATTRIBUTES = frozenset({"config", "head_dim", "attention_dropout", "scaling", "is_causal"})

    def matches(self, module: nn.Module) -> bool:
        """Four projections, no number of heads and no sign of grouped queries."""
        counts = ("num_attention_heads", "num_heads", "num_key_value_groups")
        return super().matches(module) and not any(hasattr(module, name) for name in counts)

    def feed_forward(self, layer: nn.Module) -> int:
        """Columns of ``mlp.down_proj`` or ``mlp.fc2``."""
        mlp = layer._modules.get("mlp", nn.Identity())
        last = mlp._modules.get("down_proj", mlp._modules.get("fc2"))
        return last.in_features if isinstance(last, nn.Linear) else 0

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
