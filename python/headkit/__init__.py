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
    ModelFolder,
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
    peak_flops,
    prune_top_fraction,
    pruners,
    read_model_folder,
    read_safetensors,
    reference_attention,
    removal_order,
    scorers,
    sentence_embedding,
    show_config,
    slice_heads,
    with_sentence_embedding,
    with_sentence_probe,
    write_safetensors,
)
from headkit.huggingface import attach, detach, gates, refresh
from headkit.pruning import apply, mean_head_outputs, prune
from headkit.saving import load, save
from headkit.scoring import score

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
    "ModelFolder",
    "ModelState",
    "Objective",
    "Taps",
    "WorkList",
    "__version__",
    "active_isa",
    "apply",
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
    "load",
    "make_objective",
    "make_work_list",
    "mean_head_outputs",
    "nn",
    "objective_names",
    "peak_flops",
    "prune",
    "prune_top_fraction",
    "pruners",
    "read_model_folder",
    "read_safetensors",
    "reference_attention",
    "refresh",
    "removal_order",
    "save",
    "score",
    "scorers",
    "sentence_embedding",
    "show_config",
    "slice_heads",
    "with_sentence_embedding",
    "with_sentence_probe",
    "write_safetensors",
]
