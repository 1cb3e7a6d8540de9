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
