"""BERT, RoBERTa, XLM-RoBERTa and ELECTRA: Q, K, V and the output projection sit in siblings."""

import inspect

from torch import nn

from headkit.huggingface.attention_block import Swapped, run_block, swap_in, swap_out

# Module path below transformers.models -> prefix of its class names.
PREFIXES = {
    "bert.modeling_bert": "Bert",
    "roberta.modeling_roberta": "Roberta",
    "xlm_roberta.modeling_xlm_roberta": "XLMRoberta",
    "electra.modeling_electra": "Electra",
}
MODELS = {f"transformers.models.{path}.{prefix}Model" for path, prefix in PREFIXES.items()}
NAME = "BERT, RoBERTa, XLM-RoBERTa, ELECTRA"

# What the model's own forward computes before its first layer.
FRONT = ("embeddings", "embeddings_project")
ENCODER = "encoder"


class GatedAttention(Swapped):
    """The block as the layer sees it."""

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        past_key_values=None,
        **kwargs,
    ):
        """Return ``(LayerNorm(attention + hidden_states), probabilities or None)``."""
        output, probabilities = self.self(
            hidden_states,
            attention_mask=attention_mask,
            encoder_hidden_states=encoder_hidden_states,
            past_key_values=past_key_values,
            projection=self.output.dense,
            **kwargs,
        )
        return self.output(output, hidden_states), probabilities


class GatedSelfAttention(Swapped):
    """Attention with the output projection, which belongs to the sibling ``output``."""

    def forward(self, hidden_states, attention_mask=None, *, projection, **kwargs):
        """Return the attention output [B, T, D] after ``projection``, and probabilities or None."""
        linears = (self.query, self.key, self.value, projection)
        return run_block(self, hidden_states, linears, attention_mask, kwargs)


class ProjectedOutput(Swapped):
    """What is left of the output block: dropout, residual, norm."""

    def forward(self, hidden_states, input_tensor):
        """Return ``LayerNorm(dropout(hidden_states) + input_tensor)``."""
        return self.LayerNorm(self.dropout(hidden_states) + input_tensor)


def refusal(base: nn.Module) -> str:
    """Why this model cannot be attached, or an empty string."""
    if base.config.is_decoder or getattr(base.config, "add_cross_attention", False):
        return "a decoder (is_decoder or add_cross_attention is set)"
    names = list(inspect.signature(type(base).forward).parameters)[1:3]
    if names != ["input_ids", "attention_mask"]:
        return f"a forward that begins with {names}"
    prefix = type(base).__name__.removesuffix("Model")
    for layer in layers(base):
        found = (layer.attention, layer.attention.self, layer.attention.output)
        for module, suffix in zip(found, ("Attention", "SelfAttention", "SelfOutput"), strict=True):
            if type(module).__name__.removeprefix("Gated") != prefix + suffix:
                return f"a module of class {type(module).__name__} in place of {prefix}{suffix}"
    return ""


def layers(base: nn.Module) -> nn.ModuleList:
    """The encoder's layers."""
    return base.encoder.layer


def core(layer: nn.Module) -> nn.Module:
    """The module that runs the operator."""
    return layer.attention.self


def linears(layer: nn.Module) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    """Q, K, V and output projection."""
    module = layer.attention.self
    return module.query, module.key, module.value, layer.attention.output.dense


def feed_forward(layer: nn.Module) -> int:
    """Neurons of the feed-forward block."""
    return layer.intermediate.dense.out_features


def describe(layer: nn.Module, heads: int) -> None:
    """Tell other readers of the module how many heads are there."""
    module = layer.attention.self
    module.num_attention_heads = heads
    module.all_head_size = heads * module.attention_head_size


def attach(layer: nn.Module) -> None:
    """Put our block in place."""
    swap_in(layer.attention, GatedAttention)
    swap_in(layer.attention.self, GatedSelfAttention)
    swap_in(layer.attention.output, ProjectedOutput)


def detach(layer: nn.Module) -> None:
    """Put the original block back."""
    for module in (layer.attention, layer.attention.self, layer.attention.output):
        swap_out(module)
