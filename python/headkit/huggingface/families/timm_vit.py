"""Vision transformers of timm: fused Q, K and V, and a tensor instead of a tuple."""

from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import FusedAdapter, Norms
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.swapping import Swapped


class GatedAttention(Swapped):
    """The block; the dropout of its output is inside, residual and norm are outside."""

    def forward(self, x, attn_mask=None, is_causal=False):
        """Return the attention output [B, T, D]."""
        if attn_mask is not None:
            if is_causal:
                raise ValueError("[attention] expected attn_mask or is_causal; found both")
            attn_mask = attn_mask[(None,) * (4 - attn_mask.dim())]
            attn_mask = attn_mask.expand(*attn_mask.shape[:2], x.shape[1], x.shape[1])
        dropout = self.attn_drop.p if self.training else 0.0
        inputs = Inputs(x, attn_mask, {}, self.scale, causal=is_causal, dropout=dropout)
        return self.proj_drop(run_block(self, inputs)[0])


class TimmVit(FusedAdapter):
    """Vision transformers of timm, and others built like them."""

    NAMES = ("timm ViT",)
    FRONT = ("patch_embed",)
    NOTES_PADDING = False
    FUSED, OUTPUT = "qkv", "proj"
    ATTRIBUTES = frozenset({"num_heads", "head_dim", "attn_dim", "scale", "fused_attn", "gate"})
    MODULES = frozenset({"q_norm", "k_norm", "attn_drop", "norm", "proj_drop"})

    def matches(self, module: nn.Module) -> bool:
        """``qkv`` and ``proj`` beside ``fused_attn``."""
        return super().matches(module) and hasattr(module, "fused_attn")

    def refusal(self, module: nn.Module) -> str:
        """Also a norm of all heads together, an output gate, or norms that are no RMS norms."""
        if reason := super().refusal(module):
            return reason
        name = type(module).__name__
        if not isinstance(module._modules.get("norm", nn.Identity()), nn.Identity):
            return f"{name} with a norm before its output projection"
        if getattr(module, "gate", None) is not None:
            return f"{name} with a gate before its output projection"
        norms = [module._modules.get(norm, nn.Identity()) for norm in ("q_norm", "k_norm")]
        plain = [isinstance(norm, nn.Identity) for norm in norms]
        if all(plain) or (not any(plain) and all(map(_is_rms_norm, norms))):
            return ""
        return f"{name} with {' and '.join(type(norm).__name__ for norm in norms)} on its heads"

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Join the rows, and say how many heads are there."""
        super().assign(module, weights, heads)
        module.num_heads = heads
        if hasattr(module, "attn_dim"):
            module.attn_dim = heads * module.head_dim

    def norms(self, module: nn.Module) -> Norms | None:
        """Those of queries and keys, if they are no ``Identity``."""
        q, k = module._modules.get("q_norm"), module._modules.get("k_norm")
        if q is None or isinstance(q, nn.Identity):
            return None
        eps = torch.finfo(q.weight.dtype).eps if q.eps is None else q.eps
        return Norms(q.weight, k.weight, eps)

    def config(self, module: nn.Module) -> Any:
        """There is none."""
        return None

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``mlp.fc1``."""
        fc1 = getattr(getattr(layer, "mlp", None), "fc1", None)
        return fc1.out_features if isinstance(fc1, nn.Linear) else 0

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]

    def example(
        self, module: nn.Module, hidden: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """Without a mask: older versions take none."""
        return {"x": hidden}

    def plain_refusal(self, module: nn.Module, heads: int, kept: list[int]) -> str:
        """Older versions expect heads as wide together as their input."""
        return "" if hasattr(module, "attn_dim") else f"{len(kept)} of {heads} heads"


def _is_rms_norm(norm: nn.Module) -> bool:
    weight = norm._parameters.get("weight")
    known = weight is not None and weight.dim() == 1 and hasattr(norm, "eps")
    return known and norm._parameters.get("bias") is None and not isinstance(norm, nn.LayerNorm)
