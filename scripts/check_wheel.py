"""What a wheel asks of the system: ``python scripts/check_wheel.py FILE``.

Torch's libraries come with the requirement and are not copied in, so that auditwheel cannot repair
the wheel; the rest is compared with what manylinux_2_28 has. Fails where a library is neither of
torch nor of the C and C++ runtime, or where the requirement of torch is not a minor version.
"""

import email
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

TORCH = {"libc10.so", "libtorch.so", "libtorch_cpu.so", "libtorch_python.so"}
RUNTIME = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "libgcc_s.so.1"}
RUNTIME |= {"libstdc++.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
# The OpenMP pool is torch's, under the name that torch gave it.
OPENMP = re.compile(r"libgomp(-[0-9a-f]+)?\.so\S*")
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}


def dotted(version: tuple[int, ...]) -> str:
    """A version as text."""
    return ".".join(map(str, version))


def needed(library: pathlib.Path) -> tuple[set[str], dict[str, tuple[int, ...]]]:
    """Libraries that it asks for, and the newest version of each set of symbols."""
    told = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--version-info", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    versions: dict[str, tuple[int, ...]] = {}
    for name, version in re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI)_([\d.]+)", told):
        number = tuple(int(part) for part in version.split("."))
        versions[name] = max(number, versions.get(name, ()))
    return set(re.findall(r"\(NEEDED\)\s+Shared library: \[(.*)\]", told)), versions


def check(wheel: pathlib.Path) -> list[str]:
    """Print what the wheel asks for; returns what is wrong."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        root = pathlib.Path(folder)
        libraries = sorted(path for path in root.rglob("*.so*") if path.is_file())
        own = {path.name for path in libraries}
        for library in libraries:
            asked, versions = needed(library)
            shown = ", ".join(f"{name} {dotted(each)}" for name, each in sorted(versions.items()))
            print(f"{library.relative_to(root)}: {', '.join(sorted(asked - RUNTIME))}; {shown}")
            unknown = {name for name in asked - own - TORCH - RUNTIME if not OPENMP.match(name)}
            if unknown:
                wrong.append(f"libraries of torch and the runtime; found {', '.join(unknown)}")
            for name, newest in NEWEST.items():
                if versions.get(name, ()) > newest:
                    print(f"  newer than manylinux_2_28, which has {name} {dotted(newest)}")
        metadata = next(root.glob("*.dist-info/METADATA")).read_text(encoding="utf-8")
    requirements = email.message_from_string(metadata).get_all("Requires-Dist", [])
    torch = [each for each in requirements if re.match(r"torch[<>=]", each)]
    print(*torch)
    if not any("<" in each and ">=" in each for each in torch):
        wrong.append(f"a requirement of one minor version of torch; found {torch}")
    if not {"_C.pyi", "py.typed", "_build.py"} <= {
        name.split("/")[-1] for name in zipfile.ZipFile(wheel).namelist()
    }:
        wrong.append("type stubs, py.typed and _build.py in the package; found not all")
    return wrong


if __name__ == "__main__":
    found = check(pathlib.Path(sys.argv[1]))
    for each in found:
        print(f"[wheel] expected {each}", file=sys.stderr)
    sys.exit(bool(found))
