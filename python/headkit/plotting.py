"""What pictures have in common; they need matplotlib (extra ``plots``)."""

from pathlib import Path
from typing import Any

# Okabe, Ito 2008: they stay apart for colour-blind readers.
COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"),
    *("#8c6d31", "#6b4c9a", "#b5c200", "#5b6470"),
)
RANDOM, DENSE = "#999999", "#000000"


def pyplot_for(operation: str) -> Any:
    """Matplotlib's pyplot, set to draw into files.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError(
            f"[{operation}] expected matplotlib; found: {error} (pip install 'headkit[plots]')"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "headkit", "font.size": 8, "axes.grid": True})
    pyplot.rcParams.update(
        {"grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False}
    )
    return pyplot


def save_figure(pyplot: Any, figure: Any, path: str | Path) -> None:
    """Write a figure, the same bytes for the same content, and let go of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


# Sign and colour of a role: families share a colour, no two roles a sign and a word.
ROLE_MARKS = {
    "previous_token": ("\u2190", 0),
    "next_token": ("\u2192", 0),
    "positional": ("\u2194", 0),
    "self": ("\u2022", 4),
    "local": ("\u2248", 4),
    "delimiter": ("\u00b6", 1),
    "first_token_sink": ("\u22a5", 1),
    "duplicate_token": ("=", 2),
    "random_stripe": ("\u21b7", 2),
    "natural_mass": ("\u21b7", 2),
    "natural_any_prior": ("\u21b7", 2),
    "copying": ("\u00a9", 2),
    "rare_token": ("\u25c6", 3),
    "confident": ("\u25b2", 5),
    "broad": ("\u2592", 6),
    "inactive": ("\u2205", 9),
}
OTHER_ROLE = ("\u00a7", 7)
# Said of a head only where nothing says more.
SHAPES = ("confident", "broad")


def role_mark(role: str) -> tuple[str, str]:
    """Sign and colour of a role.

    Args:
        role: name in ``headkit.role_registry()``.

    Example:
        >>> role_mark("delimiter")
        ('\u00b6', '#e69f00')
    """
    sign, colour = ROLE_MARKS.get(role, OTHER_ROLE)
    return sign, COLOURS[colour]


def draw_roles(table: Any, axes: Any) -> None:
    """Draw the grid of ``plot_roles`` on axes of matplotlib.

    Args:
        table: a RoleTable.
        axes: where to draw.
    """
    from matplotlib.patches import Rectangle

    layers, heads = len(table.heads), len(table.heads[0])
    for layer in range(layers):
        for head in range(heads):
            found = table.heads[layer][head]
            labels = sorted(table.labels(layer, head), key=lambda score: score.role in SHAPES)
            near = next((score for score in found if score.assessed), None)
            shown = labels[0] if labels else near
            hatch = None if near is not None else "////"
            colour = role_mark(labels[0].role)[1] if labels else "white"
            axes.add_patch(
                Rectangle(
                    (head - 0.5, layer - 0.5), 1, 1,
                    facecolor=colour, alpha=0.45 if labels else 1, edgecolor="#888888", hatch=hatch,
                )
            )  # fmt: skip
            if shown is None:
                continue
            words = shown.role.replace("_token", "").replace("_", " ")
            name = f"{words} {shown.variant}".strip()
            more = f" +{len(labels) - 1}" if len(labels) > 1 else ""
            axes.text(
                head, layer, f"{role_mark(shown.role)[0]}{more}\n{name}\n{shown.score:.2f}",
                ha="center", va="center", fontsize=5.5,
                color="black" if labels else "#707070",
            )  # fmt: skip
    axes.grid(False)
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(-0.5, layers - 0.5)
    axes.set_xticks(range(heads))
    axes.set_yticks(range(layers))
    axes.set_xlabel("head")
    axes.set_ylabel("layer (0 at the bottom)")
    axes.set_title(
        f"roles on {table.sequences} sequences; coloured = label, grey = nearest role, hatched = "
        "removed"
    )
