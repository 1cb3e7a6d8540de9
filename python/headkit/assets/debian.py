"""Reads Debian packages: an ar archive that holds a tar archive of the files."""

import io
from pathlib import Path

MAGIC = b"!<arch>\n"
HEADER, END_OF_HEADER = 60, b"`\n"


def data_of(path: Path) -> io.BytesIO:
    """The tar archive with a package's files, still compressed.

    Raises:
        OSError: if the file is no Debian package, or cut short.
    """
    content = path.read_bytes()
    if not content.startswith(MAGIC):
        raise OSError(f"{path.name} is no Debian package")
    place = len(MAGIC)
    while place < len(content):
        header = content[place : place + HEADER]
        size = header[48:58].strip()
        if header[58:] != END_OF_HEADER or not size.isdigit():
            raise OSError(f"{path.name} has no header at byte {place}")
        first = place + HEADER
        last = first + int(size)
        if last > len(content):
            raise OSError(f"{path.name} is cut short")
        if header[:16].strip().startswith(b"data.tar"):
            return io.BytesIO(content[first:last])
        # Members begin at even places.
        place = last + last % 2
    raise OSError(f"{path.name} has no data.tar")
