from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from overlapc.errors import ProblemError, TargetError
from overlapc.planning import search
from overlapc.planning.problem import COLLECTIVES, Problem
from overlapc.planning.rates import GemmRates
from overlapc.planning.records import to_value
from overlapc.planning.target import FORMAT, Target, shipped_names, stored_path
from overlapc.planning.tiles import Tile
from overlapc.planning.tuned import TRIALS, TunedPlan
from tests.planning.machines import random_target

PROBLEM = Problem(4096, 4096, 4096, "bfloat16", "all_reduce", 8)
PROBLEM_VALUE, VAGUE_VALUE = to_value(PROBLEM.resolved()), to_value(PROBLEM)
TILED = {
    "problem": PROBLEM_VALUE,
    "rows": [4096 - 128, 128],
    "seconds": 1.0,
    "tile": to_value(Tile(128, 256, 64, 8, 4)),
}
"""A tuned plan of a generated kernel."""
EXPECTED = {"h200-nvlink", "h100-nvlink", "a100-nvlink", "rtx4090-pcie", "mi300x", "cpu"}


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "machine.json"
    random_target(Random(5)).save(path)
    return path, json.loads(path.read_text())


def test_targets_are_shipped() -> None:
    assert set(shipped_names()) >= EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_shipped_target_plans_and_says_where_its_numbers_come_from(name: str) -> None:
    target = Target.load(name)
    assert target.name == name
    about = " ".join(source.about for source in target.source)
    assert all(source.origin for source in target.source)
    for numbers in ("gemm.flops_per_second", "links.alone", "compute_slowdown"):
        assert numbers in about
    for numbers in ("l2_bytes", "l2_bytes_per_second", "tile_seconds", "gemm.generated_share"):
        assert (numbers in about) == (target.device == "cuda")
    for dtype in ("float32",) if target.device == "cpu" else ("float32", "float16", "bfloat16"):
        for collective in COLLECTIVES:
            plan = search.plan(replace(PROBLEM, dtype=dtype, collective=collective), target)
            assert plan.predicted_seconds <= plan.serial_seconds


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    random = Random(0)
    for index in range(20):
        tile = random.choice([None, Tile(32, 64, 64, 8, 4)])
        tuned = TunedPlan(PROBLEM.resolved(), (4000, 96), 0.1 * (index + 1), tile=tile)
        target = replace(random_target(random), tuned=(tuned,) * (index % 2))
        path = tmp_path / "new" / f"{index}.json"
        target.save(path)
        assert Target.load(path) == Target.load(str(path)) == target
        assert hash(Target.load(path)) == hash(target)
        assert Target.load(path).fingerprint == target.fingerprint


