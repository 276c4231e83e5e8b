"""Calibration over real gloo ranks: who asks, what is left out, stored and found, and errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from overlapc import calibration
from overlapc.calibration import calibrate, find_target, stored_target, target_name
from overlapc.errors import GroupError, OptionError, TargetError
from overlapc.planning.assumed import with_assumed
from overlapc.planning.problem import COLLECTIVES, Problem
from overlapc.planning.search import plan, plan_gemm
from overlapc.planning.target import Target, stored_path
from overlapc.runtime.measuring import bench as measuring
from overlapc.runtime.measuring import contention, link_curves
from overlapc.runtime.measuring.bench import Bench
from overlapc.runtime.ranks.sending import Sender
from tests.planning.machines import random_target
from tests.ranks import Ranks
from tests.targets import SLOW_LINK


@pytest.fixture(scope="module")
def pair() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@contextmanager
def few_and_small() -> Iterator[None]:
    """What is measured is asked here, not how long it takes."""
    sizes = {
        measuring: {"GEMM_ROWS": (16, 32, 64), "GEMM_WIDTHS": measuring.GEMM_WIDTHS[:4],
                    "POINTWISE_BYTES": 1 << 20, "STAND_IN_SECONDS": 0.2},
        link_curves: {"ENOUGH_BYTES": 1 << 14, "TRAIN": 3},
        contention: {"TRAIN": 3, "PIPELINED": 4},
    }  # fmt: skip
    shared = {"GEMM_BESIDE": (16, 128, 128), "REST_SECONDS": 1e-3}
    with ExitStack() as stack:
        for module, own in sizes.items():
            also = {name: value for name, value in shared.items() if hasattr(module, name)}
            stack.enter_context(mock.patch.multiple(module, **own, **also))
        yield


def new_group(*members: int) -> Any:
    """A group whose calls give up soon."""
    return dist.new_group(list(members), timeout=timedelta(seconds=20))


def test_it_is_stored_where_it_is_looked_for(pair: Ranks) -> None:
    found = pair.run(stored_and_found)
    assert found[0][0] == found[0][1] == found[1][1]


def stored_and_found(rank: int) -> tuple[str, str]:
    """Rank 1 asks for more, and for longer: what rank 0 asks for counts, or they would hang."""
    collectives, dtypes, seconds = [
        (["all_reduce"], [], 0.5),
        (["all_gather", "all_reduce"], ["float64"], 60.0),
    ][rank]
    with few_and_small():
        target = calibrate(collectives=collectives, dtypes=dtypes, seconds=seconds)
    assert [link.collective for link in target.links] == ["all_reduce"]
    assert [rates.dtype for rates in target.gemm] == ["float32"]
    dist.barrier()
    return target.fingerprint, find_target("cpu", "gloo", 2).fingerprint


def in_a_group_of_one(rank: int) -> tuple[int, str]:
    groups = [new_group(member) for member in range(2)]
    with few_and_small():
        target = calibrate(groups[rank], seconds=0.5, save=False)
    problem = {"m": 64, "n": 64, "k": 64, "dtype": "float32", "world_size": 1}
    return len(target.links), plan_gemm(**problem, target=target).code


def test_a_group_of_one_has_no_link(pair: Ranks) -> None:
    assert pair.run(in_a_group_of_one) == [(0, "serial_one_rank")] * 2


def calibrated_without(rank: int, lacking: str) -> tuple[Target, Target | None, list[str]]:
    """Calibrate where the backend has no such collective; the target, as stored, and the log."""
    start, lines = Sender.start, []

    def refusing(self: Sender, *args: Any) -> Any:
        if self.collective in lacking.split():
            raise RuntimeError(f"Backend gloo does not support {self.collective}")
        return start(self, *args)

    logging.getLogger("overlapc.calibration").addFilter(lambda r: lines.append(r.getMessage()))
    try:
        Sender.start = refusing
        with few_and_small():
            target = calibrate(new_group(0, 1), seconds=0.4)
    finally:
        Sender.start = start
        logging.getLogger("overlapc.calibration").filters.clear()
    dist.barrier()
    return target, stored_target(), lines


@pytest.mark.parametrize("lacking", ["reduce_scatter", " ".join(COLLECTIVES)])
def test_a_collective_that_the_backend_lacks_is_left_out(pair: Ranks, lacking: str) -> None:
    kept = [collective for collective in COLLECTIVES if collective not in lacking]
    for target, stored, lines in pair.run(calibrated_without, lacking):
        assert stored == target
        assert [link.collective for link in target.links] == kept
        assert [line.split()[0] for line in lines] == lacking.split()
        assert all("does not support" in line for line in lines)
        sizes = {"m": 512, "n": 512, "k": 512, "world_size": 2, "dtype": "float32"}
        with pytest.raises(TargetError, match="no measured curve for reduce_scatter"):
            plan_gemm(**sizes, collective="reduce_scatter", target=target)


def error_of_a_destroyed_group(rank: int) -> str:
    group = new_group(0, 1)
    dist.barrier()  # a rank that is still connecting would fail if the other left already
    dist.destroy_process_group(group)
    return _error(group)


def error_of_a_foreign_group(rank: int) -> str:
    group = new_group(0)
    return _error(group) if rank == 1 else ""


def _error(group: Any, seconds: float = 0.5) -> str:
    try:
        calibrate(group, seconds=seconds, save=False)
    except GroupError as error:
        return str(error)
    return ""


def test_a_destroyed_group_is_an_error_on_every_rank(pair: Ranks) -> None:
    for text in pair.run(error_of_a_destroyed_group):
        assert "cannot be measured" in text
        assert "Remedy" in text


def test_a_group_of_others_is_an_error(pair: Ranks) -> None:
    assert "cannot be measured" in pair.run(error_of_a_foreign_group)[1]


def refused(rank: int, asked: dict[str, tuple[str, ...]]) -> tuple[str, str]:
    """What is raised where rank 0 asks for this, and where rank 1 does."""
    said = ["", ""]
    with mock.patch.object(calibration, "_measured", return_value=SLOW_LINK):
        for asking in range(2):
            its: Any = asked if rank == asking else {}
            try:
                calibrate(save=False, **its)
            except OptionError as error:
                said[asking] = str(error)
    return said[0], said[1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"collectives": ()}, "Nothing is to be measured, all_reduce"),
        ({"collectives": ("all_reduce", "gossip")}, "'gossip', all_reduce"),
        ({"dtypes": ("int8",)}, "'int8', float64, float8_e4m3fn"),
    ],
)
def test_what_cannot_be_measured_is_an_error_on_every_rank(
    pair: Ranks, asked: dict[str, tuple[str, ...]], words: str
) -> None:
    """Where rank 0 asks for it, whose wishes count. Mutant: each rank looks at its own, so that
    the others wait."""
    for first, second in pair.run(refused, asked, timeout=60):
        assert all(word in first for word in words.split(", "))
        assert "Remedy: choose some of" in first
        assert not second


def calibrated_for(rank: int, *dtypes: str) -> tuple[Target, list[str]]:
    """Calibrate where rank 1 has no float64 and but a loop for float8; the target, and the log."""
    mm, lines = Bench.mm, []

    def refusing(self: Bench, rows: int, n: int, k: int, dtype: str, scales: str = "") -> Any:
        if rank and dtype == "float64":
            raise RuntimeError("no float64 here")
        if rank and dtype == "float8_e5m2":
            return lambda: time.sleep(measuring.STAND_IN_SECONDS + 0.01)
        return mm(self, rows, n, k, dtype, scales)

    logging.getLogger("overlapc.calibration").addFilter(lambda r: lines.append(r.getMessage()))
    try:
        with few_and_small(), mock.patch.object(Bench, "mm", refusing):
            target = calibrate(collectives=["all_reduce"], dtypes=dtypes, seconds=0.5, save=False)
    finally:
        logging.getLogger("overlapc.calibration").filters.clear()
    return target, lines


def test_gemms_of_the_dtypes_that_are_asked_for_are_measured(pair: Ranks) -> None:
    """But for those that a member's device has not. Mutants: members that do not tell each other,
    which would hang, and no look at the time, which would take minutes."""
    found = pair.run(calibrated_for, "float64", "bfloat16", "float8_e5m2", timeout=60)
    for target, lines in found:
        assert [rates.dtype for rates in target.gemm] == ["float32", "bfloat16"]
        assert [line.split()[2] for line in lines] == ["float64", "float8_e5m2", "float8_e5m2"]
        assert "one scale a tensor" in lines[2]
        why = ("no float64", "0.2 s", "0.2 s")
        assert all(
            f"rank 1: {said}" in line or said in line for said, line in zip(why, lines, strict=True)
        )
        assert all(rates.flops_per_second > 1e6 for rates in target.gemm)
        made = plan(Problem(512, 256, 256, "float16", "all_reduce", 2), target)
        assert made.serial_seconds > 0


class Seen(TorchDispatchMode):
    """The scales that a GEMM is given."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.scales = args[2:4]
        return func(*args, **(kwargs or {}))


