"""Wav2Vec2, HuBERT and other speech encoders of the same layout."""

from torch import nn

from headkit.huggingface.adapter import LinearAdapter
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.feed_forward import (
    FeedForwardPaths,
    GatedFeedForward,
    has_gates,
    run_feed_forward,
)
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; residual and norm are outside."""

    def forward(self, hidden_states, key_value_states=None, attention_mask=None, **kwargs):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.scaling,
            source=key_value_states,
            dropout=self.dropout if self.training else 0.0,
        )
        return run_block(self, inputs)


class GatedNeurons(GatedFeedForward):
    """The feed-forward block; residual and norm are outside."""

    METHOD = "forward"

    def forward(self, hidden_states):
        """Return ``dropout(feed-forward)``; with dropout inside, by the original code.

        Raises:
            ValueError: if a training step that drops neurons is gated too.
        """
        if self.training and self.intermediate_dropout.p > 0:
            if has_gates(self):
                raise ValueError(
                    "[feed_forward] expected no dropout of neurons under their gates; found "
                    f"activation_dropout = {self.intermediate_dropout.p}"
                )
            return super().forward(hidden_states)
        return self.output_dropout(run_feed_forward(self, hidden_states))


class Wav2Vec2(LinearAdapter):
    """Speech encoders: bidirectional, no cache, projections q_proj to out_proj."""

    NAMES = ("Wav2Vec2", "HuBERT")
    FEED_FORWARD = FeedForwardPaths(
        owner="feed_forward",
        inner="intermediate_dense",
        activation="intermediate_act_fn",
        out="output_dense",
        mixin=GatedNeurons,
    )
    # Not feature_projection: what it returns is changed in place by the encoder.
    FRONT = ("feature_extractor",)
    PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
    ATTRIBUTES = frozenset(
        {
            "config",
            "embed_dim",
            "num_heads",
            "head_dim",
            "dropout",
            "scaling",
            "is_decoder",
            "is_causal",
        }
    )

    def matches(self, module: nn.Module) -> bool:
        """Four projections, and no place in a cache."""
        return super().matches(module) and not hasattr(module, "layer_idx")

    def refusal(self, module: nn.Module) -> str:
        """Also a block that is causal, or belongs to a decoder."""
        if reason := super().refusal(module):
            return reason
        decodes = module.is_decoder or module.is_causal
        return f"{type(module).__name__} of a decoder" if decodes else ""

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Replace the parameters, and say how many heads are there."""
        super().assign(module, weights, heads)
        module.num_heads = heads

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``feed_forward.intermediate_dense``."""
        return layer.feed_forward.intermediate_dense.out_features

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]
