"""``{names} MODULE``: names of a module, one a line, with signature and docstring.

Without names: the module's own text. Docstrings are plain text around ``literals`` and Google-style
sections, so that what looks like other markup is protected.
"""

import importlib
import inspect
import re

from fences import replace_fences

# What pybind11 accepts for numbers, and how it says so, changes between its versions.
SHORTER = {
    "typing.SupportsInt | typing.SupportsIndex": "int",
    "typing.SupportsFloat | typing.SupportsIndex": "float",
    "collections.abc.": "",
    "headkit._C.": "headkit.",
    "headkit::": "headkit.",
}


def directive(module, name):
    """The directive that documents a name."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        return f".. autoclass:: {module}.{name}\n   :members:\n   :undoc-members:\n"
    kind = "autofunction" if callable(value) else "autodata"
    return f".. {kind}:: {module}.{name}\n"


def page(module, body):
    """Directives, one a name."""
    module = module or "headkit"
    made = [directive(module, name) for name in body.split()]
    made = made or [f".. automodule:: {module}\n   :members:\n"]
    return "\n".join(["```{eval-rst}", *made, "```"])


def protect(app, what, name, value, options, lines):
    """Escape what reStructuredText would read as markup, outside of literals and examples."""
    for place, line in enumerate(lines):
        if line.lstrip().startswith((">>>", "...")):
            continue
        parts = re.split(r"(``.*?``)", line)
        parts[::2] = [re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
        lines[place] = "".join(parts)


def shorten(app, what, name, value, options, signature, returned):
    """Public names in signatures."""
    for long, short in SHORTER.items():
        signature = signature and signature.replace(long, short)
        returned = returned and returned.replace(long, short)
    return signature, returned


def setup(app):
    """Tell Sphinx."""
    app.connect("autodoc-process-docstring", protect, priority=100)
    app.connect("autodoc-process-signature", shorten)
    return replace_fences(app, "names", page)
