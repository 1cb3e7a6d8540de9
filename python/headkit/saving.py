"""Save a pruned model as a folder, and bring it back bit for bit."""

import json
import os
from typing import TYPE_CHECKING, Any

import torch

from headkit import _C
from headkit.scoring import gated_model

if TYPE_CHECKING:
    from headkit.huggingface.staged_model import StagedModel


def save(
    model: torch.nn.Module | _C.GatedModel,
    folder: str | os.PathLike,
    *,
    policy: Any = None,
    gates: _C.GateSet | None = None,
) -> None:
    """Write a model to a self-contained folder, whole or not at all.

    The folder holds ``config.json``, ``weights-<sha256>.safetensors`` and, written last,
    ``headkit.json`` with everything else: the identity of the original model, which heads, neurons
    and blocks are left (original indices), gates, policy, versions. A full disk or a kill leaves
    what was there before.

    Args:
        model: an attached model, or what ``attach`` returned.
        folder: made if missing; its parent must exist. An older model in it is replaced.
        policy: a gate policy (anything with ``to_json``), or its JSON text or dictionary.
        gates: static gates or dropped outputs that belong to the model.

    Raises:
        ValueError: if the model is not attached or the content contradicts itself.
        RuntimeError: where the disk refuses; the older model is intact.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> headkit.save(model, "pruned")
        >>> headkit.load("pruned").config.num_hidden_layers
        2
    """
    gated = gated_model(model, "save")
    content = _C.describe_encoder(gated) if isinstance(gated, _C.Encoder) else _describe(gated)
    if policy is not None:
        content.policy = _as_json(policy)
    if gates is not None:
        content.gates = gates
    _C.write_model_folder(os.fspath(folder), content)


def load(
    folder: str | os.PathLike, model: "torch.nn.Module | StagedModel | None" = None
) -> torch.nn.Module:
    """Bring back what ``save`` wrote; outputs are those of the saved model, bit for bit.

    Args:
        folder: what ``save`` wrote. Its gates and policy: ``headkit.read_model_folder``.
        model: the original, unpruned model, attached or not, changed in place; None builds one from
            the folder.

    Returns:
        The model, attached; in evaluation mode if it was built here.

    Raises:
        RuntimeError: if the folder is truncated, changed, or of a newer headkit.
        ValueError: if ``model`` is not the original of the saved one; it is left as it was.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config).eval()
        >>> gated = headkit.attach(model)
        >>> headkit.save(model, "pruned")
        >>> again = headkit.load("pruned")
        >>> x = torch.tensor([[1, 2, 3]])
        >>> torch.equal(again(x).last_hidden_state, model(x).last_hidden_state)
        True
    """
    from headkit import huggingface
    from headkit.huggingface.staged_model import StagedModel

    content = _C.read_model_folder(os.fspath(folder))
    feed_forward = bool(json.loads(content.details or "{}").get("feed_forward"))
    if model is None:
        built = _build(content)
        gated = huggingface.attach(built, feed_forward=feed_forward)
        _adopt_dtypes(gated, content)
        _C.restore_model(gated, content, check_base=False)
        remember_base(gated, content)
        return built.eval()

    if isinstance(model, StagedModel):
        model = model.model
    was_attached = huggingface.is_attached(model)
    gated = huggingface.attach(model, feed_forward=feed_forward)
    try:
        _C.restore_model(gated, content)
    except BaseException:
        if not was_attached:
            huggingface.detach(model)
        raise
    remember_base(gated, content)
    return model


def load_policy(
    folder: str | os.PathLike, model: torch.nn.Module | _C.GatedModel | None = None
) -> _C.GatePolicy:
    """The policy that was saved with a model.

    Args:
        folder: what ``save`` wrote.
        model: what ``load`` gave; where given, the calibration of the policy must be of it.

    Raises:
        ValueError: if the folder has no policy, or its calibration is of another model.
        RuntimeError: if the folder is truncated, changed, or of a newer headkit.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> gated = headkit.attach(transformers.BertModel(config).eval())
        >>> headkit.save(gated, "gated", policy=headkit.MaskPolicy(headkit.HeadMask.all(2, 4)))
        >>> headkit.load_policy("gated").name
        'mask'
    """
    text = _C.read_model_folder(os.fspath(folder)).policy
    if not text:
        raise ValueError(f"[load_policy] expected a folder with a policy; found none in {folder}")
    policy = _C.policy_from_json(text)
    if model is not None:
        policy.check_model(gated_model(model, "load_policy"))
    return policy


def base_fingerprint(gated: _C.GatedModel) -> str:
    """Fingerprint of the model before anything was removed; "" if nothing was.

    Raises:
        ValueError: if something is gone and the model was not told what it came from.
    """
    from headkit.huggingface.weight_replacement import BASE

    if gated.is_whole():
        return ""
    known = getattr(getattr(gated, "model", None), BASE, None)
    if known is None:
        raise ValueError(
            "[save] expected a model that was pruned by headkit.apply; found one that "
            "does not know its original: save the object that was pruned"
        )
    return known


def remember_base(gated: "StagedModel", content: _C.ModelFolder) -> None:
    """Note on a loaded model which original it came from."""
    from headkit.huggingface.weight_replacement import BASE

    setattr(gated.model, BASE, content.base_fingerprint)


def _describe(gated: _C.GatedModel) -> _C.ModelFolder:
    from headkit import huggingface

    content = _C.describe_model(gated, base_fingerprint(gated))
    details: dict[str, Any] = {}
    module = getattr(gated, "model", None)
    if module is not None:
        details["model_class"] = type(module).__name__
        details["feed_forward"] = huggingface.has_feed_forward(module)
        if hasattr(module, "config"):
            content.config = json.dumps(module.config.to_dict())
    content.details = json.dumps(details)
    return content


def _as_json(policy: Any) -> str:
    if isinstance(policy, str):
        return policy
    if hasattr(policy, "to_json"):
        return policy.to_json()
    return json.dumps(policy)


def _build(content: _C.ModelFolder) -> torch.nn.Module:
    name = json.loads(content.details or "{}").get("model_class")
    if not content.config or not isinstance(name, str):
        raise ValueError(
            "[load] expected a folder that names its transformers class; found none: give the "
            "original model"
        )
    import transformers

    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(
            f"[load] expected a model class of transformers {transformers.__version__}; found "
            f"{name!r}: give the original model"
        )
    configuration = kind.config_class
    if configuration is None:
        raise ValueError(
            f"[load] expected a class with a configuration; found {name}: give the original model"
        )
    config = configuration.from_dict(json.loads(content.config))
    # Weights drawn here are overwritten; the caller's random numbers are not touched.
    with torch.random.fork_rng(devices=[]):
        return kind(config)


def _adopt_dtypes(gated: _C.GatedModel, content: _C.ModelFolder) -> None:
    saved = content.weights
    for name, tensor in gated.parameters():
        if name in saved and tensor.dtype != saved[name].dtype:
            tensor.data = tensor.data.to(saved[name].dtype)
