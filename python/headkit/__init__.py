"""Attention heads that run only where an input needs them."""

import torch  # noqa: F401  (its libraries must be loaded before ours)

from headkit import nn
from headkit._C import (
    AttentionWeights,
    BackendChoice,
    attention_backend,
    gated_attention,
    head_contexts,
    reference_attention,
)
from headkit._C import refresh_packed_weights as refresh

__all__ = [
    "AttentionWeights",
    "BackendChoice",
    "attention_backend",
    "gated_attention",
    "head_contexts",
    "nn",
    "reference_attention",
    "refresh",
]
