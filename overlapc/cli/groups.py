"""The process group that a model to be explained communicates on, where there is one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overlapc.errors import CommandError


def make_fake_group(world_size: int) -> None:
    """Make the default group, of which this is rank 0 and no other rank exists."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)


@contextmanager
def asking_for_a_group(name: str) -> Iterator[None]:
    """Raise CommandError where torch asks for a default group, and ``name`` has made none."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not _is_without_group(error):
            raise
        raise CommandError(
            f"It communicates, and there is no process group; torch says: {error}",
            where=name,
            remedy="give --world-size, or let the callable call init_process_group",
        ) from error


def _is_without_group(error: BaseException) -> bool:
    """Whether it was raised in torch's own code of groups, without a default one."""
    import torch.distributed as dist

    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    is_torchs = raised_in.startswith("torch.distributed.")
    return dist.is_available() and not dist.is_initialized() and is_torchs
