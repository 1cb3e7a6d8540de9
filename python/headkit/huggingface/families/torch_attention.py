"""torch.nn.MultiheadAttention in layers of torch, torchvision or a user's own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from headkit.huggingface.adapter import (
    Adapter,
    Weights,
    parameter,
    set_linear,
    unknown_parts,
)
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.masks import where_open
from headkit.huggingface.swapping import Swapped

# On a block of TransformerDecoderLayer that attends to the memory.
CROSS = "headkit_cross"
# On a TransformerEncoder: its ``use_nested_tensor``.
NESTED = "headkit_use_nested_tensor"


class GatedAttention(Swapped):
    """The block, in the calling convention of torch."""

    # TransformerEncoderLayer reads this before it takes a fused path past the block.
    _qkv_same_embed_dim = property(lambda self: False)

    def forward(
        self,
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        """Return ``(attention output, probabilities or None)`` in the layout of ``query``.

        ``is_causal`` is a hint about ``attn_mask``, which is read anyway. Probabilities are those
        of the heads that are there, before dropout and gates.
        """
        if query.is_nested or key.is_nested:
            raise ValueError("[attention] expected padded tensors; found nested ones")
        if key is not value:
            raise ValueError(
                "[attention] expected one sequence as key and value; found two different tensors"
            )
        if attn_mask is None and is_causal:
            raise ValueError("[attention] expected attn_mask with is_causal; found none")
        batched = query.dim() == 3

        def arranged(sequence):
            if not batched:
                return sequence[None]
            return sequence if self.batch_first else sequence.transpose(0, 1)

        hidden = arranged(query)
        source = hidden if key is query else arranged(key)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask[None]
        inputs = Inputs(
            hidden,
            joined_mask(attn_mask, key_padding_mask, hidden, source.shape[1]),
            {},
            self.head_dim**-0.5,
            source=None if key is query else source,
            dropout=self.dropout if self.training else 0.0,
            probabilities=need_weights,
        )
        output, weights = run_block(self, inputs)
        if weights is not None and average_attn_weights:
            weights = weights.sum(1) / max(1, weights.shape[1])
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights


def joined_mask(
    attn_mask: torch.Tensor | None,
    key_padding_mask: torch.Tensor | None,
    hidden: torch.Tensor,
    keys: int,
) -> torch.Tensor | None:
    """Both masks of torch as one that ``read_mask`` takes.

    Args:
        attn_mask: [T, S] or [B * H, T, S]; bool, True = closed, or added to the scores.
        key_padding_mask: [B, S], likewise.
        hidden: [B, T, D], of the queries.
        keys: S.
    """
    batch, tokens = hidden.shape[:2]
    padding = None if key_padding_mask is None else _opened(key_padding_mask)
    if attn_mask is None:
        if padding is None or padding.dtype == torch.bool:
            return padding
        return padding[:, None, None].expand(batch, 1, tokens, keys)
    mask = _opened(attn_mask)
    mask = mask.view(batch, -1, tokens, keys) if mask.dim() == 3 else mask[None, None]
    if padding is None:
        return mask
    padding = padding[:, None, None]
    if mask.dtype == padding.dtype == torch.bool:
        return mask & padding
    return _added(mask, hidden) + _added(padding, hidden)


def _opened(mask: torch.Tensor) -> torch.Tensor:
    """Bool, True = open; or, if the mask does more than open and close, as it is."""
    if mask.dtype == torch.bool:
        return ~mask
    if torch.compiler.is_compiling():
        return mask
    opened = where_open(mask)
    return mask if opened is None else opened


def _added(mask: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(hidden.dtype)
    return torch.zeros_like(mask, dtype=hidden.dtype).masked_fill(~mask, -torch.inf)


class TorchAttention(Adapter):
    """``torch.nn.MultiheadAttention`` with one weight for queries, keys and values."""

    NAMES = ("torch.nn.MultiheadAttention",)
    NOTES_PADDING = False
    SQUARE = frozenset({"mask", "src_mask", "tgt_mask", "memory_mask", "attn_mask"})
    ATTRIBUTES = frozenset(
        {
            "embed_dim",
            "kdim",
            "vdim",
            "num_heads",
            "dropout",
            "batch_first",
            "head_dim",
            "add_zero_attn",
            "bias_k",
            "bias_v",
        }
    )
    PARAMETERS = frozenset(
        {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
    )

    def matches(self, module: nn.Module) -> bool:
        """``in_proj_weight`` beside ``out_proj``."""
        return "in_proj_weight" in module._parameters and "out_proj" in module._modules

    def refusal(self, module: nn.Module) -> str:
        """Separate weights, rows added to keys and values, or parts that torch does not have."""
        if module.in_proj_weight is None:
            return "keys and values of another width than queries"
        if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
            return "rows added to keys and values"
        return unknown_parts(module, self.ATTRIBUTES, {"out_proj"}, self.PARAMETERS)

    def prepare(self, model: nn.Module) -> None:
        """Keep encoders from nested tensors; find the blocks that attend to a memory."""
        for module in model.modules():
            if "use_nested_tensor" in vars(module) and "layers" in module._modules:
                setattr(module, NESTED, module.use_nested_tensor)
                module.use_nested_tensor = False
            cross = module._modules.get("multihead_attn")
            if cross is not None and self.matches(cross):
                setattr(cross, CROSS, True)

    def restore(self, model: nn.Module) -> None:
        """Let encoders use nested tensors again."""
        for module in model.modules():
            if hasattr(module, NESTED):
                module.use_nested_tensor = getattr(module, NESTED)
                delattr(module, NESTED)
            vars(module).pop(CROSS, None)

    def is_cross(self, module: nn.Module) -> bool:
        """``multihead_attn`` of a TransformerDecoderLayer."""
        return hasattr(module, CROSS)

    def head_dim(self, module: nn.Module) -> int:
        """The attribute ``head_dim``."""
        return module.head_dim

    def projections(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """The only one that is a module."""
        return (module.out_proj,)

    def weights(self, module: nn.Module) -> Weights:
        """Views of the rows."""
        out, bias = module.out_proj, module.in_proj_bias
        q, k, v = module.in_proj_weight.unflatten(0, (3, -1 if len(module.in_proj_weight) else 0))
        biases = (None,) * 3 if bias is None else bias.unflatten(0, (3, len(q)))
        return Weights(q, k, v, out.weight, *biases, out.bias)

    def assign(self, module: nn.Module, weights: Weights, heads: int) -> None:
        """Join the rows again, and say how many heads are there."""
        module.in_proj_weight = parameter(torch.cat(weights[:3]), module.in_proj_weight)
        if weights.q_bias is not None:
            module.in_proj_bias = parameter(torch.cat(weights[4:7]), module.in_proj_bias)
        set_linear(module.out_proj, weights.o, weights.o_bias)
        module.num_heads = heads

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``linear1``, or of the first Linear in ``mlp``."""
        first = layer._modules.get("linear1")
        if first is None:
            inner = layer._modules.get("mlp", nn.Identity()).modules()
            first = next((module for module in inner if isinstance(module, nn.Linear)), None)
        return first.out_features if isinstance(first, nn.Linear) else 0

    def batch_axis(self, module: nn.Module) -> int:
        """0 with ``batch_first``, else 1."""
        return 0 if module.batch_first else 1

    def layer_mask(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """The first key padding mask: that of the layer's own sequence."""
        for name in ("src_key_padding_mask", "tgt_key_padding_mask", "key_padding_mask"):
            if arguments.get(name) is not None:
                opened = _opened(arguments[name])
                return opened if opened.dtype == torch.bool else None
        return None

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]

    def example(
        self, module: nn.Module, hidden: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """A sequence that attends to itself or, in a decoder, to another."""
        hidden = hidden.transpose(0, self.batch_axis(module))
        source = hidden.flip(1 - self.batch_axis(module)) if self.is_cross(module) else hidden
        return {
            "query": hidden,
            "key": source,
            "value": source,
            "attn_mask": mask[0, 0],
            "need_weights": False,
        }

    def plain_refusal(self, module: nn.Module, heads: int, kept: list[int]) -> str:
        """Torch has as many rows of queries as the input is wide."""
        return f"{len(kept)} of {heads} heads"
