"""Measure a process group's machines and links, and agree on the `Target` that describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from overlapc.errors import GroupError, TargetError
from overlapc.planning.fitting import with_group_cost
from overlapc.planning.target import Source, Target, stored_path
from overlapc.runtime.measuring import Bench

Progress = Callable[[str, float], None]
"""Called with what is measured next, and the share of all that is done before it."""

GEMM_SHARE, LINK_SHARE, BESIDE_SHARE = 0.25, 0.5, 0.15
"""Of the time allowed; the rest is for a pipeline of both. Chosen: links vary more than cores."""

SHIPPED_FOR = {
    "H200": "h200-nvlink",
    "H100": "h100-nvlink",
    "A100": "a100-nvlink",
    "RTX 4090": "rtx4090-pcie",
    "MI300X": "mi300x",
}
"""Shipped targets by what the device's name contains."""


def calibrate(
    group: dist.ProcessGroup | None = None,
    *,
    seconds: float = 20.0,
    save: bool = True,
    progress: Progress | None = None,
) -> Target:
    """Measure the group's GEMMs, its all-reduce and what they do to each other.

    Every member calls it at the same time, with nothing else running, and gets the same target.
    Takes about ``seconds``. With ``save`` each member stores it where `find_target` looks; use
    ``save=False`` for a link that is not the machine's usual one. Raises GroupError where the group
    is gone or a member leaves; nothing outlasts the group's own timeout.
    """
    with _group_errors():
        target = _measured(Bench.of(group), seconds, progress or (lambda stage, done: None))
    if save:
        target.save(stored_path(target.name))
    return target


def _measured(bench: Bench, seconds: float, tell: Progress) -> Target:
    tell("GEMM", 0.0)
    dtypes = bench.dtypes()
    gemm = tuple(bench.gemm(dtype, seconds * GEMM_SHARE / len(dtypes)) for dtype in dtypes)
    target = Target(
        name=target_name(bench.device.type, bench.backend, bench.world_size),
        device=bench.device.type,
        backend=bench.backend,
        is_measured=True,
        gemm=gemm,
        links=(),
        compute_slowdown=1.0,
        link_slowdown=1.0,
        architecture=bench.architecture(),
        source=(Source("all", bench.conditions()),),
    )
    if bench.world_size > 1:
        target = _with_link(target, bench, seconds, tell)
    target = bench.agree(target)
    tell("done", 1.0)
    return target


def _with_link(target: Target, bench: Bench, seconds: float, tell: Progress) -> Target:
    tell("all-reduce", GEMM_SHARE)
    link = bench.all_reduce(seconds * LINK_SHARE)
    tell("GEMM beside all-reduce", GEMM_SHARE + LINK_SHARE)
    c, d = bench.contention(link, seconds * BESIDE_SHARE)
    target = replace(target, links=(link,), compute_slowdown=c, link_slowdown=d)
    tell("GEMM and all-reduce in groups", GEMM_SHARE + LINK_SHARE + BESIDE_SHARE)
    pipeline = bench.pipeline(link, seconds * (1 - GEMM_SHARE - LINK_SHARE - BESIDE_SHARE))
    return with_group_cost(target, pipeline)


def target_name(device_type: str, backend: str, world_size: int) -> str:
    """The name under which `calibrate` stores a group's target."""
    return f"{device_type}-{backend}-{world_size}"


def find_target(device_type: str, backend: str, world_size: int) -> Target:
    """The target that `calibrate` stored for such a group, else the shipped one for the device.

    Raises TargetError where neither is there, or the stored one cannot be read.
    """
    name = target_name(device_type, backend, world_size)
    if stored_path(name).exists():
        return Target.load(stored_path(name))
    if device_type == "cpu":
        return Target.load("cpu")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else device_type
    for part, shipped in SHIPPED_FOR.items():
        if part in device:
            return Target.load(shipped)
    raise TargetError(
        f"Nothing is known of the device {device!r}.",
        where=f"stored target {stored_path(name)} and the shipped targets",
        remedy="run overlapc calibrate on this group, or give a target by name or path",
    )


@contextmanager
def _group_errors() -> Iterator[None]:
    try:
        yield
    except GroupError:
        raise
    except (RuntimeError, ValueError) as error:
        # torch raises these two for a missing, destroyed or broken group, with no class of its own.
        raise GroupError(
            f"The group cannot be measured: {error}",
            where="calibrate",
            remedy="call it on every member of a live group, after init_process_group",
        ) from error
