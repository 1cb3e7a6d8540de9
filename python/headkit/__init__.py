"""Attention heads that run only where an input needs them."""

import os as _os

import torch

from headkit._C import __version__
from headkit._C import torch_version as _built_with

if torch.__version__.split(".")[:2] != _built_with.split(".")[:2]:
    raise ImportError(
        f"[headkit] expected torch {_built_with}, which this build of headkit was compiled with; "
        f"found torch {torch.__version__}. Reinstall headkit, or install that torch."
    )

from headkit import _C, nn
from headkit._C import (
    AttentionWeights,
    BackendChoice,
    GateSet,
    HeadId,
    HeadLayout,
    HeadMask,
    HeadScores,
    WorkList,
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
