"""Photographs that come with scikit-learn."""

from pathlib import Path

import numpy as np


def photographs() -> dict[str, np.ndarray]:
    """Two photographs: ``china`` (a pagoda) and ``flower``.

    Returns:
        dict[str, numpy.ndarray]: uint8, shape [427, 640, 3], red, green, blue.

    Raises:
        RuntimeError: without scikit-learn or Pillow.

    Source:
        Daniel Buechele and "vultilion" on Flickr, CC BY 2.0, as scikit-learn ships them.
    """
    try:
        from sklearn.datasets import load_sample_images

        images = load_sample_images()
    except ImportError as error:
        raise RuntimeError(
            "[photographs] expected scikit-learn and Pillow; found that one is missing "
            f"({error}): pip install 'headkit[assets]'"
        ) from error
    return {
        Path(name).stem: np.array(image)
        for name, image in zip(images.filenames, images.images, strict=True)
    }
