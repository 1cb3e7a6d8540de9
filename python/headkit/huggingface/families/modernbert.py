"""ModernBERT: fused Q, K and V, rotary positions, windows in most layers."""

from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import FusedAdapter, example_rotation
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; the dropout of its output is inside, residual and norm are outside."""

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **kwargs):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.head_dim**-0.5,
            rotary=position_embeddings,
            dropout=self.attention_dropout if self.training else 0.0,
            window=self.sliding_window,
        )
        output, probabilities = run_block(self, inputs)
        return self.out_drop(output), probabilities


class ModernBert(FusedAdapter):
    """ModernBERT."""

    NAMES = ("ModernBERT",)
    FRONT = ("embeddings",)
    FUSED, OUTPUT = "Wqkv", "Wo"
    ATTRIBUTES = frozenset(
        {
            "config",
            "layer_idx",
            "attention_dropout",
            "deterministic_flash_attn",
            "head_dim",
            "sliding_window",
            "is_causal",
        }
    )
    MODULES = frozenset({"out_drop"})

    def matches(self, module: nn.Module) -> bool:
        """``Wqkv`` and ``Wo`` beside a ``sliding_window``."""
        return super().matches(module) and hasattr(module, "sliding_window")

    def feed_forward(self, layer: nn.Module) -> int:
        """Columns of ``mlp.Wo``."""
        return layer.mlp.Wo.in_features

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
