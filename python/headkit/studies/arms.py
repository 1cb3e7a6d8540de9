"""Which heads an arm of the top-k experiment removes: one allocation rule for all arms."""

from collections.abc import Mapping, Sequence

import torch

from headkit import _C

ALLOCATIONS = ("global", "layer")


def removed_by(
    order: _C.HeadScores, heads_per_layer: int, arm: str, allocation: str
) -> _C.HeadMask:
    """What is left when an arm removes ``heads_per_layer * layers`` heads.

    Args:
        order: scores; for the random arm those of ``metric="random"``.
        heads_per_layer: K.
        arm: ``"top"`` removes the most important heads, ``"bottom"`` the least important ones,
            ``"random"`` those with the least random scores.
        allocation: ``"global"``: K * layers heads wherever they are; ``"layer"``: K in every layer.

    Raises:
        ValueError: for an unknown arm or allocation, a K outside 0 to the heads of a layer, and a
            random arm that is given scores of something else.

    Example:
        >>> scores = headkit.HeadScores(torch.tensor([[3.0, 1.0], [2.0, 0.0]]))
        >>> removed_by(scores, 1, "top", "global").keep.tolist()
        [[False, True], [False, True]]
    """
    heads = order.values.shape[1]
    if arm not in ("top", "bottom", "random"):
        raise ValueError(f"[topk] expected an arm of top, bottom, random; found {arm!r}")
    if allocation not in ALLOCATIONS:
        raise ValueError(f"[topk] expected an allocation of global, layer; found {allocation!r}")
    if not 0 <= heads_per_layer <= heads:
        raise ValueError(
            f"[topk] expected K from 0 to {heads}, the heads of a layer; found {heads_per_layer}"
        )
    if (arm == "random") != (order.metric == "random"):
        raise ValueError(
            f"[topk] expected random scores in the random arm only; found {order.metric!r} in {arm}"
        )
    values = -order.values if arm == "top" else order.values
    keep = 1 - heads_per_layer / heads
    return _C.prune_top_fraction(
        _C.HeadScores(values), keep, per_layer=allocation == "layer", rounding="nearest"
    )


def check_arms(masks: Mapping[str, _C.HeadMask], steps: Mapping[str, int], allocation: str) -> None:
    """Refuse arms that cannot be compared.

    Args:
        masks: by arm that removes heads, what is left.
        steps: by arm, the dense one too, optimiser steps that it was given in all.
        allocation: the rule of all arms.

    Raises:
        ValueError: if two arms remove other numbers of heads, if with ``"layer"`` a layer of one
            lost more than that of another, or if the arms were trained for other numbers of steps.
    """
    kept = {arm: mask.count for arm, mask in masks.items()}
    if len(set(kept.values())) > 1:
        raise ValueError(f"[topk] expected the same number of heads in all arms; found {kept}")
    by_layer = {arm: tuple(mask.keep.sum(1).tolist()) for arm, mask in masks.items()}
    if allocation == "layer" and len(set(by_layer.values())) > 1:
        raise ValueError(
            f"[topk] expected the same number of heads in each layer of all arms; found {by_layer}"
        )
    if "dense" not in steps:
        raise ValueError(f"[topk] expected a dense arm; found {', '.join(steps) or 'none'}")
    if len(set(steps.values())) > 1:
        raise ValueError(f"[topk] expected the same number of steps in all arms; found {steps}")


def check_fine_tuned(accuracy: float, majority: float, examples: int) -> None:
    """Refuse to score a model that has not learnt its task: its gradients are those of noise.

    Args:
        accuracy: on the validation part.
        majority: share of its most frequent label.
        examples: in it.

    Raises:
        ValueError: unless the accuracy is above the majority by more than its 95 % half width.
    """
    width = _C.binomial_half_width(accuracy, examples)
    if accuracy - width <= majority:
        raise ValueError(
            "[topk] expected a fine-tuned model, as heads are scored after fine-tuning; found a "
            f"validation accuracy of {accuracy:.3f} +- {width:.3f} where the most frequent label "
            f"has {majority:.3f}"
        )


def single_heads(best: Sequence[int], heads: int) -> _C.HeadMask:
    """One head in every layer.

    Example:
        >>> single_heads([1, 0], 3).keep.tolist()
        [[False, True, False], [True, False, False]]
    """
    keep = torch.zeros(len(best), heads, dtype=torch.bool)
    for layer, head in enumerate(best):
        keep[layer, head] = True
    return _C.HeadMask(keep)
