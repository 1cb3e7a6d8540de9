"""Benchmarks: headkit beside the best that PyTorch has, in one process, on the same inputs."""

from headkit.bench.command import app

__all__ = ["app"]
