"""Lines of text files, with their numbers."""

from pathlib import Path


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a UTF-8 file that are not blank, with their numbers from 1.

    Raises:
        ValueError: if the file is missing, is no text, or has no such line.

    Example:
        >>> file = Path("lines.txt")
        >>> _ = file.write_text("one\\n\\nthree\\n")
        >>> read_lines(file)
        [(1, 'one'), (3, 'three')]
    """
    lines = [
        (number, line)
        for number, line in enumerate(read_whole(path).split("\n"), start=1)
        if line.strip()
    ]
    if not lines:
        raise ValueError(f"[data] expected text in {path}; found no line of it")
    return [(number, line.rstrip("\r")) for number, line in lines]


def read_whole(path: Path) -> str:
    """The content of a UTF-8 file.

    Raises:
        ValueError: if the file is missing or is no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"[data] expected a UTF-8 file {path}; found: {error}") from error


def before_tab(path: Path, number: int, line: str, what: str) -> tuple[str, str]:
    """The parts of a line before and after its last tab.

    Args:
        path: of the file, for the error message.
        number: of the line, likewise.
        line: the line.
        what: of it is expected, likewise.

    Raises:
        ValueError: if there is no tab.
    """
    first, tab, last = line.rpartition("\t")
    if not tab or not first.strip():
        raise ValueError(f"[data] expected {what} in line {number} of {path}; found no tab")
    return first, last.strip()
