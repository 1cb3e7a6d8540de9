"""Reads the model files of CTranslate2, version 6 of the format."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VERSION = 6
DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


@dataclass(frozen=True)
class Ctranslate2Model:
    """What a file holds.

    Attributes:
        specification: the kind of model, for example ``WhisperSpec``.
        revision: of that kind.
        variables: name to array, read-only views of the file's bytes.
        aliases: further names of variables.
    """

    specification: str
    revision: int
    variables: dict[str, np.ndarray]
    aliases: dict[str, str]


def read(path: Path) -> Ctranslate2Model:
    """Read a whole file; nothing larger than the file is allocated.

    Raises:
        ValueError: if it is of another version, cut short, longer than it says, or its sizes
            contradict each other.
        OSError: if it cannot be read.
    """
    content = _Content(path.name, path.read_bytes())
    version = content.number("I", "a version")
    if version != VERSION:
        raise content.error(f"version {VERSION}", version)
    specification = content.text("the specification")
    revision = content.number("I", "a revision")
    variables: dict[str, np.ndarray] = {}
    for _ in range(content.number("I", "a number of variables")):
        name = content.text("a variable's name")
        if name in variables:
            raise content.error("each variable once", f"{name} twice")
        variables[name] = _variable(content, name)
    aliases: dict[str, str] = {}
    for _ in range(content.number("I", "a number of aliases")):
        alias, name = content.text("an alias"), content.text("a variable's name")
        if alias in variables or alias in aliases or name not in variables:
            raise content.error("a new name for a variable", f"{alias} for {name}")
        aliases[alias] = name
    content.end()
    return Ctranslate2Model(specification, revision, variables, aliases)


def _variable(content: "_Content", name: str) -> np.ndarray:
    shape = [
        content.number("I", f"{name}: a size")
        for _ in range(content.number("B", f"{name}: a rank"))
    ]
    kind = content.number("B", f"{name}: a type")
    if kind not in DTYPES:
        raise content.error(f"{name} of type {', '.join(map(str, DTYPES))}", kind)
    dtype = np.dtype(DTYPES[kind])
    size = content.number("I", f"{name}: a number of bytes")
    if size != math.prod(shape) * dtype.itemsize:
        raise content.error(
            f"{math.prod(shape) * dtype.itemsize} bytes of {name}, {dtype.name} of shape {shape}",
            size,
        )
    if len(shape) > 8:
        raise content.error(f"{name} with at most 8 dimensions", len(shape))
    return np.frombuffer(content.take(size, name), dtype).reshape(shape)


class _Content:
    """The bytes of a file and how far they are read."""

    def __init__(self, name: str, data: bytes):
        self._name, self._data, self._place = name, memoryview(data), 0

    def take(self, size: int, what: str) -> memoryview:
        left = len(self._data) - self._place
        if size > left:
            raise self.error(f"{what} of {size} bytes at byte {self._place}", f"{left} bytes left")
        self._place += size
        return self._data[self._place - size : self._place]

    def number(self, form: str, what: str) -> int:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form), what))[0]

    def text(self, what: str) -> str:
        data = bytes(self.take(self.number("H", what), what))
        if not data.endswith(b"\0") or b"\0" in data[:-1]:
            raise self.error(f"{what} that ends with its only NUL", repr(data[:40]))
        try:
            return data[:-1].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what} in UTF-8", repr(data[:40])) from None

    def end(self) -> None:
        if left := len(self._data) - self._place:
            raise self.error(f"the end of the file at byte {self._place}", f"{left} more bytes")

    def error(self, expected: str, found: object) -> ValueError:
        return ValueError(f"[ctranslate2] {self._name}: expected {expected}; found {found}")
