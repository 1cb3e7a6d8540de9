"""Attention heads that run only where an input needs them."""

import os as _os

import torch

try:
    from headkit import _C
except ImportError as error:
    raise ImportError(
        "[headkit] expected a compiled core that fits this torch; found that it does not load "
        f"with torch {torch.__version__} ({error}). Reinstall headkit after changing torch."
    ) from error

from headkit import nn
from headkit._C import (
    AttentionWeights,
    BackendChoice,
    GateSet,
    HeadId,
    HeadLayout,
    HeadMask,
    HeadScores,
    WorkList,
    __version__,
    active_isa,
    attention_backend,
    attention_flops,
    available_backends,
    available_isas,
    encoder_flops,
    feed_forward_flops,
    gated_attention,
    head_contexts,
    make_work_list,
    reference_attention,
    show_config,
)
from headkit._C import refresh_packed_weights as refresh

# For find_package(headkit): -DCMAKE_PREFIX_PATH=$(python -c "import headkit; print(headkit.cmake_prefix_path)")
cmake_prefix_path = _os.path.dirname(_C.__file__)

__all__ = [
    "AttentionWeights",
    "BackendChoice",
    "GateSet",
    "HeadId",
    "HeadLayout",
    "HeadMask",
    "HeadScores",
    "WorkList",
    "__version__",
    "active_isa",
    "attention_backend",
    "attention_flops",
    "available_backends",
    "available_isas",
    "cmake_prefix_path",
    "encoder_flops",
    "feed_forward_flops",
    "gated_attention",
    "head_contexts",
    "make_work_list",
    "nn",
    "reference_attention",
    "refresh",
    "show_config",
]
