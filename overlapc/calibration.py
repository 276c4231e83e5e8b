"""Measure a process group's machines and links, and agree on the `Target` that describes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from overlapc.errors import GroupError, OptionError, OverlapcError, TargetError
from overlapc.planning.assumed import with_assumed
from overlapc.planning.fitting import with_group_cost
from overlapc.planning.problem import COLLECTIVES, ITEM_BYTES, PER_TENSOR, orders_of
from overlapc.planning.target import Source, Target, stored_path
from overlapc.planning.tiles import FP8
from overlapc.runtime.machine import l2_bytes_of
from overlapc.runtime.measuring.bench import Bench
from overlapc.runtime.measuring.contention import contention, pipeline
from overlapc.runtime.measuring.link_curves import measure_link, why_not_sent
from overlapc.runtime.ranks import patience

log = logging.getLogger(__name__)

Progress = Callable[[str, float], None]
"""Called with what is measured next, and the share of all that is done before it."""

GEMM_SHARE, LINK_SHARE, BESIDE_SHARE = 0.15, 0.45, 0.2
"""Shares of the time allowed; the rest is for pipelines of both. Chosen: links vary more than
cores."""

SHIPPED_FOR = {
    "H200": "h200-nvlink",
    "H100": "h100-nvlink",
    "A100": "a100-nvlink",
    "RTX 4090": "rtx4090-pcie",
    "MI300X": "mi300x",
}
"""Shipped targets by what the device's name contains."""

NOT_MEASURED = (
    *("signal_seconds", "communication_sms", "tile_seconds", "l2_bytes", "l2_bytes_per_second"),
)
"""Fields that plans of generated kernels need and nothing measures: they are taken from the GPU's
shipped target, or assumed."""


def calibrate(
    group: dist.ProcessGroup | None = None,
    *,
    collectives: Sequence[str] = COLLECTIVES,
    dtypes: Sequence[str] = (),
    seconds: float = 40.0,
    save: bool = True,
    progress: Progress | None = None,
) -> Target:
    """Measure the group's GEMMs, its collectives and what they do to each other.

    Every member calls it at the same time, with nothing else running, and gets the same target;
    where they ask for other things, it is of what rank 0 asks for. Takes about ``seconds``. With
    ``save`` each member stores it where `find_target` looks; use ``save=False`` for a link that is
    not the machine's usual one. Without some ``collectives`` the target cannot plan them; those
    that the backend lacks are left out, and logged. GEMMs of float32 are measured, on a GPU of
    bfloat16 too, which stands for float16, and of float8_e4m3fn, which stands for float8_e5m2, and
    of ``dtypes`` besides: the target cannot plan others. Those that no library computes on the
    device are left out, and logged. Raises, on every member, OptionError where rank 0 asks for a
    collective or a dtype that is none, and GroupError where the group is gone, or a member leaves
    or fails at anything: it names who and where, nothing is stored, and the group is of no use any
    more. Nothing outlasts the group's own timeout, which on a GPU is what ends it.
    """
    with group_errors():
        bench = Bench.of(group)
        tell = progress or (lambda stage, done: None)
        with patience.failures_told(bench.group, "calibrate"):
            measured = tuple(dict.fromkeys((*bench.dtypes(), *dtypes)))
            # Members that measure other things, or for longer, would wait for each other for ever.
            asked = bench.agree((tuple(dict.fromkeys(collectives)), measured, seconds))
        _check(*asked[:2])  # as one: an error of rank 0 alone would be waited for
        with patience.failures_told(bench.group, "calibrate"):
            target = _measured(bench, *asked, tell)
            if save:
                target.save(stored_path(target.name))
                bench.together()  # or who cannot store it would be alone with that
    return target


def _check(collectives: Sequence[str], dtypes: Sequence[str]) -> None:
    """Raise OptionError for what is not measured."""
    if strange := sorted(set(dtypes) - set(ITEM_BYTES)):
        raise OptionError(
            f"GEMMs of {strange[0]!r} are not measured.",
            where="calibrate(dtypes=...)",
            remedy=f"choose some of {', '.join(ITEM_BYTES)}",
        )
    unknown = sorted(set(collectives) - set(COLLECTIVES))
    if unknown or not collectives:
        raise OptionError(
            f"There is no collective {unknown[0]!r}." if unknown else "Nothing is to be measured.",
            where="calibrate(collectives=...)",
            remedy=f"choose some of {', '.join(COLLECTIVES)}",
        )


@contextmanager
def _stage(bench: Bench, tell: Progress, name: str, done: float) -> Iterator[None]:
    """A part of a calibration, by which an error names where a rank failed."""
    with patience.failures_told(bench.group, f"calibrate, at {name}"):
        tell(name, done)
        yield


def _measured(
    bench: Bench,
    collectives: Sequence[str],
    dtypes: Sequence[str],
    seconds: float,
    tell: Progress,
) -> Target:
    with _stage(bench, tell, "GEMM", 0.0):
        kinds = [(dtype, scales) for dtype in dtypes for scales in _scalings(dtype)]
        kinds = [kind for kind in kinds if _is_computed(bench, *kind)]
        share = seconds * GEMM_SHARE / len(kinds)
        gemm = tuple(bench.gemm(dtype, share, scales) for dtype, scales in kinds)
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
        target = _with_links(target, bench, collectives, seconds, tell)
    if bench.device.type == "cuda":
        name = torch.cuda.get_device_name(bench.device)
        target = with_shipped(target, name, l2_bytes_of(bench.device))
    target = bench.agree(target)
    tell("done", 1.0)
    return target


