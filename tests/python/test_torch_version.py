"""The torch that headkit was built with: what a wheel asks for, and what an import refuses."""

import importlib.util
import pathlib

import pytest
import torch

from headkit import _C, _build
from headkit.torch_version import check_torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def provider():
    spec = importlib.util.spec_from_file_location("torch_pin", ROOT / "cmake" / "torch_pin.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_compared_is_what_the_core_was_built_with():
    assert _build.TORCH_VERSION == _C.torch_version
    check_torch(_build.TORCH_VERSION, torch.__version__)


@pytest.mark.parametrize("found", ["2.15.0", "2.15.3+cu132", "2.15.0a0+git1234"])
def test_another_patch_is_as_good(found):
    check_torch("2.15.0", found)


@pytest.mark.parametrize("found", ["2.1.5", "2.16.0", "2.150.0", "3.15.0"])
def test_another_minor_version_is_refused(found):
    with pytest.raises(ImportError, match=r"expected torch 2\.15, .* found torch"):
        check_torch("2.15.0", found)


def test_a_wheel_asks_for_one_minor_version(provider):
    settings = {"dependencies": ["torch>=2.11", "torchaudio", "numpy"]}
    minor = int(torch.__version__.split(".")[1])
    pin = f"torch>=2.{minor},<2.{minor + 1}"
    provider.build_state("wheel")
    assert provider.dynamic_metadata(settings, {}) == {"dependencies": [pin, "torchaudio", "numpy"]}
    provider.build_state("sdist")
    assert provider.dynamic_metadata(settings, {}) == settings
