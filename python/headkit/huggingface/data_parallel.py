"""Replicas of torch.nn.DataParallel: each runs in a thread of its own, in which no gates are open.

They get the gates that are open where they are made, which is in the thread of the caller.
"""

from functools import partial

from torch import nn

from headkit.gating import Attachment, Gating, open_gating

REPLICATE = "_replicate_for_data_parallel"
# On a replica: the gates it was made under.
GATING = "headkit_replica_gating"


def hand_to_replicas(module: nn.Module, attachment: Attachment) -> None:
    """Give replicas of a module of an attached model the gates that are open when they are made."""
    setattr(module, REPLICATE, partial(_replicate, module, attachment))


def forget_replicas(module: nn.Module) -> None:
    """Undo ``hand_to_replicas``."""
    vars(module).pop(REPLICATE, None)


def gating_of(module: nn.Module, attachment: Attachment) -> Gating | None:
    """The gates under which a call of a module begins."""
    return vars(module).get(GATING) or open_gating(attachment)


def _replicate(module: nn.Module, attachment: Attachment) -> nn.Module:
    gating = open_gating(attachment)
    if gating is not None:
        _check(gating)
    replica = getattr(type(module), REPLICATE)(module)
    vars(replica)[GATING] = gating
    return replica


def _check(gating: Gating) -> None:
    if gating.state is not None:
        raise ValueError(
            "[gates] expected no state under DataParallel, whose replicas would write to it at "
            f"once; found {type(gating.state).__name__}"
        )
    if gating.by_sample():
        raise ValueError(
            "[gates] expected gates for all samples, or a policy, under DataParallel, which cuts "
            f"the batch; found gates by sample: {', '.join(gating.by_sample())}"
        )
