"""Run clang-tidy: ``python scripts/tidy.py BUILD [COMMIT]``.

Looks at sources that changed since COMMIT, or at all; a changed header counts through the source of
its name. Checks are in .clang-tidy.
"""

import json
import pathlib
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
OURS = ("src/", "python/bindings/")


def changed(commit: str) -> set[str]:
    """Stems of C++ files that differ from ``commit``, in the index, the tree or by commits."""
    git = subprocess.run(
        ["git", "diff", "--name-only", commit, "--", "*.cpp", "*.h"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if git.returncode:
        print(f"[tidy] no commit {commit} here: nothing to compare with")
        return set()
    return {str(pathlib.Path(path).with_suffix("")) for path in git.stdout.split()}


def plain(entry: dict) -> dict:
    """A command without precompiled headers and options that are of another compiler."""
    words = shlex.split(entry["command"])
    kept, skip = [], 0
    for place, word in enumerate(words):
        if skip:
            skip -= 1
        elif word == "-include" and "cmake_pch" in words[place + 1]:
            skip = 1
        elif word not in ("-Winvalid-pch", "-fno-lto") and not word.endswith("ccache"):
            kept.append(word)
    return {**entry, "command": shlex.join(kept)}


def wanted(file: str, stems: set[str] | None) -> bool:
    """Whether a source is ours, and it or the header of its name changed."""
    path = pathlib.Path(file)
    if not path.is_relative_to(ROOT):
        return False
    name = str(path.relative_to(ROOT))
    if not name.startswith(OURS):
        return False
    stem = str(pathlib.Path(name).with_suffix(""))
    header = stem.replace("src/", "include/headkit/", 1)
    return stems is None or bool({stem, header} & stems)


def main(build: str, commit: str = "") -> int:
    """Check; the exit code is that of clang-tidy."""
    database = json.loads((pathlib.Path(build) / "compile_commands.json").read_text())
    stems = changed(commit) if commit else None
    chosen = {entry["file"]: plain(entry) for entry in database if wanted(entry["file"], stems)}
    print(f"clang-tidy looks at {len(chosen)} sources")
    if not chosen:
        return 0
    with tempfile.TemporaryDirectory() as folder:
        commands = pathlib.Path(folder) / "compile_commands.json"
        commands.write_text(json.dumps(list(chosen.values())))
        tool = pathlib.Path(sys.executable).parent / "clang-tidy"
        return subprocess.run([tool, "--quiet", "-p", folder, *sorted(chosen)]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
