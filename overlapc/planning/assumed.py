"""What plans of generated kernels need of a GPU that no shipped target describes: assumed."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from overlapc.planning.rates import Link
from overlapc.planning.target import Source, Target, shipped_names
from overlapc.planning.tiles import CDNA, sm_number

FEWEST_SMS = 2
"""Multiprocessors left to a collective over the slowest link (published for a PCIe machine, by a
maintainer in NVIDIA/nccl#689)."""

SM_BYTES_PER_SECOND = 13e9
"""What one multiprocessor of a collective sends: the 210 GB/s and the 16 multiprocessors of the
shipped A100 (16 GB/s take the two of a PCIe machine by it)."""


def with_assumed(target: Target, l2_bytes: int = 0) -> Target:
    """The measured target of a GPU with what its relative has, the shipped one of its architecture.

    Where there is none, it is the newest that is older. The collective gets as many multiprocessors
    as the measured link takes, at most the relative's. ``l2_bytes`` are the device's own, 0 where
    nobody says. Unchanged where there is no relative.
    """
    relative = _relative(target.architecture)
    if relative is None:
        return target
    link_rate = max(map(_sent_per_second, target.links), default=0.0)
    sms = max(FEWEST_SMS, min(relative.communication_sms, ceil(link_rate / SM_BYTES_PER_SECOND)))
    size = target.gemm[0].resident / relative.gemm[0].resident
    rate = relative.l2_bytes_per_second
    return replace(
        target,
        communication_sms=sms,
        signal_seconds=relative.signal_seconds,
        tile_seconds=relative.tile_seconds,
        l2_bytes=l2_bytes or relative.l2_bytes,
        l2_bytes_per_second=rate and rate * size,
        source=(*target.source, *_sources(relative.name, sms, bool(l2_bytes))),
    )


def _sources(relative: str, sms: int, knows_l2: bool) -> tuple[Source, ...]:
    like = "assumed: as the shipped target {}, of the nearest architecture, has {}"
    return (
        Source(
            "communication_sms",
            f"assumed: {sms}, one for each {SM_BYTES_PER_SECOND / 1e9:.0f} GB/s of the measured "
            f"link, from {FEWEST_SMS} to what {relative} leaves",
        ),
        Source("signal_seconds, tile_seconds", like.format(relative, "them")),
        Source("l2_bytes", "as the device says" if knows_l2 else like.format(relative, "it")),
        Source("l2_bytes_per_second", like.format(relative, "it for each multiprocessor")),
    )


def _sent_per_second(link: Link) -> float:
    """Bytes that one rank sends a second in the largest call of a train that was measured."""
    size, seconds = link.queued.points[-1]
    passes = 2 if link.collective == "all_reduce" else 1
    return passes * size * (link.world_size - 1) / link.world_size / seconds


def _relative(architecture: str) -> Target | None:
    shipped = [Target.load(name) for name in shipped_names()]
    if architecture in CDNA:
        return next((its for its in shipped if its.architecture in CDNA), None)
    number = sm_number(architecture)
    older = [its for its in shipped if 0 < sm_number(its.architecture) <= number]
    return max(older, key=lambda its: sm_number(its.architecture), default=None)
