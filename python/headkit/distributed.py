"""Work that several processes share, and journals from which it goes on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from headkit import _C


@contextmanager
def shared_work(group: Any = None) -> Iterator[None]:
    """Share walks over data with the other processes of a group of torch.distributed.

    Inside, every process must make the same calls with the same data, batch by batch. Each measures
    its part of the batches, on one machine or several, and all of them get the same result, that
    of one process alone. Shared: every metric of ``score``, ``trace_policy``, ``calibrate``, mean
    outputs and activations, linear probes, ``input_importance``; everything else, training too, is
    done by each process for itself. Where data or calls differ, a process fails or is lost, all of
    them raise.

    Args:
        group: a process group; None = all processes.

    Raises:
        RuntimeError: without torch.distributed.init_process_group() beforehand; later in a call,
            where another process failed or is lost.
        ValueError: inside another ``shared_work``; later in a call, where processes were given
            different data.

    Example:
        >>> import tempfile, torch.distributed as dist
        >>> where = "file://" + tempfile.mktemp()  # with torchrun: no arguments at all
        >>> dist.init_process_group("gloo", init_method=where, rank=0, world_size=1)
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
        >>> with headkit.shared_work():
        ...     scores = headkit.score(model, [batch])
        >>> dist.destroy_process_group()
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "[distributed] expected torch.distributed.init_process_group() beforehand (torchrun "
            "starts the processes); found no process group"
        )
    group = dist.group.WORLD if group is None else group
    device = torch.device("cpu")
    if dist.get_backend(group) == "nccl":
        device = torch.device("cuda", torch.cuda.current_device())
    open_sharing = _C.SharedWalks(group.group_name, device)
    try:
        yield
    finally:
        open_sharing.close()


@contextmanager
def journal_of(path: str | os.PathLike[str] | None, identity: Callable[[], str]) -> Iterator[None]:
    """Keep what is measured inside in a journal; under ``shared_work`` that of rank 0 alone.

    Args:
        path: of the journal; None = keep nothing.
        identity: says which job it is: model, metric, settings.

    Raises:
        ValueError: for a file that is no journal, or one of another job.
        RuntimeError: where it cannot be read or written, or another process has it.
    """
    if path is None or not _is_first():
        yield
        return
    open_journal = _C.JournaledWalks(os.fspath(path), identity())
    try:
        yield
    finally:
        open_journal.close()


def _is_first() -> bool:
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
