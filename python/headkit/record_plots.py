"""The figures of a report in matplotlib: each takes a decision record and axes."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import torch

from headkit import _C

Record = _C.DecisionRecord | Mapping[str, Any] | str
# How m may be attributed to heads, best evidence first.
EFFECTS = {
    "toggle": "measured effect (toggle)",
    "integrated_gate_gradient": "integrated gate gradient",
    "gate_gradient": "estimated effect (gate gradient)",
    "direct": "direct effect",
}
MOST_ANNOTATED = 16


def record_of(record: Record) -> dict[str, Any]:
    """A decision record as the dictionary of its JSON.

    Raises:
        ValueError: if it is none.
    """
    if isinstance(record, _C.DecisionRecord):
        record = record.to_json()
    found = json.loads(record) if isinstance(record, str) else dict(record)
    if not isinstance(found, dict) or "heads" not in found or "model" not in found:
        raise ValueError("[plot] expected a decision record; found none")
    return found


def effect_of(head: Mapping[str, Any], effect: str) -> float | None:
    """The effect of a head, or None if it was not computed."""
    found = (head.get("effects") or {}).get(effect)
    return found.get("frozen") if isinstance(found, dict) else found


def best_effect(record: Mapping[str, Any]) -> str | None:
    """The effect with the best evidence that a record has; None = none."""
    for name in EFFECTS:
        if any(effect_of(head, name) is not None for head in record["heads"]):
            return name
    return None


def _name(head: Mapping[str, Any]) -> str:
    return f"L{head['layer']}H{head['head']}"


def _axes(ax: Any, size: tuple[float, float] = (5, 4)) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise RuntimeError(
            f"[plot] expected matplotlib; found: {error} (pip install 'headkit[plots]')"
        ) from error
    return pyplot.subplots(figsize=size, constrained_layout=True)[1]


def _wanted(record: Mapping[str, Any], effect: str | None) -> str:
    chosen = effect or best_effect(record)
    if chosen not in EFFECTS or all(effect_of(head, chosen) is None for head in record["heads"]):
        raise ValueError(f"[plot] expected a record with {effect or 'effects'}; found none")
    return chosen


def plot_record(record: Record, ax: Any = None, *, effect: str | None = None) -> Any:
    """Layers x heads: coloured by effect, or by gate where no effect is known; off is hatched.

    Args:
        record: a DecisionRecord, its JSON or the dictionary of it.
        ax: of matplotlib; None = new ones.
        effect: toggle, integrated_gate_gradient, gate_gradient or direct; None = the best there is.

    Returns:
        matplotlib.image.AxesImage: the cells, layer 0 at the bottom.

    Raises:
        ValueError: if the record lacks that effect.
        RuntimeError: if matplotlib is not installed.
    """
    found = record_of(record)
    layers, heads = found["model"]["layers"], found["model"]["heads"]
    chosen = _wanted(found, effect) if effect else best_effect(found)
    ax = _axes(ax, (1.6 + 0.42 * heads, 1.4 + 0.36 * layers))
    values = [effect_of(head, chosen) if chosen else head["gate"] for head in found["heads"]]
    numbers = [float("nan") if value is None else value for value in values]
    reach = max((abs(value) for value in values if value is not None), default=0.0) or 1.0
    colours = {"cmap": "PuOr_r", "vmin": -reach} if chosen else {"cmap": "cividis", "vmin": 0}
    image = ax.imshow(
        torch.tensor(numbers).reshape(layers, heads).numpy(), origin="lower", vmax=reach, **colours
    )
    for head, value in zip(found["heads"], values, strict=True):
        gone = head["state"] in ("pruned", "collapsed")
        if gone or not head["gate"]:
            corner = (head["head"] - 0.5, head["layer"] - 0.5)
            ax.add_patch(_rectangle(corner, "xx" if gone else "///"))
        if layers <= MOST_ANNOTATED and heads <= MOST_ANNOTATED:
            dark = value is not None and (
                abs(value) > 0.6 * reach if chosen else value < 0.6 * reach
            )
            text = (
                "x"
                if gone
                else ""
                if value is None
                else f"{value:+.2f}"
                if chosen
                else f"{value:.2f}"
            )
            ax.text(
                *(head["head"], head["layer"], text),
                ha="center",
                va="center",
                fontsize=6,
                color="white" if dark and not gone else "black",
            )
    ax.grid(False)
    ax.set_xlabel("head")
    ax.set_ylabel("layer, 0 at the bottom")
    ax.set_title(f"{EFFECTS[chosen] if chosen else 'gate'}; hatched: off, crossed: removed")
    return image


def _rectangle(corner: tuple[float, float], hatch: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, fill=False, hatch=hatch, edgecolor="#444444", linewidth=0)


def plot_waterfall(
    record: Record, ax: Any = None, *, effect: str | None = None, heads: int = 10
) -> Any:
    """How the heads that run add up to m: base and residual, the largest, the others, m.

    Args:
        record: as for ``plot_record``.
        ax: of matplotlib; None = new ones.
        effect: as for ``plot_record``.
        heads: shown one by one.

    Returns:
        matplotlib.container.BarContainer: the bars, from the top.

    Raises:
        ValueError: if the record has no effects or no value of m.
    """
    found = record_of(record)
    chosen = _wanted(found, effect)
    total = (found.get("output") or {}).get("value_selected")
    if total is None:
        raise ValueError("[plot] expected a record with a value of m; found none")
    running = [
        (_name(head), value)
        for head in found["heads"]
        if head["gate"] and (value := effect_of(head, chosen)) is not None
    ]
    running.sort(key=lambda one: -abs(one[1]))
    rest = running[heads:]
    rows = [("base and residual", total - sum(value for _, value in running)), *running[:heads]]
    if rest:
        rows.append((f"{len(rest)} other heads", sum(value for _, value in rest)))
    starts, place = [], 0.0
    for _, value in rows:
        starts.append(place)
        place += value
    names = [name for name, _ in rows] + ["m"]
    values = [value for _, value in rows] + [total]
    ax = _axes(ax, (5, 1 + 0.25 * len(names)))
    signs = ["#b35806" if value >= 0 else "#542788" for value in values[:-1]] + ["#7d8891"]
    bars = ax.barh(range(len(names)), values, left=[*starts, 0.0], color=signs)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.bar_label(bars, [f"{value:+.2f}" for value in values[:-1]] + [f"{total:.2f}"], padding=2)
    ax.margins(x=0.12)
    ax.set_xlabel(f"{found['output']['metric']}, by {EFFECTS[chosen]}")
    return bars


def plot_attention(record: Record, layer: int, head: int, ax: Any = None) -> Any:
    """What one head looks at, [queries, keys]: the eight largest keys of each query.

    Args:
        record: as for ``plot_record``.
        layer, head: of the original model.
        ax: of matplotlib; None = new ones.

    Returns:
        matplotlib.image.AxesImage: the weights.

    Raises:
        ValueError: if the record does not hold the attention of that head.
    """
    found = record_of(record)
    layers, heads = found["model"]["layers"], found["model"]["heads"]
    there = 0 <= layer < layers and 0 <= head < heads
    coded = found["heads"][layer * heads + head].get("attention") if there else None
    if not coded or not coded.get("data"):
        raise ValueError(f"[plot] expected the attention of L{layer}H{head}; found none")
    entries = torch.frombuffer(bytearray(base64.b64decode(coded["data"])), dtype=torch.uint8)
    entries = entries.reshape(-1, 8, 3).long()
    units = found["input"].get("units") or []
    weights = torch.zeros(len(entries), max(len(units), int(entries[..., 0].max()) + 1))
    weights.scatter_add_(1, entries[..., 0] + 256 * entries[..., 1], entries[..., 2] / 255)
    ax = _axes(ax)
    image = ax.imshow(weights.numpy(), cmap="cividis", vmin=0, vmax=1)
    ax.grid(False)
    texts = [unit.get("text") for unit in units]
    if len(units) <= 40 and all(isinstance(text, str) and text for text in texts):
        shown = [text.replace("$", r"\$") for text in texts]
        ax.set_xticks(range(len(units)), shown, rotation=90)
        ax.set_yticks(range(len(entries)), shown[: len(entries)])
    kept = coded.get("kept_mass") or []
    share = f", {sum(kept) / len(kept):.0%} of the mass kept" if kept else ""
    ax.set_title(f"L{layer}H{head}{share}")
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    return image


def plot_pairs(record: Record, ax: Any = None, *, heads: int = 20) -> Any:
    """What pairs of heads do together: + complementary, - redundant; empty = not computed.

    Args:
        record: as for ``plot_record``.
        ax: of matplotlib; None = new ones.
        heads: shown at most.

    Returns:
        matplotlib.image.AxesImage: the matrix.

    Raises:
        ValueError: if the record has no pairs.
    """
    found = record_of(record)
    pairs = [pair for pair in found.get("pairs") or []]
    if not pairs:
        raise ValueError("[plot] expected a record with pairs of heads; found none")
    pairs = [pair for pair in pairs if pair["index"] == pairs[0]["index"]]
    places = sorted(
        {(one["layer"], one["head"]) for pair in pairs for one in (pair["a"], pair["b"])}
    )
    places = places[:heads]
    row = {place: number for number, place in enumerate(places)}
    matrix = torch.full((len(places), len(places)), float("nan"))
    for pair in pairs:
        a, b = ((pair[side]["layer"], pair[side]["head"]) for side in "ab")
        if a in row and b in row:
            matrix[row[a], row[b]] = matrix[row[b], row[a]] = pair["value"]
    reach = float(matrix.nan_to_num().abs().max()) or 1.0
    ax = _axes(ax)
    image = ax.imshow(matrix.numpy(), cmap="PuOr_r", vmin=-reach, vmax=reach)
    names = [f"L{layer}H{head}" for layer, head in places]
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.grid(False)
    if len(names) <= MOST_ANNOTATED:
        for row_place, column_place in _indices(len(names)):
            value = matrix[row_place, column_place]
            if not value.isnan():
                dark = "white" if abs(value) > 0.6 * reach else "black"
                text = f"{value:+.2f}"
                ax.text(
                    column_place, row_place, text, ha="center", va="center", fontsize=6, color=dark
                )
    ax.set_title(f"{pairs[0]['index']}, {pairs[0].get('ablation') or 'ablation not named'}")
    return image


def _indices(size: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(size) for b in range(size)]


def plot_faithfulness(record: Record, ax: Any = None, *, curve: str = "comprehensiveness") -> Any:
    """A curve over the heads of the explanation, its inverse order and the band of random orders.

    Args:
        record: as for ``plot_record``.
        ax: of matplotlib; None = new ones.
        curve: comprehensiveness or sufficiency.

    Returns:
        matplotlib.lines.Line2D: the curve of the explanation.

    Raises:
        ValueError: if the record does not have the curve.
    """
    found = record_of(record)
    told = (found.get("trust") or found).get("faithfulness") or {}
    if not told.get(curve) or not told.get("k"):
        raise ValueError(f"[plot] expected a record with {curve}; found none")
    steps, values = told["k"], told[curve]
    ax = _axes(ax)
    band = values.get("random") or {}
    if band.get("lower"):
        label = "random orders, 5 to 95 %"
        ax.fill_between(
            steps, band["lower"], band["upper"], color="#999999", alpha=0.4, label=label
        )
    if values.get("inverse"):
        ax.plot(steps, values["inverse"], "--", color="#b35806", label="inverse order")
    line = ax.plot(steps, values["values"], color="#0072b2", linewidth=2, label="this order")[0]
    ax.set_xlabel("heads taken")
    ax.set_ylabel(curve)
    ax.legend()
    return line
