"""ViT, DeiT, BEiT and other vision models of the same layout."""

from torch import nn

from headkit.huggingface.adapter import LinearAdapter
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.feed_forward import (
    FeedForwardPaths,
    GatedFeedForward,
    run_feed_forward,
)
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; residual and norm are outside."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        dropout = self.attention_dropout if self.training else 0.0
        inputs = Inputs(hidden_states, attention_mask, kwargs, self.scaling, dropout=dropout)
        return run_block(self, inputs)


class GatedNeurons(GatedFeedForward):
    """The feed-forward block; residual and norm are outside."""

    METHOD = "forward"

    def forward(self, hidden_states):
        """Return the block's output [B, T, D]."""
        return run_feed_forward(self, hidden_states)


class Vit(LinearAdapter):
    """Vision transformers: bidirectional, no cache, projections q_proj to o_proj."""

    NAMES = ("ViT", "DeiT", "BEiT", "DINOv2")
    FEED_FORWARD = FeedForwardPaths(
        owner="mlp", inner="fc1", activation="activation_fn", out="fc2", mixin=GatedNeurons
    )
    FRONT = ("embeddings",)
    PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
    ATTRIBUTES = frozenset(
        {"config", "num_attention_heads", "head_dim", "attention_dropout", "scaling", "is_causal"}
    )

    def matches(self, module: nn.Module) -> bool:
        """Four projections, and no sign of grouped queries."""
        return super().matches(module) and not hasattr(module, "num_key_value_groups")

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Replace the parameters, and say how many heads are there."""
        super().assign(module, weights, heads)
        module.num_attention_heads = heads

    def plain_refusal(self, module: nn.Module, heads: int, kept: list[int]) -> str:
        """BEiT's relative position bias is computed outside, for all heads."""
        config = module.config
        relative = getattr(config, "use_relative_position_bias", False)
        if relative or getattr(config, "use_shared_relative_position_bias", False):
            return f"a relative position bias of {heads} heads for {len(kept)}"
        return ""

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``mlp.fc1``."""
        fc1 = getattr(getattr(layer, "mlp", None), "fc1", None)
        return fc1.out_features if isinstance(fc1, nn.Linear) else 0

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]
