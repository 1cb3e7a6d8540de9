"""Fashion-MNIST for the vision transformer that learns digits elsewhere."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from headkit.studies.digits import Digits, DigitSizes
from headkit.studies.recipe import Recipe

SIZES_OF_PARTS = {"calibration": 512, "validation": 1024, "train": 20_000}
TEST = 2_000
FASHION_RECIPE = Recipe(epochs=8, learning_rate=1e-3, batch_size=64)


@dataclass(frozen=True)
class FashionSizes(DigitSizes):
    """Of the vision transformer, as for digits, on 28 x 28 pixels."""

    IMAGE: ClassVar[int] = 28
    PATCH: ClassVar[int] = 4


def read_fashion(limit: int | None = None) -> dict[str, Digits]:
    """Parts of Fashion-MNIST, drawn once.

    Args:
        limit: at most so many in the training part, and a quarter of it in the others; for tests.

    Returns:
        dict: ``"train"``, ``"calibration"`` and ``"validation"`` from its training images,
        ``"test"`` from its test images.

    Raises:
        RuntimeError: if it can neither be found nor downloaded.
    """
    from headkit.assets import fashion_mnist

    data, draw = fashion_mnist(), torch.Generator().manual_seed(0)
    chosen, first = {}, 0
    places = torch.randperm(len(data["train"][1]), generator=draw)
    for name, count in SIZES_OF_PARTS.items():
        chosen[name], first = ("train", places[first : first + count]), first + count
    chosen["test"] = ("test", torch.randperm(len(data["test"][1]), generator=draw)[:TEST])
    parts = {}
    for name, (side, taken) in chosen.items():
        most = None if limit is None else (limit if name == "train" else limit // 4)
        taken = taken[:most].numpy()
        images, labels = data[side]
        parts[name] = Digits(
            torch.tensor(images[taken], dtype=torch.float32)[:, None] / 127.5 - 1,
            torch.tensor(labels[taken], dtype=torch.int64),
        )
    return parts
