"""Commands that several processes run together, started by torchrun."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def joined_processes() -> Iterator[bool]:
    """Share the work inside with the other processes that torchrun started, if it did.

    Yields:
        bool: whether this process tells what was found; the others keep silent.

    Raises:
        RuntimeError: where the processes do not find one another.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    import torch.distributed as dist

    import headkit

    dist.init_process_group("gloo")
    try:
        with headkit.shared_work():
            yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
