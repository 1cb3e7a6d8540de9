"""``{notebook} FILE``: the cells of a notebook in examples/notebooks as a page.

Notebooks are stored without outputs; the tests run them.
"""

import json
import pathlib

from fences import replace_fences

NOTEBOOKS = pathlib.Path(__file__).parents[2] / "examples" / "notebooks"


def page(name, body=""):
    """The notebook as Markdown."""
    cells = json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```ipython3\n{text}\n```")
    parts.insert(1, f"As a notebook: [{name}](../../examples/notebooks/{name}).")
    return "\n\n".join(parts)


def setup(app):
    """Tell Sphinx."""
    return replace_fences(app, "notebook", page)
