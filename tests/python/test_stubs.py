"""The type stubs of the compiled core are those that `make stubs` writes."""

import ast
import importlib.util
import pathlib
import re

import pytest
import torch

from headkit import _C

ROOT = pathlib.Path(__file__).resolve().parents[2]
STUBS = ROOT / "python" / "headkit" / "_C.pyi"


def declared():
    """Names of the module and members of its classes, as the stubs have them."""
    found = {}
    for node in ast.parse(STUBS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            members = {getattr(each, "name", None) for each in node.body}
            members |= {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}
            found[node.name] = members
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = set()
        elif isinstance(node, ast.AnnAssign):
            found[node.target.id] = set()
    return found


def test_every_name_of_the_core_is_declared():
    found = declared()
    for name, value in vars(_C).items():
        if name.startswith("__") and name != "__version__":
            continue
        assert name in found, name
        if isinstance(value, type):
            members = {each for each in vars(value) if not each.startswith("_")}
            assert members <= found[name], (name, members - found[name])


def test_nothing_else_is_declared():
    for name, members in declared().items():
        assert name == "__all__" or hasattr(_C, name), name
        for member in members - {None, "__hash__"}:
            assert hasattr(getattr(_C, name), member), f"{name}.{member}"


def test_they_are_what_the_command_writes(tmp_path):
    pytest.importorskip("pybind11_stubgen")
    first = STUBS.read_text(encoding="utf-8").splitlines()[0]
    written_with = re.search(r"torch ([\d.]+)", first)[1]
    if not torch.__version__.startswith(f"{written_with}."):
        pytest.skip(f"written with torch {written_with}, whose pybind11 may word types otherwise")
    path = ROOT / "scripts" / "type_stubs.py"
    spec = importlib.util.spec_from_file_location("type_stubs", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write(tmp_path / "_C.pyi")
    assert (tmp_path / "_C.pyi").read_text() == STUBS.read_text(), "run `make stubs`"
