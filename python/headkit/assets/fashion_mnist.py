"""Pictures of clothes, 28 x 28, ten classes."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np

CLASSES = (
    *("T-shirt", "trousers", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "boot"),
)
UNSIGNED_BYTES = 8


def fashion_mnist() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fashion-MNIST: 60,000 pictures to train on and 10,000 to test.

    Returns:
        dict: ``"train"`` and ``"test"``: images, uint8 [N, 28, 28], and labels, uint8 [N].

    Raises:
        RuntimeError: if it can neither be found nor downloaded, or a file is not as expected.

    Source:
        Xiao, Rasul, Vollgraf 2017, MIT, from the Debian package dataset-fashion-mnist.
    """
    from headkit.assets.store import fetch

    folder = fetch("fashion-mnist")
    return {
        part: (
            read_idx(folder / f"{name}-images-idx3-ubyte.gz"),
            read_idx(folder / f"{name}-labels-idx1-ubyte.gz"),
        )
        for part, name in (("train", "train"), ("test", "t10k"))
    }


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format, compressed by gzip.

    Raises:
        RuntimeError: if the file is of another type or its sizes contradict it.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise RuntimeError(f"[idx] expected a file of gzip {path.name}; found: {error}") from error
    rank = content[3] if len(content) >= 4 else 0
    if content[:3] != bytes((0, 0, UNSIGNED_BYTES)) or len(content) < 4 + 4 * rank:
        raise RuntimeError(
            f"[idx] expected an array of unsigned bytes in {path.name}; found {content[:4].hex()}"
        )
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != math.prod(shape):
        raise RuntimeError(
            f"[idx] expected {math.prod(shape)} values in {path.name}, shape {list(shape)}; found "
            f"{values.size}"
        )
    return values.reshape(shape)
