"""Data from Debian packages: archives built here byte by byte, lists, sounds and pictures."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
import torch

from headkit import assets
from headkit.assets import debian, download
from headkit.assets.fashion_mnist import read_idx
from headkit.assets.prompts import read_list, twice_as_fast


def tar_of(files, compression):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{compression}") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def member(name, content):
    """As the format of ar says; its members begin at even places."""
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    assert len(header) == 60
    return header + content + b"\n" * (len(content) % 2)


def make_deb(path, files, *, compression="xz", cut=0):
    content = b"!<arch>\n" + member("debian-binary", b"2.0\n")
    content += member("control.tar.xz", b"odd")
    content += member(f"data.tar.{compression}", tar_of(files, compression))
    path.write_bytes(content[: len(content) - cut])
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


FILES = {
    "usr/share/tiny/one.txt": b"one",
    "usr/share/doc/tiny/copyright": b"free",
    "usr/bin/other": b"not wanted",
}


def register(monkeypatch, sha256):
    asset = assets.Asset(
        "no-such-package=1", "tiny_1_all.deb", sha256, "usr/share/tiny", "MIT", is_model=False
    )
    monkeypatch.setitem(assets.ASSETS, "tiny", asset)


@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_a_debian_package_in_the_cache_is_unpacked(cache, monkeypatch, compression):
    register(monkeypatch, make_deb(cache / "tiny_1_all.deb", FILES, compression=compression))
    monkeypatch.setattr(download.subprocess, "run", lambda *a, **k: pytest.fail("not needed"))
    folder = assets.fetch("tiny")
    assert (folder / "one.txt").read_bytes() == b"one"
    home = folder.parents[2]
    assert (home / "usr/share/doc/tiny/copyright").read_bytes() == b"free"
    assert not (home / "usr/bin").exists()


def test_a_package_that_is_none_or_cut_short_is_refused(cache, monkeypatch):
    register(monkeypatch, make_deb(cache / "tiny_1_all.deb", FILES, cut=7))
    with pytest.raises(RuntimeError, match="cut short"):
        assets.fetch("tiny")
    for content, reason in (
        (b"PK", "no Debian package"),
        (b"!<arch>\nrubbish", "no header at byte 8"),
        (b"!<arch>\n" + member("debian-binary", b"2.0\n"), r"no data\.tar"),
    ):
        (cache / "other.deb").write_bytes(content)
        with pytest.raises(OSError, match=reason):
            debian.data_of(cache / "other.deb")


def test_without_apt_get_the_message_says_what_to_do(cache, monkeypatch):
    register(monkeypatch, "0" * 64)
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(RuntimeError, match=r"no-such-package=1 with apt-get; found.*put tiny_1"):
        assets.fetch("tiny")
    assert list(cache.iterdir()) == []


def test_the_list_of_prompts():
    text = "; comment: no\na/b:  Press *, then 1 or #.\nbeep: <tone>\nquiet: (silence)\nx: [x]\n\n"
    assert read_list(text) == {"a/b": "press star then 1 or pound"}


@pytest.mark.parametrize("count", [32, 33])
def test_twice_the_rate_is_the_same_sound(count):
    """Tones below the old limit of frequencies are sampled at the new places too."""
    time = np.arange(2 * count) / 2
    for cycles in (0, 1, 5, 15):
        tone = np.cos(2 * np.pi * cycles * time / count + 0.3)
        np.testing.assert_allclose(twice_as_fast(tone[::2]), tone, atol=1e-5)
    noise = np.random.default_rng(0).normal(size=count)
    np.testing.assert_allclose(twice_as_fast(noise)[::2], noise, atol=1e-5)
    assert twice_as_fast(np.zeros(0, np.float32)).size == 0


def test_idx_files(tmp_path):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4) + values.tobytes()
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(content))
    np.testing.assert_array_equal(read_idx(path), values)
    for wrong, reason in (
        (gzip.compress(content[:-1]), "expected 24 values"),
        (gzip.compress(b"\0\0\x0d\1"), "unsigned bytes"),
        (gzip.compress(b""), "unsigned bytes"),
        (content, "a file of gzip"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(RuntimeError, match=reason):
            read_idx(path)


def or_skip(load, *given):
    """What needs a network or a Debian mirror on first use."""
    try:
        return load(*given)
    except RuntimeError as error:
        pytest.skip(str(error))


def test_prompts_of_more_than_five_seconds():
    found = or_skip(assets.prompts, 5.0)
    assert len(found) == 46
    assert all(5 < len(each.samples) / each.sample_rate <= 30 for each in found)
    names = {each.name: each.transcript for each in found}
    assert names["demo-thanks"].startswith("goodbye thank you for trying out the asterisk")
    spectrum = torch.fft.rfft(torch.tensor(found[0].samples)).abs()
    assert spectrum[len(spectrum) // 2 + 1 :].max() < 1e-3 * spectrum.max()


def test_fashion_mnist_is_whole():
    found = or_skip(assets.fashion_mnist)
    assert {name: images.shape for name, (images, _) in found.items()} == {
        "train": (60000, 28, 28),
        "test": (10000, 28, 28),
    }
    for _, labels in found.values():
        counts = np.bincount(labels)
        assert len(counts) == 10 and (counts == counts[0]).all()
