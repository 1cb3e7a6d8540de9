"""Fences of a page that are replaced by text before it is read."""

import re


def replace_fences(app, name, write):
    """Replace each fence ``{name} arguments`` of a page by ``write(arguments, body)``."""
    fence = re.compile(r"^```\{" + name + r"\} ?(.*)\n(?:((?:.*\n)*?))```$", re.MULTILINE)

    def read(app, page, source):
        source[0] = fence.sub(lambda found: write(found[1], found[2]), source[0])

    app.connect("source-read", read)
    return {"parallel_read_safe": True}
