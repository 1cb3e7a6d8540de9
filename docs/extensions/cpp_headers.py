"""``{headers} ROOM``: what the public headers of a room declare, as Doxygen reads them."""

import pathlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as tree

from fences import replace_fences
from sphinx.util import logging

ROOT = pathlib.Path(__file__).parents[2]
INCLUDE = ROOT / "include" / "headkit"
READ = ROOT / "build" / "site" / "doxygen" / "xml"
MEMBER = re.compile(r"Member .* of (struct|class) \S+ is not documented")
DESIGNATED = re.compile(r"<initializer>= *\{\..*?</initializer>", re.DOTALL)
SECTION = """\
## {name}

```cpp
#include <headkit/{path}>
```

```{{doxygenfile}} headkit/{path}
```"""


def page(room, body=""):
    """A section for each header."""
    headers = sorted((INCLUDE / room).glob("*.h"))
    return "\n\n".join(
        SECTION.format(name=header.stem, path=f"{room}/{header.name}") for header in headers
    )


def name_files():
    """Name files in Doxygen's index with their folders: two of them share a name."""
    index = tree.parse(READ / "index.xml")
    for entry in index.getroot().iter("compound"):
        if entry.get("kind") == "file":
            file = tree.parse(READ / f"{entry.get('refid')}.xml")
            entry.find("name").text = file.find("compounddef/location").get("file")
    index.write(READ / "index.xml", encoding="UTF-8", xml_declaration=True)


def leave_out_designated_initializers():
    """Sphinx reads C++ without ``{.member = value}``."""
    for path in READ.glob("*.xml"):
        text = path.read_text(encoding="utf-8")
        without = DESIGNATED.sub("", text)
        if without != text:
            path.write_text(without, encoding="utf-8")


def read_headers(app):
    """Run Doxygen, and make its output fit."""
    if shutil.which("doxygen") is None:
        raise RuntimeError("[docs] expected doxygen; found none (apt-get install doxygen)")
    READ.mkdir(parents=True, exist_ok=True)
    told = subprocess.run(
        ["doxygen", "docs/Doxyfile"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stderr
    for line in told.splitlines():
        if line and not MEMBER.search(line):
            logging.getLogger(__name__).warning("%s", line)
    name_files()
    leave_out_designated_initializers()


def setup(app):
    """Tell Sphinx."""
    app.connect("builder-inited", read_headers)
    return replace_fences(app, "headers", page)
