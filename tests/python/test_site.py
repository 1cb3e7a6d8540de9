"""The site names everything that is public; `make site` builds it with warnings as errors."""

import importlib
import inspect
import pathlib
import re
from collections import Counter

import headkit

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NAMES = re.compile(r"^```\{names\} ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)


def listed():
    """(module, name) of everything on the pages of Python."""
    for page in sorted((REFERENCE / "python").glob("*.md")):
        for module, names in NAMES.findall(page.read_text()):
            for name in names.split() or [""]:
                yield module or "headkit", name


def test_every_public_name_is_on_one_page():
    found = Counter(name for module, name in listed() if module == "headkit")
    assert set(found.values()) == {1}
    own_pages = {"assets", "nn", "__version__"}
    assert set(found) == set(headkit.__all__) - own_pages


def test_what_is_listed_exists_and_has_a_text():
    for module, name in listed():
        value = importlib.import_module(module)
        value = getattr(value, name) if name else value
        if inspect.ismodule(value) or inspect.isclass(value) or callable(value):
            text = inspect.getdoc(value) or ""
            assert text.partition("\n\n")[2] or "(" not in text.split()[0], f"{module}.{name}"


def test_every_room_with_public_headers_has_a_page():
    rooms = {path.name for path in (ROOT / "include" / "headkit").iterdir() if path.is_dir()}
    shown = {}
    for page in (REFERENCE / "cpp").glob("*.md"):
        shown |= {room: page.stem for room in re.findall(r"```\{headers\} (\w+)", page.read_text())}
    assert shown == {room: room for room in rooms}


def test_every_notebook_is_a_tutorial():
    notebooks = {path.name for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")}
    pages = [page.read_text() for page in (ROOT / "docs" / "tutorials").glob("[0-9]*.md")]
    assert {
        name for page in pages for name in re.findall(r"```\{notebook\} (.*)", page)
    } == notebooks


def test_every_page_is_in_a_table_of_contents():
    reached = {ROOT / "docs" / "index.md"}
    for page in PAGES:
        for entries in re.findall(r"```\{toctree\}\n((?:.*\n)*?)```", page.read_text()):
            names = [line for line in entries.split() if not line.startswith(":")]
            reached |= {(page.parent / f"{name}.md").resolve() for name in names}
    assert reached >= set(PAGES)