def calibrated_for_float8(rank: int) -> Target:
    """On small GEMMs, or a processor without a library for them would take minutes."""
    bench = Bench.of(dist.group.WORLD)
    shapes = {"GEMM_ROWS": (16, 32), "GEMM_WIDTHS": tuple((n, 64) for n in range(32, 224, 32))}
    with mock.patch.multiple(measuring, **shapes):
        kinds = ("float8_e4m3fn", ""), ("float8_e5m2", ""), ("float8_e4m3fn", "tensor")
        rates = [bench.gemm(dtype, 0.1, scales) for dtype, scales in kinds]
        assert [(each.dtype, each.scales) for each in rates] == list(kinds)
    # What is computed, by what is computed in float64 of the same operands.
    scaled = []
    for scales in ("", "tensor"):
        torch.manual_seed(rank)
        call = bench.mm(16, 32, 64, "float8_e5m2", scales)
        with Seen() as seen:
            found = call()
        scaled.append([tuple(t.shape) for t in seen.scales])
        torch.manual_seed(rank)
        left, right = torch.randn(16, 64), torch.randn(32, 64)
        wanted = left.to(torch.float8_e5m2).double() @ right.to(torch.float8_e4m3fn).double().t()
        assert found.dtype == torch.bfloat16
        assert ((found.double() - wanted).norm() / wanted.norm()).item() < 1e-2
    assert scaled == [[(16, 1), (1, 32)], [(), ()]]
    return replace(SLOW_LINK, gemm=tuple(rates))


