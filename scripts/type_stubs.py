"""Write the type stubs of the compiled core: ``python scripts/type_stubs.py [FILE]``.

Without FILE they go beside the extension, where type checkers and editors look for them. Signatures
only: docstrings are read from the extension itself.
"""

import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile

from pybind11_stubgen import CLIArgs, arg_parser, stub_parser_from_args
from pybind11_stubgen.printer import Printer
from pybind11_stubgen.structs import QualifiedName

from headkit import _C

TORCH = ".".join(_C.torch_version.split(".")[:2])
HEAD = f"""\
\"\"\"The compiled core of headkit. `make stubs` wrote this, with torch {TORCH}: do not edit.\"\"\"
from __future__ import annotations
import builtins
"""
# What pybind11 accepts for numbers, and how it says so, changes between its versions.
PLAIN_TYPES = {
    r"typing\.SupportsInt \| typing\.SupportsIndex": "int",
    r"typing\.SupportsFloat \| typing\.SupportsIndex": "float",
    r"typing\.SupportsInt\b": "int",
    r"typing\.SupportsFloat\b": "float",
    r"os\.PathLike \| str \| bytes": "str | os.PathLike[str]",
    r"(def __eq__\(self, )\w+: [\w.]+\)": r"\1other: object)",
    # Classes with __eq__ alone are not hashable.
    r"(__hash__: typing\.ClassVar\[None\] = None)": r"\1  # type: ignore[assignment]",
}


# What is passed on as it is, None included; pybind11 has no way to say so of arguments without
# default. Callbacks may always be None.
NULLABLE = {
    ("calibrate", "task"),
    ("check_randomisation", "other"),
    ("fit_hybrid", "latency"),
    ("fit_linear_probes", "objective"),
    ("measure_effects", "metric"),
    ("measure_effects", "policy"),
    ("trace_policy", "task"),
    ("train_gates", "distillation"),
    ("train_gates", "teacher"),
    ("train_input_gates", "teacher"),
    ("train_ladder", "task"),
    ("train_ladder", "teacher"),
}


class StubPrinter(Printer):
    """Leaves docstrings out."""

    def print_docstring(self, doc):
        """Print nothing."""
        return []

    def print_function(self, func):
        """Print the signature."""
        self.function = func.name
        return super().print_function(dataclasses.replace(func, doc=None))

    def print_argument(self, arg):
        """Print the argument; one that may be None says so."""
        text = super().print_argument(arg)
        declared, equals, default = text.partition(" = ")
        callback = ": collections.abc.Callable" in declared
        nullable = default == "None" or callback or (self.function, str(arg.name)) in NULLABLE
        if nullable and "| None" not in declared and "typing.Any" not in declared:
            declared += " | None"
        return declared + equals + default

    def print_class(self, class_):
        """Print the class; a member that is named property hides the decorator."""
        lines = super().print_class(class_)
        if any(each.name == "property" for each in class_.properties):
            return [line.replace("@property", "@builtins.property") for line in lines]
        return lines


def stub_parser():
    """A parser that knows classes by their C++ names too.

    A signature that is made before its classes are registered names them so.
    """
    args = arg_parser().parse_args(["headkit._C"], namespace=CLIArgs())
    args.ignore_invalid_expressions = re.compile("<headkit._C.GateSet object at .*>")
    plain = stub_parser_from_args(args)

    class StubParser(type(plain)):
        def parse_annotation_str(self, annotation_str):
            return super().parse_annotation_str(annotation_str.replace("headkit::", "headkit._C."))

    parser = StubParser()
    parser.set_ignored_invalid_expressions(args.ignore_invalid_expressions)
    return parser


def stubs() -> str:
    """The stubs as text."""
    parser = stub_parser()
    module = parser.handle_module(QualifiedName.from_str("headkit._C"), _C)
    parser.finalize()
    module.doc = None
    lines = StubPrinter(invalid_expr_as_ellipses=True).print_module(module)
    text = "\n".join(lines) + "\n"
    text = HEAD + text.replace("from __future__ import annotations\n", "")
    for accepted, plain in PLAIN_TYPES.items():
        text = re.sub(accepted, plain, text)
    return text


def write(path: pathlib.Path) -> None:
    """Write the stubs in the layout of the formatter."""
    config = pathlib.Path(__file__).parent.parent / "pyproject.toml"
    path.write_text(stubs(), encoding="utf-8")
    for command in (["check", "--fix", "--select=I,UP,F401,RUF022"], ["format"]):
        ruff = ["ruff", *command, "--quiet", f"--config={config}", "--no-cache", str(path)]
        subprocess.run([sys.executable, "-m", *ruff], check=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        made = pathlib.Path(folder) / "_C.pyi"
        write(made)
        target = pathlib.Path(given[0]) if given else pathlib.Path(_C.__file__).parent / "_C.pyi"
        target.write_text(made.read_text(encoding="utf-8"), encoding="utf-8")
