"""The command ``headkit bench``."""

from headkit.cli.bench.command import app

__all__ = ["app"]
