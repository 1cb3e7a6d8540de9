"""The installed package as a C++ project sees it."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import torch
import transformers

import headkit as hk

ROOT = pathlib.Path(__file__).resolve().parents[2]


def configure(build, *options, program="quickstart"):
    return subprocess.run(
        [
            "cmake",
            "-S",
            str(ROOT / "tests" / "install"),
            "-B",
            str(build),
            f"-DCMAKE_PREFIX_PATH={hk.cmake_prefix_path}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCONSUMER_SOURCE={ROOT / 'examples' / 'cpp' / f'{program}.cpp'}",
            *options,
        ],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def installed():
    config = pathlib.Path(hk.cmake_prefix_path) / "share/cmake/headkit/headkit-config.cmake"
    if not config.exists():
        pytest.skip("headkit runs from its build tree; the package is not installed")


def built_and_run(build, program, *arguments):
    """What an example prints that is built by find_package."""
    configured = configure(build, program=program)
    assert configured.returncode == 0, configured.stderr
    built = subprocess.run(["cmake", "--build", str(build)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    command = [str(each) for each in (build / "consumer", *arguments)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_readme_program_builds_by_find_package_and_runs(installed, tmp_path):
    said = built_and_run(tmp_path, "quickstart")
    heads = re.fullmatch(r"\[8, 128, 768\] from (\d+) of 96 heads\n", said)
    assert heads and 0 < int(heads[1]) < 96


def test_the_program_of_the_hybrid_pruner_keeps_its_budget(installed, tmp_path):
    said = built_and_run(tmp_path, "hybrid_pruner")
    heads = {name: float(count) for name, count in re.findall(r"(.+): ([\d.]+) heads", said)}
    assert heads["dense"] == 16 and heads["policy"] <= 12


@pytest.fixture
def plain(tmp_path):
    """A folder of transformers."""
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def test_a_custom_scorer_prunes_and_the_result_is_served(installed, plain, tmp_path):
    said = built_and_run(tmp_path / "scorer", "custom_scorer", plain, tmp_path / "pruned")
    assert f"4 of 8 heads are in {tmp_path / 'pruned'}" in said
    printed = [[float(value) for value in row.split()] for row in said.splitlines()[:2]]
    scores = torch.tensor(printed, dtype=torch.float64)
    model = hk.load(tmp_path / "pruned")
    kept = hk.attach(model).heads().keep
    assert kept.sum() == 4 and scores[kept].min() >= scores[~kept].max()

    ids = [5, 6, 7, 8, 9]
    said = built_and_run(tmp_path / "serve", "serve_pruned", tmp_path / "pruned", *ids)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].tolist()
    found = [float(line) for line in re.findall(r"^\s*(-?\d+\.\d+)$", said, re.MULTILINE)]
    assert found == pytest.approx(expected, abs=1e-4)  # as many digits are printed
    ran = re.findall(r"^layer \d+:(.*)$", said, re.MULTILINE)
    assert [[int(head) for head in row.split()] for row in ran] == [
        row.nonzero().flatten().tolist() for row in kept
    ]


def test_a_report_is_written_without_python(installed, plain, tmp_path):
    ids, page = [5, 6, 7, 8, 9], tmp_path / "report.html"
    said = built_and_run(tmp_path / "report", "write_report", plain, page, *ids)
    assert said.startswith("8 of 8 heads on by mask")
    blocks = re.findall(r"<script[^>]*json[^>]*>(.*?)</script>", page.read_text(), re.DOTALL)
    heads = json.loads(blocks[0])["records"][0]["heads"]
    model = transformers.BertForSequenceClassification.from_pretrained(plain)
    batch = {"input_ids": torch.tensor([ids])}
    expected = hk.effects(hk.attach(model), batch, ablation="zero")[0]
    for told, effects in zip(heads, expected.heads, strict=True):
        frozen = told["effects"]["toggle"]["frozen"]
        assert frozen == pytest.approx(effects.toggle.frozen, abs=1e-4)
        assert told["attention"]["encoding"]


def test_a_custom_gate_reads_the_length(installed, plain, tmp_path):
    said = built_and_run(tmp_path / "gate", "custom_gate", plain)
    assert said == "20 tokens: 8 of 8 heads; 5 tokens: 4\n"


def test_another_torch_minor_is_refused(installed, tmp_path):
    torch_root = tmp_path / "torch"
    (torch_root / "lib").mkdir(parents=True)
    (torch_root / "version.py").write_text("__version__ = '2.12.1'\n")
    configured = configure(tmp_path / "build", f"-DHEADKIT_TORCH_ROOT={torch_root}")
    assert configured.returncode != 0
    minor = ".".join(torch.__version__.split(".")[:2])
    # CMake wraps long lines.
    message = " ".join(configured.stderr.split())
    assert f"[headkit] expected torch {minor}" in message and "found 2.12.1" in message


def test_the_readme_shows_the_example_that_was_built():
    readme = (ROOT / "README.md").read_text()
    program = (ROOT / "examples" / "cpp" / "quickstart.cpp").read_text()
    assert f"```cpp\n{program}```" in readme


def test_the_umbrella_header_holds_every_public_header():
    include = ROOT / "include"
    headers = {str(path.relative_to(include)) for path in include.rglob("*.h")}
    listed = set(re.findall(r'#include "(.*)"', (include / "headkit/headkit.h").read_text()))
    assert listed == headers - {"headkit/headkit.h"} | {"headkit/core/version.h"}
