"""DistilBERT: one module holds Q, K, V and the output projection."""

from torch import nn

from headkit.huggingface.adapter import LinearAdapter
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.feed_forward import (
    FeedForwardPaths,
    GatedFeedForward,
    run_feed_forward,
)
from headkit.huggingface.stream import StreamPaths
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; residual and norm are outside."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        dropout = self.dropout.p if self.training else 0.0
        inputs = Inputs(hidden_states, attention_mask, kwargs, self.scaling, dropout=dropout)
        return run_block(self, inputs)


class GatedNeurons(GatedFeedForward):
    """The feed-forward block; residual and norm are outside."""

    METHOD = "ff_chunk"

    def ff_chunk(self, hidden):
        """Return ``dropout(feed-forward)``."""
        return self.dropout(run_feed_forward(self, hidden))


class DistilBert(LinearAdapter):
    """DistilBERT."""

    NAMES = ("DistilBERT",)
    FEED_FORWARD = FeedForwardPaths(
        owner="ffn", inner="lin1", activation="activation", out="lin2", mixin=GatedNeurons
    )
    FRONT = ("embeddings",)
    STREAM = StreamPaths(
        start=("embeddings.LayerNorm",), norms=("sa_layer_norm", "output_layer_norm")
    )
    PROJECTIONS = ("q_lin", "k_lin", "v_lin", "out_lin")
    ATTRIBUTES = frozenset(
        {"config", "n_heads", "dim", "attention_head_size", "scaling", "is_causal"}
    )
    MODULES = frozenset({"dropout"})

    def head_dim(self, module: nn.Module) -> int:
        """``attention_head_size``."""
        return module.attention_head_size

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Replace the parameters, and say how many heads are there."""
        super().assign(module, weights, heads)
        module.n_heads = heads

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``ffn.lin1``."""
        return layer.ffn.lin1.out_features

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]
