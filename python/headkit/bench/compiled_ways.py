"""What torch.compile makes of an attention layer: all of it, or FlexAttention."""

from __future__ import annotations

import torch

from headkit.bench.attention_layer import AttentionLayer, from_packed_projection
from headkit.bench.dense_ways import LinearSdpa
from headkit.bench.way import Way

COMPILED = "torch.compile(linear + SDPA)"
FLEX = "FlexAttention, mask by head"


def compiled_way(layer: AttentionLayer, *, trained: bool) -> Way:
    """linear + SDPA, compiled; with frozen weights where nothing is trained."""
    torch.compiler.reset()
    options = None if trained else {"freezing": True}
    compiled = torch.compile(LinearSdpa(layer), dynamic=False, options=options)
    return Way(
        COMPILED,
        1.0,
        lambda: compiled(layer.x),
        [layer.x, *layer.torch_module.parameters()],
        from_packed_projection,
        torch.ones(layer.batch, layer.heads),
    )


def flex_way(layer: AttentionLayer, share: float, gate: torch.Tensor) -> Way:
    """Dense projections and a core that skips closed heads; its mask is made beforehand."""
    # Its import takes as long as the rest of the command line together.
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    is_open = gate != 0

    def head_is_open(
        batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return is_open[batch, head]

    sizes = (layer.batch, layer.heads, layer.length, layer.length)
    mask = create_block_mask(head_is_open, *sizes, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)
    return Way(
        FLEX,
        share,
        lambda: layer.output(compiled(*layer.project(), block_mask=mask)),
        [layer.x, *layer.torch_module.parameters()],
        from_packed_projection,
        gate,
        "FlexAttention has no gradients on CPU",
    )
