"""T5, mT5 and UMT5: relative position biases, in T5 those of the first block for all."""

import inspect
from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import LinearAdapter
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.swapping import Swapped, original_class

# On a block: a tuple with the block whose embedding gives the position bias of its stack.
BIAS_OWNER = "headkit_bias_owner"


class GatedAttention(Swapped):
    """The block; residual and norm are outside. Position biases keep all heads of the original."""

    def forward(
        self,
        hidden_states,
        mask=None,
        key_value_states=None,
        position_bias=None,
        past_key_values=None,
        **kwargs,
    ):
        """Return ``(attention output [B, T, D], position bias, probabilities or None)``."""
        if position_bias is None and key_value_states is None:
            position_bias = position_bias_of(self, hidden_states.shape[1], past_key_values)
        inputs = Inputs(
            hidden_states,
            mask,
            kwargs,
            self.scaling,
            source=key_value_states,
            cache=past_key_values,
            position_bias=position_bias,
            causal=self.is_causal,
            dropout=self.dropout if self.training else 0.0,
        )
        output, probabilities = run_block(self, inputs)
        return output, position_bias, probabilities


class GatedOwnBiasAttention(Swapped):
    """The block of UMT5: every block has its own biases, and keeps them to itself."""

    def forward(
        self,
        hidden_states,
        encoder_hidden_states=None,
        past_key_values=None,
        attention_mask=None,
        **kwargs,
    ):
        """Return ``(attention output [B, T, D], probabilities or None)``."""
        bias = None
        if encoder_hidden_states is None:
            bias = position_bias_of(self, hidden_states.shape[1], past_key_values)
        inputs = Inputs(
            hidden_states,
            attention_mask,
            kwargs,
            self.scaling,
            source=encoder_hidden_states,
            cache=past_key_values,
            position_bias=bias,
            causal=self.is_causal,
            dropout=self.dropout if self.training else 0.0,
        )
        return run_block(self, inputs)


def position_bias_of(block: nn.Module, tokens: int, cache: Any) -> torch.Tensor | None:
    """The position bias of a self-attention block, for all heads of the original.

    Args:
        block: of T5 or UMT5, attached.
        tokens: queries, T.
        cache: a cache of transformers that holds the tokens before them, or None.

    Returns:
        Tensor: [1, H, T, S]; None if the stack has no embedding of distances.
    """
    owner = block if block.has_relative_attention_bias else getattr(block, BIAS_OWNER, (None,))[0]
    if owner is None:
        return None
    past, keys = 0, tokens
    if cache is not None:
        past = cache.get_seq_length(block.layer_idx)
        keys, _ = cache.get_mask_sizes(tokens, block.layer_idx)
    return owner.compute_bias(tokens, keys, past_seen_tokens=past)


class T5(LinearAdapter):
    """T5 and what is built like it: no biases, no scale."""

    NAMES = ("T5", "mT5", "UMT5")
    PROJECTIONS = ("q", "k", "v", "o")
    ATTRIBUTES = frozenset(
        {
            "config",
            "is_decoder",
            "is_causal",
            "has_relative_attention_bias",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
            "d_model",
            "key_value_proj_dim",
            "n_heads",
            "dropout",
            "inner_dim",
            "scaling",
            "layer_idx",
            "gradient_checkpointing",
        }
    )
    MODULES = frozenset({"relative_attention_bias"})

    def matches(self, module: nn.Module) -> bool:
        """Four projections and ``has_relative_attention_bias``."""
        return super().matches(module) and hasattr(module, "has_relative_attention_bias")

    def is_cross(self, module: nn.Module) -> bool:
        """In a decoder only cross-attention is not causal."""
        return module.is_decoder and not module.is_causal

    def head_dim(self, module: nn.Module) -> int:
        """``key_value_proj_dim``."""
        return module.key_value_proj_dim

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Replace the parameters, and say how many heads are there; the biases keep all heads."""
        super().assign(module, weights, heads)
        module.n_heads = heads
        module.inner_dim = heads * module.key_value_proj_dim

    def feed_forward(self, layer: nn.Module) -> int:
        """Columns of ``DenseReluDense.wo``."""
        dense = getattr(layer.layer[-1], "DenseReluDense", None)
        return dense.wo.in_features if dense is not None else 0

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention if _shares_bias(module) else GatedOwnBiasAttention)]

    def connect(self, module: nn.Module, first: nn.Module) -> None:
        """Show a block without biases of its own those of the first one."""
        if first is not module and first.has_relative_attention_bias:
            setattr(module, BIAS_OWNER, (first,))

    def detach(self, module: nn.Module) -> None:
        """Put the original forward back."""
        super().detach(module)
        vars(module).pop(BIAS_OWNER, None)

    def example(
        self, module: nn.Module, hidden: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """A block without biases of its own is given those of another."""
        shares = _shares_bias(module)
        call = {"hidden_states": hidden, "mask" if shares else "attention_mask": mask}
        if self.is_cross(module):
            call["key_value_states" if shares else "encoder_hidden_states"] = hidden.flip(1)
        elif shares and not module.has_relative_attention_bias:
            call["position_bias"] = hidden[:, None, :, :1] - hidden[:, None, :, 1:2].mT
        return call

    def layer_output(
        self, layer: nn.Module, hidden: torch.Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """T5 also returns position biases; one that is None is computed where it is needed."""
        if not _shares_bias(layer):
            return hidden
        return hidden, kwargs.get("position_bias", args[2] if len(args) > 2 else None), None

    def plain_refusal(self, module: nn.Module, heads: int, kept: list[int]) -> str:
        """T5 itself adds biases for all heads to the scores of those that are there."""
        if not self.is_cross(module):
            return "position biases for all heads, but fewer heads,"
        return "" if kept else "a block without heads"


def _shares_bias(module: nn.Module) -> bool:
    """Whether a block or layer hands a position bias on."""
    return "position_bias" in inspect.signature(original_class(module).forward).parameters
