"""A check, made when attaching, that a block computes here what it computes in its own code."""

import copy
from inspect import Parameter, signature

import torch

from headkit.gating import Attachment
from headkit.huggingface.adapter import Adapter
from headkit.huggingface.attention_block import BLOCK, Block, Origin
from headkit.huggingface.shallow import without_hooks
from headkit.huggingface.structure import Site
from headkit.huggingface.swapping import original_class

TOKENS = 5
# The larger inputs make scores so large that a cap on them, or a temperature, would show.
SCALES = (1.0, 16.0)
TOLERANCE = 1e-3
# Of a block's forward: read from the call itself.
KNOWN_ARGUMENTS = {"output_attentions"}
OPEN = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def verify(site: Site, origin: Origin, cross: bool) -> None:
    """Run a copy of a block by its own code and by headkit's on random inputs, and compare.

    The model's state, hooks and random numbers are not touched. A block on the meta device cannot
    be run and is not checked.

    Args:
        site: the block; not attached.
        origin: its heads.
        cross: whether keys and values come from another sequence.

    Raises:
        ValueError: if the outputs differ, one of the two cannot run, or the block's own code takes
            an argument that headkit's does not.
    """
    adapter: Adapter = site.adapter
    _refuse_other_arguments(site)
    if adapter.weights(site.module).q.is_meta:
        return
    plain = copy.deepcopy(without_hooks(site.module)).float()
    for part in plain.modules():
        if hasattr(part, "config") and hasattr(part.config, "_attn_implementation"):
            part.config._attn_implementation = "eager"
    weights = adapter.weights(plain)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, TOKENS, weights.q.shape[1], generator=generator).to(weights.q.device)
    least = torch.finfo(noise.dtype).min
    mask = torch.full((1, 1, TOKENS, TOKENS), least, device=noise.device).triu(1)
    head_dim = adapter.head_dim(plain)
    try:
        with torch.no_grad(), torch.autocast(noise.device.type, enabled=False):
            calls = [adapter.example(plain, noise * scale, mask) for scale in SCALES]
            expected = [_output(plain(**call)) for call in calls]
            setattr(plain, BLOCK, Block(0, adapter, Attachment(1, 1), origin, head_dim, cross))
            adapter.attach(plain)
            found = [_output(plain(**call)) for call in calls]
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"[attach] expected {original_class(site.module).__name__} to run as "
            f"{' or '.join(adapter.NAMES)} do; found {type(error).__name__} at {site.path}: {error}"
        ) from error
    for ours, theirs in zip(found, expected, strict=True):
        error = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)
        if not error <= TOLERANCE:
            raise ValueError(
                f"[attach] expected {original_class(site.module).__name__} to compute what "
                f"{' or '.join(adapter.NAMES)} compute; found a relative difference of "
                f"{float(error):.1e} at {site.path}"
            )


def _refuse_other_arguments(site: Site) -> None:
    """An optional argument, such as positions, would be ignored without a sign."""
    mixin = next(mixin for part, mixin in site.adapter.swapped(site.module) if part is site.module)
    cls = original_class(site.module)
    known, theirs = (
        [name for name, one in signature(kind.forward).parameters.items() if one.kind not in OPEN]
        for kind in (mixin, cls)
    )
    other = [name for name in theirs if name not in known and name not in KNOWN_ARGUMENTS]
    shared = [name for name in theirs if name in known]
    if other or shared != [name for name in known if name in theirs]:
        raise ValueError(
            f"[attach] expected {cls.__name__} to be called as "
            f"{' or '.join(site.adapter.NAMES)}, with {', '.join(known[1:])}; found "
            f"{', '.join(other or theirs[1:])} at {site.path}"
        )


def _output(returned) -> torch.Tensor:
    return returned[0] if isinstance(returned, tuple) else returned
