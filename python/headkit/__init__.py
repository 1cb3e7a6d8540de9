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

from headkit import assets, nn
from headkit._C import (
    AttentionWeights,
    BackendChoice,
    DataSource,
    GatedModel,
    GateSet,
    HeadId,
    HeadLayout,
    HeadMask,
    HeadScores,
    ModelState,
    Objective,
    Taps,
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
    make_objective,
    make_work_list,
    objective_names,
    reference_attention,
    sentence_embedding,
    show_config,
    with_sentence_embedding,
    with_sentence_probe,
)
from headkit.huggingface import attach, detach, gates, refresh

# For find_package(headkit) against an installed wheel: a CMAKE_PREFIX_PATH.
cmake_prefix_path = _os.path.dirname(_C.__file__)

__all__ = [
    "AttentionWeights",
    "BackendChoice",
    "DataSource",
    "GateSet",
    "GatedModel",
    "HeadId",
    "HeadLayout",
    "HeadMask",
    "HeadScores",
    "ModelState",
    "Objective",
    "Taps",
    "WorkList",
    "__version__",
    "active_isa",
    "assets",
    "attach",
    "attention_backend",
    "attention_flops",
    "available_backends",
    "available_isas",
    "cmake_prefix_path",
    "detach",
    "encoder_flops",
    "feed_forward_flops",
    "gated_attention",
    "gates",
    "head_contexts",
    "make_objective",
    "make_work_list",
    "nn",
    "objective_names",
    "reference_attention",
    "refresh",
    "sentence_embedding",
    "show_config",
    "with_sentence_embedding",
    "with_sentence_probe",
]
