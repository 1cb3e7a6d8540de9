"""Benchmarks: headkit beside the best that PyTorch has, in one process, on the same inputs."""

from headkit.bench.attention import Attention
from headkit.bench.decode import Decode
from headkit.bench.feed_forward import FeedForward
from headkit.bench.gate import Gate
from headkit.bench.model import Model
from headkit.bench.plan import Plan
from headkit.bench.routine import Report, Routine, run

__all__ = [
    "Attention",
    "Decode",
    "FeedForward",
    "Gate",
    "Model",
    "Plan",
    "Report",
    "Routine",
    "run",
]