def with_shipped(target: Target, device: str, l2_bytes: int = 0) -> Target:
    """The target with what is not measured of a device of that name.

    It is of the target that is shipped for it, else assumed by its links and architecture.
    """
    name = _shipped_name(device)
    if not name:
        return with_assumed(target, l2_bytes)
    shipped = Target.load(name)
    source = Source(", ".join(NOT_MEASURED), f"not measured: as the shipped target {name} has it")
    taken = {field: getattr(shipped, field) for field in NOT_MEASURED}
    return replace(target, source=(*target.source, source), **taken)


def _shipped_name(device: str) -> str:
    """Name of the shipped target for a device of that name; empty where none is shipped."""
    return next((shipped for part, shipped in SHIPPED_FOR.items() if part in device), "")


def _with_links(
    target: Target, bench: Bench, collectives: Sequence[str], seconds: float, tell: Progress
) -> Target:
    links = []
    collectives = [collective for collective in collectives if _is_sent(bench, collective)]
    for index, collective in enumerate(collectives):
        done = GEMM_SHARE + LINK_SHARE * index / len(collectives)
        with _stage(bench, tell, _spoken(collective), done):
            links.append(measure_link(bench, collective, seconds * LINK_SHARE / len(collectives)))
    done = GEMM_SHARE + LINK_SHARE
    for index, link in enumerate(links):
        with _stage(bench, tell, f"GEMM beside {_spoken(link.collective)}", done):
            c, d = contention(bench, link, seconds * BESIDE_SHARE / len(links))
        links[index] = replace(link, compute_slowdown=c, link_slowdown=d)
        done += BESIDE_SHARE / len(links)
    target = replace(target, links=tuple(links))
    pipelines = [(link, order) for link in links for order in orders_of(link.collective)]
    share = (1 - done) / max(1, len(pipelines))
    for link, order in pipelines:
        with _stage(bench, tell, f"GEMM and {_spoken(link.collective)} in groups", done):
            target = with_group_cost(target, pipeline(bench, link, order, seconds * share))
        done += share
    return target


def _is_sent(bench: Bench, collective: str) -> bool:
    """Whether the backend has a collective; logged where it has not."""
    if said := why_not_sent(bench, collective):
        log.warning("%s is left out, for %s does not send it: %s", collective, bench.backend, said)
    return not said


def _scalings(dtype: str) -> tuple[str, ...]:
    """How GEMMs of a dtype are scaled: those of float8 by rows and columns, or by tensors."""
    return ("", PER_TENSOR) if dtype in FP8 else ("",)


def _is_computed(bench: Bench, dtype: str, scales: str) -> bool:
    """Whether all devices have a GEMM of a dtype; logged where one has not. All have float32's,
    however busy they are."""
    if dtype == "float32":
        return True
    if said := bench.why_no_gemm(dtype, scales):
        how = " with one scale a tensor" if scales else ""
        log.warning("GEMMs of %s%s are left out: %s", dtype, how, said)
    return not said


def _spoken(collective: str) -> str:
    return collective.replace("_", "-")


def target_name(device_type: str, backend: str, world_size: int) -> str:
    """The name under which `calibrate` stores a group's target."""
    return f"{device_type}-{backend}-{world_size}"


def find_target(device_type: str, backend: str, world_size: int) -> Target:
    """The target that `calibrate` stored for such a group, else the shipped one for the device.

    Raises TargetError where neither is there, or the stored one cannot be read.
    """
    stored = stored_path(target_name(device_type, backend, world_size))
    return Target.load(stored) if stored.exists() else shipped_target(device_type)


def shipped_target(device_type: str) -> Target:
    """The shipped target for this machine's device of a type; TargetError where there is none."""
    if device_type == "cpu":
        return Target.load("cpu")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else device_type
    if shipped := _shipped_name(device):
        return Target.load(shipped)
    raise TargetError(
        f"Nothing is known of the device {device!r}.",
        where=f"the stored targets of {stored_path('').parent} and the shipped ones",
        remedy="run overlapc calibrate on this group, or give a target by name or path",
    )


def stored_target(group: dist.ProcessGroup | None = None) -> Target | None:
    """The target that `calibrate` stored for the group on the machine of its rank 0, or None.

    Every member calls it at the same time. Raises GroupError as `calibrate` does and TargetError
    where the stored one cannot be read, either on every member.
    """
    with group_errors():
        bench = Bench.of(group)
        path = stored_path(target_name(bench.device.type, bench.backend, bench.world_size))
        return bench.by_first(lambda: Target.load(path) if path.exists() else None)


@contextmanager
def group_errors() -> Iterator[None]:
    """Turn what torch raises for a missing, destroyed or broken group into a GroupError."""
    try:
        yield
    except OverlapcError:
        raise
    except (RuntimeError, ValueError) as error:
        # torch raises these two for a missing, destroyed or broken group, with no class of its own.
        raise GroupError(
            f"The group cannot be measured: {error}",
            where="calibrate",
            remedy="call it on every member of a live group, after init_process_group",
        ) from error
