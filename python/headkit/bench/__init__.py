"""Benchmarks: headkit beside the best that PyTorch has, in one process, on the same inputs."""

from headkit.bench.attention import Attention
from headkit.bench.routine import Report, Routine, run

__all__ = ["Attention", "Report", "Routine", "run"]
