"""DistilBERT: one module holds Q, K, V and the output projection."""

import inspect

from torch import nn

from headkit.huggingface.attention_block import Swapped, run_block, swap_in, swap_out

MODELS = {"transformers.models.distilbert.modeling_distilbert.DistilBertModel"}
NAME = "DistilBERT"

FRONT = ("embeddings",)
ENCODER = "transformer"


class GatedAttention(Swapped):
    """The block; residual and norm are outside."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        linears = (self.q_lin, self.k_lin, self.v_lin, self.out_lin)
        return run_block(self, hidden_states, linears, attention_mask, kwargs)


def refusal(base: nn.Module) -> str:
    """Why this model cannot be attached, or an empty string."""
    names = list(inspect.signature(type(base).forward).parameters)[1:3]
    if names != ["input_ids", "attention_mask"]:
        return f"a forward that begins with {names}"
    for layer in layers(base):
        name = type(layer.attention).__name__
        if name.removeprefix("Gated") != "DistilBertSelfAttention":
            return f"a module of class {name} in place of DistilBertSelfAttention"
    return ""


def layers(base: nn.Module) -> nn.ModuleList:
    """The encoder's layers."""
    return base.transformer.layer


def core(layer: nn.Module) -> nn.Module:
    """The module that runs the operator."""
    return layer.attention


def linears(layer: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    """Q, K, V and output projection."""
    module = layer.attention
    return module.q_lin, module.k_lin, module.v_lin, module.out_lin


def feed_forward(layer: nn.Module) -> int:
    """Neurons of the feed-forward block."""
    return layer.ffn.lin1.out_features


def describe(layer: nn.Module, heads: int) -> None:
    """Tell other readers of the module how many heads are there."""
    layer.attention.n_heads = heads


def attach(layer: nn.Module) -> None:
    """Put our block in place."""
    swap_in(layer.attention, GatedAttention)


def detach(layer: nn.Module) -> None:
    """Put the original block back."""
    swap_out(layer.attention)
