"""The pictures of a report, as SVG text without style attributes."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from headkit.report.palette import cividis, family, ink_on

CELL = 34
GAP = 3
LEFT = 30
BOTTOM = 20

MARKS: dict[str, str] = {
    "dense": "circle",
    "attached": "ring",
    "random": "cross",
    "static": "square",
    "gate": "triangle",
    "escalation": "diamond",
}


def _grid(
    layers: int, heads: int, cell: Callable[[int, int, float, float], str], size: int, label: str
) -> str:
    width = LEFT + heads * (size + GAP)
    height = layers * (size + GAP) + BOTTOM
    parts = [
        f'<svg class="grid" role="grid" aria-label="{escape(label)}" '
        f'viewBox="0 0 {width} {height}" preserveAspectRatio="xMinYMin meet">'
    ]
    # Layer 0 is at the bottom, as the residual stream rises.
    for layer in reversed(range(layers)):
        y = (layers - 1 - layer) * (size + GAP)
        parts.append('<g role="row">')
        parts.append(
            f'<text class="axis" x="{LEFT - 8}" y="{y + size / 2 + 4}" text-anchor="end" '
            f'role="rowheader">L{layer}</text>'
        )
        parts += [cell(layer, head, LEFT + head * (size + GAP), y) for head in range(heads)]
        parts.append("</g>")
    for head in range(heads):
        x = LEFT + head * (size + GAP) + size / 2
        parts.append(
            f'<text class="axis" x="{x}" y="{height - 5}" text-anchor="middle" '
            f'aria-hidden="true">{"H" if size == CELL else ""}{head}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)


def score_grid(scores: Sequence[Sequence[float]], label: str) -> str:
    """Layers x heads, coloured by rank and labelled with the share of the largest score."""
    flat = sorted(value for row in scores for value in row)
    largest = max((abs(value) for value in flat), default=0.0) or 1.0
    ranks = {value: place for place, value in enumerate(flat)}
    last = max(1, len(flat) - 1)

    def cell(layer: int, head: int, x: float, y: float) -> str:
        value = scores[layer][head]
        colour = cividis(ranks[value] / last)
        place = len(flat) - ranks[value]
        said = f"layer {layer} head {head}, score {value:.3g}, rank {place} of {len(flat)}"
        return (
            f'<g role="gridcell" tabindex="{0 if (layer, head) == (0, 0) else -1}" '
            f'data-layer="{layer}" data-head="{head}" aria-label="{said}"><title>{said}</title>'
            f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="5" fill="{colour}"/>'
            f'<text class="value" x="{x + CELL / 2}" y="{y + CELL / 2 + 4}" text-anchor="middle" '
            f'fill="{ink_on(colour)}">{100 * value / largest:.0f}</text></g>'
        )

    return _grid(len(scores), len(scores[0]), cell, CELL, label)


STATES = {
    "on": "runs for this sentence",
    "always_on": "always runs",
    "off": "skipped for this sentence",
    "pruned": "never runs",
    "collapsed": "one shared row",
}


def _state_mark(state: str, x: float, y: float, size: float) -> str:
    box = f'x="{x}" y="{y}" width="{size}" height="{size}" rx="4"'
    middle, centre, arm = x + size / 2, y + size / 2, size / 5
    if state == "on":
        return (
            f'<rect class="on" {box}/>'
            f'<circle class="glyph" cx="{middle}" cy="{centre}" r="{size / 6}"/>'
        )
    if state == "always_on":
        return f'<rect class="always" {box}/>'
    if state == "off":
        return f'<rect class="off" {box} fill="url(#hatch)"/>'
    return (
        f'<rect class="pruned" {box}/><path class="pruned-mark" '
        f'd="M{middle - arm} {centre}h{2 * arm}"/>'
    )


def decision_grid(record: Mapping[str, Any], policy: str) -> str:
    """Layers x heads of one decision record, by state."""
    layers, heads = record["model"]["layers"], record["model"]["heads"]
    size = 20

    def cell(layer: int, head: int, x: float, y: float) -> str:
        decision = record["heads"][layer * heads + head]
        state = decision["state"]
        said = f"layer {layer} head {head}, {state.replace('_', ' ')}"
        if decision["logit"] is not None:
            said += f", logit {decision['logit']:.2f}, threshold {decision['threshold']:.2f}"
        return (
            f'<g role="gridcell" tabindex="{0 if (layer, head) == (0, 0) else -1}" '
            f'data-layer="{layer}" data-head="{head}" aria-label="{escape(said)}">'
            f"<title>{escape(said)}</title>{_state_mark(state, x, y, size)}</g>"
        )

    return _grid(layers, heads, cell, size, f"heads that run under {policy}")


def hatch() -> str:
    """The pattern of skipped heads; once a page."""
    return (
        '<svg class="defs" aria-hidden="true" width="0" height="0"><defs>'
        '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect class="hatch-ground" width="6" height="6"/>'
        '<path class="hatch-line" d="M0 0V6"/></pattern></defs></svg>'
    )


def legend() -> str:
    """What the marks of a decision grid mean."""
    entries = "".join(
        f'<li><svg viewBox="0 0 20 20" aria-hidden="true">{_state_mark(state, 1, 1, 18)}</svg>'
        f"{STATES[state]}</li>"
        for state in ("always_on", "on", "off", "pruned")
    )
    return f'<ul class="legend">{entries}</ul>'


def mark(name: str, x: float, y: float) -> str:
    """The sign of a row in a chart: shape and colour by its family."""
    colour, shape, r = family(name), MARKS.get(name.split("@")[0], "circle"), 6
    if shape == "ring":
        line = f'stroke="{colour}" stroke-width="2"'
        return f'<circle cx="{x}" cy="{y}" r="{r + 3}" fill="none" {line}/>'
    if shape == "cross":
        return (
            f'<path d="M{x - r} {y - r}L{x + r} {y + r}M{x - r} {y + r}L{x + r} {y - r}" '
            f'stroke="{colour}" stroke-width="2.5" fill="none"/>'
        )
    if shape == "square":
        return f'<rect x="{x - r}" y="{y - r}" width="{2 * r}" height="{2 * r}" fill="{colour}"/>'
    if shape == "triangle":
        return f'<path d="M{x} {y - r - 1}L{x + r + 1} {y + r}H{x - r - 1}Z" fill="{colour}"/>'
    if shape == "diamond":
        s = r + 2
        return f'<path d="M{x} {y - s}L{x + s} {y}L{x} {y + s}L{x - s} {y}Z" fill="{colour}"/>'
    return f'<circle cx="{x}" cy="{y}" r="{r}" fill="{colour}"/>'


def _ticks(low: float, high: float) -> list[float]:
    for step in (0.5, 1, 2, 5, 10, 20, 25, 50):
        first = -(-low // step) * step
        ticks = [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]
        if len(ticks) <= 5:
            return ticks
    return [low, high]


def quality_chart(
    rows: Sequence[Mapping[str, Any]], cost: str, title: str, unit: str, scale: float
) -> str:
    """Agreement with dense against one cost, each as a percentage.

    Args:
        rows: measured models.
        cost: the field on the horizontal axis.
        title: of the axis.
        unit: behind the numbers of the axis.
        scale: what a cost is divided by before it is shown as a percentage.
    """
    width, height, left, right, top, bottom = 340, 270, 44, 14, 14, 44
    points = [(row["name"], 100 * row[cost] / scale, 100 * row["agreement"]) for row in rows]
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    x_pad = max(2.0, (max(xs) - min(xs)) * 0.1)
    x_low, x_high = min(xs) - x_pad, max(xs) + x_pad
    y_low, y_high = min(ys) - 1.5, max(100.6, max(ys))
    span_x, span_y = x_high - x_low, y_high - y_low

    def px(x: float) -> float:
        return round(left + (x - x_low) / span_x * (width - left - right), 1)

    def py(y: float) -> float:
        return round(top + (y_high - y) / span_y * (height - top - bottom), 1)

    said = f"agreement with the dense model against {title}; the table below holds the numbers"
    parts = [
        f'<svg class="chart" role="img" aria-label="{escape(said)}" viewBox="0 0 {width} {height}">'
    ]
    for y in _ticks(y_low, y_high):
        parts.append(
            f'<path class="rule" d="M{left} {py(y)}H{width - right}"/>'
            f'<text class="axis" x="{left - 6}" y="{py(y) + 4}" text-anchor="end">{y:g}%</text>'
        )
    for x in _ticks(x_low, x_high):
        parts.append(
            f'<text class="axis" x="{px(x)}" y="{height - bottom + 18}" '
            f'text-anchor="middle">{x:g}{unit}</text>'
        )
    parts.append(
        f'<text class="axis-title" x="{(left + width - right) / 2}" y="{height - 6}" '
        f'text-anchor="middle">{escape(title)}</text>'
    )
    for kind in ("random", "static"):
        line = sorted((x, y) for name, x, y in points if name.split("@")[0] in (kind, "dense"))
        if len(line) > 1:
            steps = "L".join(f"{px(x)} {py(y)}" for x, y in line)
            parts.append(f'<path class="trend" d="M{steps}" stroke="{family(kind)}"/>')
    for name, x, y in points:
        parts.append(
            f"<g><title>{escape(name)}: {x:.1f}{unit}, agreement {y:.1f}%</title>"
            f"{mark(name, px(x), py(y))}</g>"
        )
    parts.append("</svg>")
    return "".join(parts)


def chart_key(names: Sequence[str]) -> str:
    """Sign and name of each family, in order of appearance."""
    families = list(dict.fromkeys(name.split("@")[0] for name in names))
    entries = "".join(
        f'<li><svg viewBox="0 0 20 20" aria-hidden="true">{mark(name, 10, 10)}</svg>'
        f"{escape(name)}</li>"
        for name in families
    )
    return f'<ul class="legend">{entries}</ul>'
