"""``{command-line}``: every command and option, from the program itself."""

import click
import typer.main
from fences import replace_fences


def commands(command, words):
    """A command and those below it, with the words that call them."""
    yield command, words
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, [*words, name])


def usage(command, words):
    """One line: the words, then what is required or repeated."""
    context = click.Context(command, info_name=" ".join(words))
    return " ".join([" ".join(words), *command.collect_usage_pieces(context)])


def plain(text):
    """Text in which Markdown sees no markup."""
    for mark in "\\|<>*_[]$":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def rows(command, words):
    """Names, values and meaning of each parameter."""
    context = click.Context(command, info_name=" ".join(words))
    for parameter in command.params:
        shown = parameter.get_help_record(context)
        if shown is None and parameter.param_type_name == "argument":
            shown = (parameter.human_readable_name, getattr(parameter, "help", "") or "")
        if shown is not None and "--help" not in shown[0]:
            yield f"| `{shown[0].replace('|', ' or ')}` | {plain(shown[1])} |"


def section(command, words):
    """A heading, what the command does, and its parameters."""
    name = " ".join(words)
    parts = [
        f"## {name}" if len(words) < 3 else f"### {name}",
        "\n\n".join(plain(part) for part in (command.help or "").split("\n\n")),
        f"```text\n{usage(command, words)}\n```",
    ]
    table = list(rows(command, words))
    if table:
        parts.append("\n".join(["| option | meaning |", "|---|---|", *table]))
    return "\n\n".join(parts)


def page(arguments="", body=""):
    """All commands as Markdown."""
    from headkit.cli import app

    program = typer.main.get_command(app)
    return "\n\n".join(section(*each) for each in commands(program, ["headkit"]))


def setup(app):
    """Tell Sphinx."""
    return replace_fences(app, "command-line", page)
