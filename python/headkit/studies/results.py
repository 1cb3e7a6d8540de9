"""Results on disk, each under the hash of the configuration that it belongs to."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headkit.files import write_json

SCHEMA = 1


def key_of(configuration: Any) -> str:
    """A name for a configuration: the start of the SHA-256 of its JSON.

    Example:
        >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
        True
    """
    text = json.dumps(configuration, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Missing(Exception):
    """A frozen ``Results`` was asked for what is not there."""


class Results:
    """Computes what is not there yet and remembers it.

    Args:
        folder: where results lie, a file each; made if missing.
        frozen: compute nothing: ``Missing`` is raised instead.

    Attributes:
        computed: results that were computed, not found, since this object was made.

    Example:
        >>> results = Results("cache")
        >>> results.get("square", {"of": 3}, lambda: 9), results.get("square", {"of": 3}, int)
        (9, 9)
    """

    def __init__(self, folder: str | Path, *, frozen: bool = False):
        self.folder, self.frozen = Path(folder), frozen
        self.computed = 0

    def path(self, kind: str, configuration: Any) -> Path:
        """Where the result of a configuration is, or will be."""
        return self.folder / kind / f"{key_of([SCHEMA, configuration])}.json"

    def get(self, kind: str, configuration: Any, compute: Callable[[], Any]) -> Any:
        """The result of a configuration, computed if there is none.

        Args:
            kind: what it is, a folder.
            configuration: JSON values that determine it.
            compute: makes it, JSON values too; nothing is kept if it raises.

        Raises:
            RuntimeError: if it cannot be written.
            Missing: if it is not there and the results are frozen.
        """
        configuration = json.loads(json.dumps(configuration))
        path = self.path(kind, configuration)
        found = self._read(path, configuration)
        if found is None:
            self.check_not_frozen(kind)
            found = {"configuration": configuration, "result": compute()}
            write_json(path, found)
            self.computed += 1
        return found["result"]

    def check_not_frozen(self, kind: str) -> None:
        """Raise ``Missing`` if nothing may be computed."""
        if self.frozen:
            raise Missing(kind)

    @staticmethod
    def _read(path: Path, configuration: Any) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(found, dict) and "result" in found
        return found if whole and found.get("configuration") == configuration else None
