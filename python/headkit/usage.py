"""Which heads a policy runs over a data set, and for what kind of input."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.hybrid import HybridPruner, as_policy
from headkit.progress import Told, reporting
from headkit.scoring import gated_model


def head_usage(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    policy: _C.GatePolicy | HybridPruner,
    *,
    classes: bool | Sequence[str] = False,
    properties: Mapping[str, torch.Tensor] | None = None,
    confidence: float = 0.95,
    progress: bool | Told = False,
) -> _C.CorpusReport:
    """Run a policy over a data set: how often each head is on, and for what kind of input.

    Every input has a ``length`` (tokens). Batches with ``input_ids`` also give ``complexity``, the
    mean surprise of an input's tokens in bits, by their shares of all tokens of the data.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once.
        policy: GatePolicy, or a fitted HybridPruner.
        classes: the output is logits of two or more classes: their names, or True for numbers.
            Inputs then have a ``confidence`` (largest probability) and a class, the predicted one.
        properties: more of them, name -> values [inputs], in the order of the data.
        confidence: level of the intervals.
        progress: True for a bar, or a function called with (batches done, batches).

    Returns:
        CorpusReport: of each head frequency and correlations with intervals, the distribution of
        the number of heads, and how alike the selections are.

    Raises:
        ValueError: for fewer than two inputs, outputs without classes where these are asked for,
            and properties that do not fit.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> gated = headkit.attach(transformers.BertForSequenceClassification(config).eval())
        >>> data = [{"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}]
        >>> mask = headkit.HeadMask(torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]]))
        >>> found = headkit.head_usage(gated, data, headkit.MaskPolicy(mask), classes=True)
        >>> found.selected, found.heads[0].frequency, found.same_for_all
        ({3: 2}, 1.0, 1.0)
    """
    names = [] if isinstance(classes, bool) else [str(name) for name in classes]
    with reporting("head usage", progress) as told:
        return _C.head_usage(
            gated_model(model, "head_usage"),
            data,
            as_policy(policy),
            classes=bool(classes),
            class_names=names,
            properties=dict(properties or {}),
            confidence=confidence,
            progress=told,
        )


def plot_head_usage(found: _C.CorpusReport, path: str | Path) -> None:
    """Draw how often each head runs, layer 0 at the bottom, and how many heads inputs run.

    Heads that run for some inputs only are framed; numbers are shares in per cent.

    Args:
        found: what ``head_usage`` returned.
        path: a file whose ending matplotlib knows.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    from headkit.plotting import COLOURS, pyplot_for, save_figure

    pyplot = pyplot_for("plot_head_usage")
    layers, heads = found.layout.layers, found.layout.heads
    figure, (grid, bars) = pyplot.subplots(
        1,
        2,
        figsize=(4.4 + 0.38 * heads, max(2.4, 1.2 + 0.34 * layers)),
        width_ratios=(0.38 * heads + 1, 2.8),
        constrained_layout=True,
    )
    share = torch.tensor([head.frequency for head in found.heads]).reshape(layers, heads)
    image = grid.imshow(
        share.numpy(), cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto"
    )
    grid.grid(False)
    grid.set_xticks(range(heads))
    grid.set_yticks(range(layers))
    for head in found.heads:
        dark = head.frequency < 0.5
        grid.text(
            head.head,
            head.layer,
            f"{100 * head.frequency:.0f}",
            ha="center",
            va="center",
            fontsize=6,
            color="white" if dark else "black",
        )
        if head.state == "mixed":
            corner = (head.head - 0.46, head.layer - 0.46)
            grid.add_patch(
                pyplot.Rectangle(corner, 0.92, 0.92, fill=False, linewidth=1.2, color=COLOURS[5])
            )
    grid.set_xlabel("head")
    grid.set_ylabel("layer")
    grid.set_title(f"share of {found.inputs} inputs that run a head, % (framed: some of them)")
    figure.colorbar(image, ax=grid, shrink=0.8)
    bars.bar(list(found.selected), list(found.selected.values()), color=COLOURS[0])
    bars.set_xlabel(f"heads run (mean {found.mean_selected:.1f} of {layers * heads})")
    bars.set_ylabel("inputs")
    save_figure(pyplot, figure, path)
