"""Files that appear whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file through a temporary one beside it.

    Args:
        path: where; missing folders are made.
        text: what, written as UTF-8.

    Returns:
        Path: of the file.

    Raises:
        RuntimeError: if it cannot be written; an older file then stays as it was.

    Example:
        >>> write_text("note.txt", "hello").read_text()
        'hello'
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise RuntimeError(f"[write] expected to write {path}; found: {error}") from error
    return path


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write a value as JSON, readable and without NaN.

    Raises:
        RuntimeError: if it cannot be written.
        ValueError: if it holds NaN or infinity.
    """
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
