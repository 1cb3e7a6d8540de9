"""The command ``headkit``."""

from headkit.cli.commands import app

__all__ = ["app"]
