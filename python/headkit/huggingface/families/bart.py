"""BART, mBART, Marian and Whisper: encoder, decoder and cross-attention of one class."""

from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import LinearAdapter
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; residual and norm are outside."""

    def forward(
        self,
        hidden_states,
        key_value_states=None,
        past_key_values=None,
        attention_mask=None,
        **kwargs,
    ):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.scaling,
            source=key_value_states,
            cache=past_key_values,
            causal=self.is_causal,
            dropout=self.dropout if self.training else 0.0,
        )
        return run_block(self, inputs)


class Bart(LinearAdapter):
    """BART and what is built like it; Whisper's keys have no bias."""

    NAMES = ("BART", "mBART", "Marian", "Whisper")
    FRONT = ("encoder.conv1", "encoder.conv2", "conv1", "conv2")
    PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
    ATTRIBUTES = frozenset(
        {
            "config",
            "embed_dim",
            "num_heads",
            "dropout",
            "head_dim",
            "scaling",
            "is_decoder",
            "is_causal",
            "layer_idx",
        }
    )

    def matches(self, module: nn.Module) -> bool:
        """Four projections, ``is_decoder`` and ``layer_idx``."""
        return super().matches(module) and {"is_decoder", "layer_idx"} <= vars(module).keys()

    def refusal(self, module: nn.Module) -> str:
        """Attributes beyond these, or fewer."""
        missing = sorted(self.ATTRIBUTES - vars(module).keys())
        lack = f"{type(module).__name__} without {', '.join(missing)}" if missing else ""
        return super().refusal(module) or lack

    def is_cross(self, module: nn.Module) -> bool:
        """In a decoder only cross-attention is not causal."""
        return module.is_decoder and not module.is_causal

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Replace the parameters, and say how many heads are there."""
        super().assign(module, weights, heads)
        module.num_heads = heads

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``fc1``."""
        fc1 = getattr(layer, "fc1", None)
        return fc1.out_features if isinstance(fc1, nn.Linear) else 0

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]

    def example(
        self, module: nn.Module, hidden: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """A cross-attention block also gets the other sequence."""
        call = super().example(module, hidden, mask)
        return {**call, "key_value_states": hidden.flip(1)} if self.is_cross(module) else call

    def plain_refusal(self, module: nn.Module, heads: int, kept: list[int]) -> str:
        """Whisper's own code gives its keys the shape [B, -1, heads, dh]."""
        is_whisper = module.k_proj.bias is None and module.q_proj.bias is not None
        return "a block without heads" if is_whisper and not kept else ""
