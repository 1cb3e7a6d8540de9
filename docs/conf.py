"""How Sphinx builds the site: ``make site``."""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "headkit"
author = "The headkit founders"
release = re.search(r'(?m)^version = "(.+)"', (HERE.parent / "pyproject.toml").read_text())[1]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "breathe",
    "command_line",
    "cpp_headers",
    "notebooks",
    "python_names",
]
exclude_patterns = ["extensions", "_build"]
html_theme = "furo"
html_title = f"headkit {release}"
html_copy_source = False
html_static_path = []
templates_path = []

nitpicky = True
# Types of torch, numpy and the standard libraries have no page here.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!headkit\b).*"),
    (r"cpp:identifier", r"(?!headkit\b).*"),
    # Classes of what functions return or hold, without a public name.
    (r"py:class", r"headkit\.(LatencyTables|UnitCosts|_C\.\w+Core)"),
    (r"py:class", r"headkit\.huggingface\.staged_model\.StagedModel"),
]
linkcheck_ignore = [r"https://arxiv\.org/.*"]  # refuses programs

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 4
suppress_warnings = [
    "misc.highlighting_failure",  # sketches in fences without a language
    "duplicate_declaration.cpp",  # the namespace, once for each header; no header is listed twice
]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_custom_sections = ["Source"]
napoleon_use_rtype = False
napoleon_use_ivar = True

breathe_projects = {"headkit": str(HERE.parent / "build" / "site" / "doxygen" / "xml")}
breathe_default_project = "headkit"
breathe_show_include = False