def test_gemms_of_float8_are_measured_with_scales(pair: Ranks) -> None:
    """And plans of chains of float8 are made of their rates. Mutants: `torch.mm` of all dtypes,
    and pointwise work of float8, both of which torch refuses; one way to scale alone."""
    for target in pair.run(calibrated_for_float8, timeout=60):
        for rates in target.gemm:
            its = Problem(
                512,
                256,
                256,
                rates.dtype,
                "all_reduce",
                2,
                sent_dtype="bfloat16",
                scales=rates.scales,
            )
            slower = replace(rates, flops_per_second=rates.flops_per_second / 2)
            made, other = (
                plan(its, replace(target, gemm=(each,)), "serial") for each in (rates, slower)
            )
            assert made.predicted_seconds < other.predicted_seconds


def test_without_a_group_there_is_nothing_to_measure() -> None:
    assert not dist.is_initialized()
    with pytest.raises(GroupError, match=r"no default process group.*init_process_group"):
        calibrate(seconds=0.1)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.usefixtures("empty_cache")
def test_the_shipped_target_stands_in_until_one_is_stored() -> None:
    shipped = find_target("cpu", "gloo", 4)
    assert shipped == Target.load("cpu")
    mine = replace(shipped, name=target_name("cpu", "gloo", 4), is_measured=True)
    mine.save(stored_path(mine.name))
    assert find_target("cpu", "gloo", 4) == mine
    assert find_target("cpu", "gloo", 2) == shipped
    stored_path(mine.name).write_text("{")
    with pytest.raises(TargetError, match=r"cpu-gloo-4\.json"):
        find_target("cpu", "gloo", 4)


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "h200-nvlink"),
        ("NVIDIA H100 80GB HBM3", "h100-nvlink"),
        ("NVIDIA A100-SXM4-80GB", "a100-nvlink"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-pcie"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_gpu_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, device: str, name: str
) -> None:
    monkeypatch.setattr(calibration.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(calibration.torch.cuda, "get_device_name", lambda: device)
    assert find_target("cuda", "nccl", 8).name == name


def test_what_is_not_measured_of_a_gpu_is_its_shipped_target_s() -> None:
    """Without multiprocessors for the collective no kernel would be planned there."""
    measured, shipped = random_target(Random(4), device="cuda"), Target.load("h100-nvlink")
    target = calibration.with_shipped(measured, "NVIDIA H100 80GB HBM3")
    assert target.communication_sms == shipped.communication_sms == 16
    assert target.l2_bytes_per_second == shipped.l2_bytes_per_second
    assert (target.gemm, target.links) == (measured.gemm, measured.links)
    assert "h100-nvlink" in target.source[-1].origin
    assert calibration.with_shipped(measured, "Abacus 1") == measured
    known = replace(measured, architecture="sm_90")
    assert calibration.with_shipped(known, "Abacus 1", 123) == with_assumed(known, 123) != known


@pytest.mark.usefixtures("empty_cache")
def test_an_unknown_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(calibration.torch.cuda, "get_device_name", lambda: "Abacus 1")
    with pytest.raises(TargetError, match=r"Abacus 1.*calibrate"):
        find_target("cuda", "nccl", 8)
