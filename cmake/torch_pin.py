"""Requirements of the package: a wheel asks for the torch that it was built with.

A provider of dynamic metadata (``[[tool.dynamic-metadata]]`` in pyproject.toml). A source archive
asks for any torch that it can be built with.
"""

from importlib.metadata import version

_state = "metadata_wheel"


def build_state(state):
    """Note what is being built."""
    global _state
    _state = state


def dynamic_wheel(settings):
    """Say which fields a wheel has otherwise than its source archive."""
    return {"dependencies": True}


def pinned(found):
    """The requirement of the minor version of ``found``."""
    major, minor = (int(part) for part in found.split(".")[:2])
    return f"torch>={major}.{minor},<{major}.{minor + 1}"


def dynamic_metadata(settings, project):
    """Return the dependencies."""
    needed = list(settings["dependencies"])
    if _state != "sdist":
        pin = pinned(version("torch"))
        needed = [pin if each.startswith("torch>") else each for each in needed]
    return {"dependencies": needed}