def test_saving_leaves_nothing_else_behind(tmp_path: Path) -> None:
    random_target(Random(0)).save(tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_stored_target_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = replace(random_target(Random(1)), name="cpu-gloo-2")
    target.save(stored_path(target.name))
    assert stored_path(target.name).is_relative_to(tmp_path)
    assert Target.load("cpu-gloo-2") == target
    # A stored file cannot stand in for a shipped target.
    target.save(stored_path("mi300x"))
    assert Target.load("mi300x").name == "mi300x"


def test_any_content_changes_the_fingerprint() -> None:
    target = random_target(Random(2))
    rates, link = target.gemm[0], target.links[0]
    others = [
        replace(target, name="other"),
        replace(target, compute_slowdown=target.compute_slowdown + 1e-9),
        replace(target, gemm=(replace(rates, launch_seconds=rates.launch_seconds * 2),)),
        replace(target, links=(replace(link, world_size=3),)),
        replace(target, communication_sms=1),
        replace(target, is_measured=False),
        replace(target, tuned=(TunedPlan(PROBLEM.resolved(), (4096,), 1.0),)),
        replace(target, tuned=(TunedPlan(PROBLEM.resolved(), (4000, 96), 1.0),)),
    ]
    prints = {other.fingerprint for other in [target, *others]}
    assert len(prints) == 1 + len(others)
    assert all(len(text) == 12 for text in prints)


WITH_DEFAULT = {
    *("architecture", "signal_seconds", "communication_sms", "source", "tuned"),
    *("l2_bytes", "l2_bytes_per_second", "tile_seconds"),
}


@pytest.mark.parametrize("field", [field.name for field in fields(Target)])
def test_every_field_that_has_no_default_must_be_there(written, field: str) -> None:
    path, content = written
    del content[field]
    path.write_text(json.dumps(content))
    if field in WITH_DEFAULT:
        Target.load(path)
        return
    with pytest.raises(TargetError, match=rf"{field} is missing.*{path.name}.*Remedy"):
        Target.load(path)


def changed(content: dict[str, Any], *path: str | int, to: object) -> dict[str, Any]:
    inner: Any = content
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = to
    return content


@pytest.mark.parametrize(
    ("at", "to", "says"),
    [
        (("name",), 7, "name is 7"),
        (("name",), "../up", "name"),
        (("is_measured",), 1, "is_measured is 1"),
        (("communication_sms",), True, "communication_sms is True"),
        (("communication_sms",), 1.5, "communication_sms is 1.5"),
        (("compute_slowdown",), "2", "compute_slowdown is '2'"),
        (("compute_slowdown",), 0.5, "below 1"),
        (("compute_slowdown",), float("nan"), "NaN"),
        (("signal_seconds",), -1e-6, "signal_seconds"),
        (("communication_sms",), -1, "communication_sms"),
        (("l2_bytes",), -1, "l2_bytes"),
        (("l2_bytes_per_second",), 0, "rate zero"),
        (("tile_seconds",), -1e-6, "tile_seconds"),
        (("gemm", 0, "generated_share"), 1.5, "generated_share"),
        (("gemm", 0, "generated_share"), 0, "generated_share"),
        (
            ("tuned",),
            [TILED | {"tile": {**TILED["tile"], "sweep": 3}}],
            "one of \\(1, 2, 4, 8, 16\\)",
        ),
        (("tuned",), [TILED | {"tile": {**TILED["tile"], "warps": 0}}], "above zero"),
        (("tuned",), [TILED | {"rows": [4000, 96]}], "do not cut"),
        (("tuned",), [TILED | {"by": "tiles"}], "do not cut"),
        (("gemm", 0, "pointwise_bytes_per_second"), 0, "above zero"),
        (("links", 0, "consumer_issue_seconds"), -1, "negative"),
        (("tuned",), [{"problem": {}, "rows": [1], "seconds": 1}], "problem.m is missing"),
        (("tuned",), [{"problem": PROBLEM_VALUE, "rows": [9], "seconds": 1.0}], "do not cut"),
        (("tuned",), [{"problem": PROBLEM_VALUE, "rows": [4096], "seconds": 0}], "above zero"),
        (("tuned",), [{"problem": VAGUE_VALUE, "rows": [4096], "seconds": 1}], "default"),
        (("tuned",), [{"problem": PROBLEM_VALUE, "rows": [4096], "seconds": 1}] * 2, "two entries"),
        (("gemm", 0, "dtype"), "float31", "float31"),
        (("gemm", 0, "flops_per_second"), -1, "above zero"),
        (("gemm", 0, "flops_per_second"), None, r"gemm\[0\].flops_per_second is None"),
        (("gemm", 0, "speed"), 1, r"unknown field gemm\[0\].speed"),
        (("gemm",), {}, "gemm is {}, not an array"),
        (("links", 0, "alone", "points"), [], "at least one point"),
        (("links", 0, "alone", "points"), [[1, 1.0, 2]], "3 items, not 2"),
        (("links", 0, "alone", "points"), [[2, 1.0], [1, 1.0]], "must rise"),
        (("links", 0, "alone"), 3, r"links\[0\].alone is not an object"),
        (("links", 0, "collective"), "gossip", "gossip"),
        (("extra",), 1, "unknown field extra"),
        (("overlapc_target",), FORMAT + 1, f"format {FORMAT + 1}"),
    ],
)
def test_what_cannot_be_used_is_refused(written, at: tuple, to: object, says: str) -> None:
    path, content = written
    path.write_text(json.dumps(changed(content, *at, to=to)))
    with pytest.raises(TargetError, match=says) as caught:
        Target.load(path)
    assert str(path) in caught.value.where
    assert caught.value.remedy


def test_two_entries_for_one_thing_are_refused(written) -> None:
    path, content = written
    content["gemm"] *= 2
    path.write_text(json.dumps(content))
    with pytest.raises(TargetError, match="two entries"):
        Target.load(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'"text"', b"\xff\xfe\x00", b"NaN"])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=r"foreign\.json"):
        Target.load(path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot be read"):
        Target.load(tmp_path / "none.json")
    with pytest.raises(TargetError, match="cannot be read"):
        Target.load(tmp_path)
    with pytest.raises(TargetError, match=r"no target named 'h900'.*h100-nvlink"):
        Target.load("h900")
    with pytest.raises(TargetError, match="Did you mean 'h100-nvlink'"):
        Target.load("h100-nvlin")
    with pytest.raises(TargetError, match="no target named"):
        Target.load("..")


def test_two_links_for_the_same_thing_are_refused() -> None:
    target = random_target(Random(3))
    with pytest.raises(ValueError, match="two entries"):
        replace(target, links=(target.links[0], target.links[0]))


def test_what_a_target_lacks_it_says() -> None:
    target = Target.load("h100-nvlink")
    assert target.lacks(PROBLEM) == ""
    missing = replace(PROBLEM, dtype="float64")
    assert "float64" in target.lacks(missing)
    with pytest.raises(TargetError, match=r"no GEMM rates for float64, only for bfloat16"):
        search.plan(missing, target)
    no_link = replace(target, links=())
    with pytest.raises(TargetError, match=r"no measured curve for all_reduce"):
        search.plan(PROBLEM, no_link)
    assert search.plan(replace(PROBLEM, world_size=1), no_link).code == "serial_one_rank"


@pytest.mark.parametrize(
    ("name", "lacking", "remedy"),
    [
        ("a100-nvlink", {"dtype": "float8_e5m2"}, "float8_e5m2 among its --dtypes"),
        ("cpu", {"dtype": "bfloat16"}, "bfloat16 among its --dtypes"),
        ("no link", {"dtype": "bfloat16"}, "all_reduce among its --collectives"),
    ],
)
def test_what_is_lacking_has_a_remedy(name: str, lacking: dict[str, str], remedy: str) -> None:
    """Which names what is lacking. Mutant: the collective and the dtype exchanged."""
    no_link = replace(Target.load("h100-nvlink"), links=())
    target = no_link if name == "no link" else Target.load(name)
    with pytest.raises(TargetError) as caught:
        search.plan(replace(PROBLEM, **lacking), target)
    assert remedy in caught.value.remedy


def test_the_nearest_group_size_stands_in() -> None:
    target = Target.load("h100-nvlink")
    (eight,) = (link for link in target.links if link.collective == "all_reduce")
    two = replace(eight, world_size=2)
    target = replace(target, links=(eight, two), is_measured=True)
    for size, nearest in ((2, two), (3, two), (5, two), (6, eight), (64, eight)):
        problem = replace(PROBLEM, world_size=size)
        assert target.link(problem) is nearest
        assert target.knows(problem) == (size == nearest.world_size)
        reason = search.plan(problem, target).reason
        is_told = f"among {nearest.world_size} ranks, not {size}" in reason
        assert is_told == (size != nearest.world_size)
        assert (
            f"torchrun --nproc-per-node={size} --no-python overlapc calibrate" in reason
        ) == is_told


def test_what_was_measured_holds_for_programs_of_other_ranks() -> None:
    """Ranks whose programs differ would decide otherwise; mutants: only the exact program is found,
    that of other sizes is found as well, another one is taken before the exact one, or one that an
    older version ran."""
    consumer = Problem(64, 32, 16, "float32", "all_gather", 2, program="of rank 0").resolved()
    other, rows = replace(consumer, program="of a bias"), (16, 48)
    producer = replace(consumer, collective="reduce_scatter", order="", row_multiple=0).resolved()
    measured = [
        TunedPlan(consumer, rows, 1e-3),
        TunedPlan(other, (32, 32), 1e-3),
        TunedPlan(producer, rows, 1e-3),
    ]
    target = replace(Target.load("cpu"), tuned=tuple(measured))
    assert target.tuned_for(replace(consumer, program="of rank 1")) == measured[0]
    assert target.tuned_for(other) == measured[1]
    assert target.tuned_for(replace(consumer, n=31)) is None
    assert target.tuned_for(producer) == measured[2]
    beside = replace(producer, program="of rank 1", epilogue_bytes=64, kernel_sums=64)
    assert target.tuned_for(replace(beside, computes_beside=True)) == measured[2]
    assert target.tuned_for(replace(beside, k=15)) is None
    old = replace(target, tuned=(replace(measured[2], since=TRIALS - 1),))
    assert old.tuned_for(producer) == old.tuned[0]
    assert old.tuned_for(beside) is None


def test_where_some_work_of_the_sizes_was_best_whole_all_is() -> None:
    """Mutants: each program's own plan comes first, or the first that was measured."""
    its = Problem(64, 32, 16, "float32", "all_reduce", 2, program="of rank 0").resolved()
    cut, whole = TunedPlan(its, (32, 32), 1e-3), TunedPlan(replace(its, program=""), (64,), 1e-3)
    other = TunedPlan(replace(its, program="other"), (64,), 1e-3)
    for order in ((cut, whole, other), (whole, cut, other)):
        target = replace(Target.load("cpu"), tuned=order)
        assert target.tuned_for(its) == whole
        assert target.tuned_for(other.problem) == other
        made = search.plan(its, target)
        assert (made.schedule, made.code) == ("serial", "measured_alike")


@pytest.mark.parametrize("told", [{"layouts": ("row", "row")}, {"takes_map": True}])
def test_what_a_kernel_alone_is_told_decides_for_ranks_without_one(told: dict[str, Any]) -> None:
    """Of a row-major weight, or readers of tiles, beside work that lowers to no kernel on one rank.

    Mutants: `Problem.common` that keeps the layouts; that keeps whether tiles are read; a plan of
    rows that is not found for readers of tiles before that of another program."""
    its = Problem(64, 32, 16, "float32", "all_reduce", 2, program="of rank 0", kernel_sums=64)
    kernel = replace(its, **told).resolved()
    none = replace(its, **told, program="of a bias", kernel_sums=0).resolved()
    assert kernel.common() == none.common()
    for way in ((32, 32), (64,)):
        for one, of in ((kernel, none), (none, kernel)):
            measured = TunedPlan(one, way, 1e-3)
            target = replace(Target.load("cpu"), tuned=(measured,))
            assert target.tuned_for(of) == measured
            cuts = [search.plan(problem, target).rows for problem in (one, of)]
            assert cuts == [way, way]
    other = TunedPlan(none, (16, 48), 1e-3)
    of_rows = TunedPlan(replace(kernel, takes_map=False), (32, 32), 1e-3)
    target = replace(Target.load("cpu"), tuned=(other, of_rows))
    assert target.tuned_for(kernel) == of_rows


def test_a_rank_that_cannot_have_the_groups_that_won_has_others() -> None:
    """One that must send rows, of work whose columns won. Mutant: a plan that cannot be."""
    its = Problem(64, 32, 16, "float32", "all_reduce", 2, cuts_columns=True).resolved()
    target = replace(Target.load("cpu"), tuned=(TunedPlan(its, (16, 16), 1e-3, "columns"),))
    made = search.plan(replace(its, cuts_columns=False, program="of rank 1"), target)
    assert (made.by, made.schedule, made.code) == ("rows", "chunked", "measured_alike")
    assert len(made.rows) > 1


def test_gemms_of_float8_have_the_rates_of_how_they_are_scaled() -> None:
    """Else those of the other way. Mutants: the twin's come first, the first entry, none at all."""
    rates = [
        GemmRates("float8_e5m2", 1e12, 0.0),
        GemmRates("float8_e4m3fn", 2e12, 0.0),
        GemmRates("float8_e5m2", 3e12, 0.0, scales="tensor"),
        GemmRates("float8_e4m3fn", 4e12, 0.0, scales="tensor"),
    ]
    base = replace(Target.load("cpu"), gemm=tuple(rates))
    of_rows = Problem(64, 32, 16, "float8_e4m3fn", "all_reduce", 2, sent_dtype="bfloat16")
    of_tensors = replace(of_rows, scales="tensor")
    assert (base.rates(of_rows), base.rates(of_tensors)) == (rates[1], rates[3])
    for left, (plain, by_tensor) in (((0, 2), (0, 2)), ((0,), (0, 0)), ((1, 2), (1, 2))):
        target = replace(base, gemm=tuple(rates[index] for index in left))
        assert (target.rates(of_rows), target.rates(of_tensors)) == (rates[plain], rates[by_tensor])
    only = replace(base, gemm=(rates[3],))
    assert only.rates(of_rows) == rates[3]
    assert search.plan(of_tensors, base).serial_seconds < search.plan(of_rows, base).serial_seconds
    assert replace(of_tensors, dtype="float32").resolved().scales == ""
    with pytest.raises(ProblemError, match="scales is 'rows'"):
        replace(of_rows, scales="rows")
    with pytest.raises(ValueError, match="scales of float32"):
        GemmRates("float32", 1e12, 0.0, scales="rows")
    with pytest.raises(ValueError, match="two entries"):
        replace(base, gemm=(rates[3], rates[3]))


def test_trials_of_older_formats_are_known_as_such(tmp_path: Path) -> None:
    """Also once they are written again. Mutants: every format's are, or none's."""
    path, tuned = tmp_path / "old.json", TunedPlan(PROBLEM.resolved(), (4096,), 1.0)
    replace(random_target(Random(5)), tuned=(tuned,)).save(path)
    content = json.loads(path.read_text())
    for version in range(1, FORMAT + 1):
        del content["tuned"][0]["since"]
        path.write_text(json.dumps({**content, "overlapc_target": version}))
        read = Target.load(path)
        assert read.tuned[0].is_stale == (version < TRIALS)
        assert replace(read.tuned[0], since=TRIALS) == tuned
        read.save(path)
        assert Target.load(path) == read
        content = json.loads(path.read_text())
