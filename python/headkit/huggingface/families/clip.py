"""CLIP and SigLIP, the image or the text tower."""

from torch import nn

from headkit.huggingface.adapter import LinearAdapter
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; residual and norm are outside."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.scale,
            causal=kwargs.get("is_causal", self.is_causal),  # the text tower of CLIP says so
            dropout=self.dropout if self.training else 0.0,
        )
        return run_block(self, inputs)


class Clip(LinearAdapter):
    """One tower; a model with both is two encoders."""

    NAMES = ("CLIP", "SigLIP")
    FRONT = ("embeddings",)
    PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
    ATTRIBUTES = frozenset(
        {"config", "embed_dim", "num_heads", "head_dim", "scale", "dropout", "is_causal"}
    )

    def matches(self, module: nn.Module) -> bool:
        """Four projections and a ``scale``."""
        return super().matches(module) and hasattr(module, "scale")

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Replace the parameters, and say how many heads are there."""
        super().assign(module, weights, heads)
        module.num_heads = heads

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``mlp.fc1``."""
        fc1 = getattr(getattr(layer, "mlp", None), "fc1", None)
        return fc1.out_features if isinstance(fc1, nn.Linear) else 0

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]
