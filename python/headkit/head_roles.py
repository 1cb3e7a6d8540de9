"""What heads look at, and the roles that describe it."""

from collections.abc import Callable
from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import gated_model


def for_each_attention(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    visit: Callable[[_C.SampleAttention], None],
    *,
    gates: _C.GateSet | torch.Tensor | None = None,
    output_norms: bool = False,
    progress: bool | Told = False,
) -> None:
    """Show the attention probabilities of every (block, sample), one at a time.

    Attention is never held for more than one of them. Closed heads are shown too: a gate does not
    change what they look at.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once: a list, a DataLoader.
        visit: called with a SampleAttention each time.
        gates: of the run: a GateSet, or a tensor [layers, heads], or [batch, layers, heads] for one
            batch; None = all heads run.
        output_norms: also the norm of what each head writes.
        progress: True for a bar, or a function called with (batches done, batches).

    Raises:
        ValueError: if gates do not fit, or the model does not show its attention.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.tensor([[1, 2, 3]])}]
        >>> headkit.for_each_attention(
        ...     model, data, lambda rows: print(rows.layer, tuple(rows.probabilities.shape))
        ... )
        0 (4, 3, 3)
        1 (4, 3, 3)
    """
    if gates is None:
        gates = _C.GateSet()
    elif isinstance(gates, torch.Tensor):
        gates = _C.GateSet(heads=gates)
    with reporting("attention", progress) as tell:
        _C.for_each_attention(
            gated_model(model, "for_each_attention"),
            data,
            visit,
            gates=gates,
            output_norms=output_norms,
            progress=tell,
        )
