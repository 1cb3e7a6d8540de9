"""Every example in README, docs and docstrings runs."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import torch

import headkit

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def blocks(page, language):
    return [body for found, body in FENCE.findall(page.read_text()) if found == language]


def modules():
    names = ["headkit"]
    for found in pkgutil.walk_packages(headkit.__path__, "headkit."):
        if not found.name.endswith("._C"):
            names.append(found.name)
    return names


def run_examples(examples, name, namespace):
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    text = []
    for example in examples:
        example.globs = dict(namespace)
        runner.run(example, out=text.append)
    assert runner.failures == 0, f"{name}\n" + "".join(text)
    return runner.tries


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{page.name}, example {number}", "exec"), namespace)


def test_the_readme_shows_the_python_example():
    example = (ROOT / "examples" / "python" / "quickstart.py").read_text()
    assert example.endswith(f'"""\n\n{blocks(ROOT / "README.md", "python")[0]}')


def lines(text):
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_cpp_examples_of_a_page_are_of_files_that_are_compiled(page):
    found = blocks(page, "cpp")
    if not found:
        return
    folders = ("include", "src", "examples/cpp", "tests/cpp")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.[hc]*")]
    sources = ["\n".join(lines(path.read_text())) for path in files]
    for block in found:
        shown = "\n".join(lines(block))
        assert any(shown in source for source in sources), block


def test_the_example_of_the_hybrid_pruner_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "python" / "hybrid_pruner.py"))
    said = capsys.readouterr().out
    assert "static" in said and "of the labels stay as they were" in said


def test_the_guide_shows_the_whole_file_of_a_family():
    source = (ROOT / "python/headkit/huggingface/families/vit.py").read_text()
    shown = blocks(ROOT / "docs/guides/add_a_model.md", "python")[:2]
    assert source.endswith("\n\n\n".join(part.strip() for part in shown) + "\n")


@pytest.mark.parametrize("name", modules())
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    examples = doctest.DocTestFinder(exclude_empty=True).find(module)
    run_examples(
        examples, name, {**vars(module), "headkit": headkit, "hk": headkit, "torch": torch}
    )


def test_docstring_examples_of_the_compiled_core_run():
    parser = doctest.DocTestParser()
    examples = []
    for name, value in vars(headkit._C).items():
        members = vars(value).items() if isinstance(value, type) else ()
        for path, item in [(name, value), *((f"{name}.{key}", member) for key, member in members)]:
            text = getattr(item, "__doc__", None)
            if isinstance(text, str) and ">>>" in text:
                examples.append(parser.get_doctest(text, {}, path, None, 0))
    tries = run_examples(examples, "headkit._C", {"headkit": headkit, "torch": torch})
    assert tries > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page):
    for block in blocks(page, "sh") + blocks(page, "bash"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["make"]:
                assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(), line
            if words[:1] == ["headkit"]:
                command = [word for word in words[1:3] if re.fullmatch(r"[a-z][a-z-]*", word)]
                shown = subprocess.run(
                    [sys.executable, "-m", "headkit.cli", *command, "--help"],
                    capture_output=True,
                    text=True,
                )
                assert shown.returncode == 0, line + shown.stderr
                for option in (word.split("=")[0] for word in words if word.startswith("--")):
                    assert option in shown.stdout, f"{line}: no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page):
    prose = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
