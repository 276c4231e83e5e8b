"""When a generated kernel is planned, with which tile and order, and what a plan says of it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from overlapc.errors import PlanError, ProblemError
from overlapc.planning import search
from overlapc.planning.cost import Costs
from overlapc.planning.crossovers import crossovers
from overlapc.planning.curve import Curve
from overlapc.planning.cuts import MAX_UNITS
from overlapc.planning.problem import COLLECTIVES, Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.schedule import Event, Plan
from overlapc.planning.search import MEASURED_MARGIN, UNMEASURED_MARGIN, plan, plan_rows
from overlapc.planning.signaled import configurations, reachable_tiles, signaled_cuts
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS, SPARING_SUMS, Tile, tiles_for
from overlapc.planning.timelines import Cut
from overlapc.planning.tuned import TunedPlan

PROBLEM = Problem(8192, 4096, 4096, "bfloat16", "all_reduce", 4, kernel_sums=MOST_SUMS)
SCATTER = replace(PROBLEM, collective="reduce_scatter")
FEW_ROWS = replace(PROBLEM, m=192, n=65536, takes_map=True)
H100 = Target.load("h100-nvlink")


def gpu(
    bandwidth: float,
    *,
    c: float = 1.5,
    share: float | None = 0.95,
    sms: int = 8,
    known: bool = True,
) -> Target:
    """132 multiprocessors at 600 TFLOP/s, and a link."""
    curve = Curve(tuple((1 << bit, 1e-5 + (1 << bit) / bandwidth) for bit in range(10, 31)))
    rates = GemmRates(
        "bfloat16", 6e14, 4e-6, memory_bytes_per_second=3e12, tile_rows=128, tile_columns=256,
        resident=132, generated_share=share,
    )  # fmt: skip
    links = tuple(Link(collective, 4, curve, curve) for collective in COLLECTIVES)
    return Target(
        "gpu", "cuda", "nccl", known, (rates,), links, c, 1.0, 4e-6, sms, architecture="sm_90",
        l2_bytes=50_000_000, l2_bytes_per_second=9e12, tile_seconds=1e-6,
    )  # fmt: skip


def quickest(problem: Problem, target: Target) -> float:
    """Of all groups of all configurations in all orders."""
    return min(cut.seconds for cut in signaled_cuts(problem, target))


def test_what_saves_most_beyond_its_margin_is_planned() -> None:
    """Sweep the link and the library's contention: each schedule wins somewhere."""
    taken = set()
    for step in range(12):
        for c in (1.05, 2.0):
            for share in (0.97, 0.6):
                target = gpu(3e10 * 1.5**step, c=c, share=share)
                for problem in (PROBLEM, SCATTER):
                    made = plan(problem, target)
                    serial = Costs(problem, target).serial()
                    chunked = plan(problem, target, "chunked").predicted_seconds
                    best = min(chunked, quickest(problem, target))
                    pays = best <= (1 - MEASURED_MARGIN) * serial
                    assert made.predicted_seconds == pytest.approx(best if pays else serial)
                    taken.add(made.schedule)
                    assert made.bound_seconds <= made.predicted_seconds * (1 + 1e-9)
                    assert Plan.from_json(made.to_json()) == made
    assert taken == {"serial", "chunked", "signaled"}


def lasting(cut: Cut, seconds: float) -> Cut:
    """The same cut where it would take so long."""
    return replace(cut, timeline=(Event("compute", 0, 0.0, seconds),))


def rivals(monkeypatch: pytest.MonkeyPatch, target: Target, library: float, kernel: float) -> None:
    """Let the best cut of the library, and of a kernel, take so long."""
    chunked = search._best_chunked(PROBLEM, target, MAX_UNITS)
    signaled = next(iter(signaled_cuts(PROBLEM, target)))
    assert chunked is not None
    monkeypatch.setattr(search, "_best_chunked", lambda *_: lasting(chunked, library))
    monkeypatch.setattr(search, "overlapping_cuts", lambda *_: [lasting(signaled, kernel)])


@pytest.mark.parametrize(("less", "schedule"), [(2e-7, "chunked"), (2e-6, "signaled")])
def test_the_library_wins_what_rounding_decides(
    monkeypatch: pytest.MonkeyPatch, less: float, schedule: str
) -> None:
    target = gpu(3e11)
    seconds = 0.5 * Costs(PROBLEM, target).serial()
    rivals(monkeypatch, target, seconds, seconds * (1 - less))
    assert plan(PROBLEM, target).schedule == schedule


def test_the_cut_that_is_nearest_to_its_margin_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would save more, and lacks more of the margin of a rate that is assumed."""
    target = gpu(3e11, share=None)
    serial = Costs(PROBLEM, target).serial()
    rivals(monkeypatch, target, 0.96 * serial, 0.95 * serial)
    made = plan(PROBLEM, target)
    assert (made.schedule, made.code) == ("serial", "serial_no_gain")
    assert "would save 4.0% of" in made.reason
    assert "the margin is 5%" in made.reason


def test_a_rate_that_is_assumed_has_to_save_more() -> None:
    decisions = set()
    for step in range(40):
        bandwidth = 2e10 * 1.15**step
        for share, known in ((0.85, True), (None, True), (0.85, False)):
            target = gpu(bandwidth, c=20.0, share=share, known=known)
            margin = MEASURED_MARGIN if share and known else UNMEASURED_MARGIN
            pays = quickest(PROBLEM, target) <= (1 - margin) * Costs(PROBLEM, target).serial()
            assert (plan(PROBLEM, target).schedule == "signaled") == pays
            decisions.add((margin, pays))
    assert len(decisions) == 4


def test_tiles_are_picked_for_the_multiprocessors_that_are_left() -> None:
    """256 wide tiles are two waves of 130 and three of 124, 512 half as wide five of 124."""
    problem, picked = replace(PROBLEM, m=2048), []
    for sms in (2, 8):
        made = plan(problem, gpu(4e11, sms=sms), "signaled")
        by_tile = {cut.tile: cut.seconds for cut in signaled_cuts(problem, gpu(4e11, sms=sms))}
        assert len(by_tile) == 4
        assert made.predicted_seconds == min(by_tile.values())
        assert made.tile is not None
        picked.append(made.tile.configuration)
    assert picked == list(tiles_for("sm_90", "bfloat16")[:2])


def test_where_nothing_can_signal_there_is_no_configuration() -> None:
    assert configurations(PROBLEM, H100) == tiles_for("sm_90", "bfloat16")
    sparing = configurations(replace(PROBLEM, kernel_sums=SPARING_SUMS), H100)
    assert sparing == tiles_for("sm_90", "bfloat16")[1:]
    for problem, target in (
        (replace(PROBLEM, kernel_sums=0), H100),
        (replace(PROBLEM, m=0), H100),
        (replace(PROBLEM, n=0), H100),
        (replace(PROBLEM, collective="all_gather"), H100),
        (replace(PROBLEM, dtype="float8_e5m2"), replace(H100, architecture="sm_80")),
        (PROBLEM, replace(H100, architecture="")),
        (PROBLEM, replace(H100, architecture="sm_75")),
        (replace(PROBLEM, dtype="float32"), Target.load("cpu")),
    ):
        assert configurations(problem, target) == ()
        assert plan(problem, target, "signaled").tile is None
        assert plan(problem, target).schedule != "signaled"


@pytest.mark.parametrize(
    ("problem", "target", "says"),
    [
        (replace(PROBLEM, kernel_sums=0), H100, "of what is computed before the collective"),
        (PROBLEM, replace(H100, architecture=""), "on h100-nvlink, whose architecture is not said"),
        (PROBLEM, replace(H100, architecture="sm_75"), "of bfloat16 on sm_75"),
    ],
)
def test_asked_for_without_a_kernel_the_library_computes_the_groups(
    problem: Problem, target: Target, says: str
) -> None:
    made = plan(problem, target, "signaled")
    assert (made.schedule, made.code, made.tile) == ("signaled", "forced", None)
    assert f"no kernel is generated {says}: the library" in made.reason
    cut = plan(replace(problem, cuts_columns=False), target, "chunked")
    assert (made.rows, made.timeline) == (cut.rows, cut.timeline)
    assert plan(replace(problem, m=8), target, "signaled").code == "serial_too_small"


def test_without_multiprocessors_for_the_collective_it_is_planned_on_request_only() -> None:
    """A kernel on all of them would keep the collective out until its end."""
    target = gpu(3e11, c=20.0, sms=0)
    assert plan(PROBLEM, target).schedule != "signaled"
    assert plan(PROBLEM, target, "signaled").schedule == "signaled"
    assert plan(PROBLEM, gpu(3e11, c=20.0)).schedule == "signaled"


def test_tiles_are_packed_only_where_readers_take_them_and_that_pays() -> None:
    target = gpu(4e11)
    made = plan(FEW_ROWS, target, "signaled")
    assert (made.order, made.by) == ("packed", "tiles")
    assert made.tile is not None
    assert sum(made.rows) == made.tile.count(FEW_ROWS.m, FEW_ROWS.n)
    assert len(made.rows) > 2  # there are as many bands as tile rows, of which there are two or so
    assert len(made.timeline) == 2 * len(made.rows) + 1
    for other in (
        replace(FEW_ROWS, takes_map=False),
        replace(FEW_ROWS, collective="reduce_scatter", row_multiple=4),
    ):
        unpacked = plan(other, target, "signaled")
        assert unpacked.by == "rows"
        assert unpacked.order == ("staged" if other.parts > 1 else "band")
    # Reading tiles is charged: where memory is slow, bands are better.
    slow = replace(target.gemm[0], pointwise_bytes_per_second=1e10)
    assert plan(FEW_ROWS, replace(target, gemm=(slow,)), "signaled").order == "band"


def test_a_plan_says_its_tile_and_order_and_replays() -> None:
    for problem in (PROBLEM, SCATTER, FEW_ROWS):
        made = plan(problem, gpu(3e11), "signaled")
        assert f"{made.order} order of tiles {made.tile}" in str(made)
        read = Plan.from_json(made.to_json())
        assert (read, hash(read), read.tile, read.order) == (
            made, hash(made), made.tile, made.order
        )  # fmt: skip
        again = plan_rows(problem, gpu(3e11), made.rows, by=made.by, tile=made.tile)
        assert (again.timeline, again.schedule) == (made.timeline, "signaled")
        other = next(tile for tile in tiles_for("sm_90", "bfloat16") if tile != made.tile)
        content = json.loads(made.to_json())
        changed = {**content, "tile": {**content["tile"], "warps": other.warps + 1}}
        assert hash(Plan.from_json(json.dumps(changed))) != hash(made)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rows": [8000, 192]}, "rows .* do not cut"),
        ({"by": "tiles"}, "tiles .* do not cut"),
        ({"schedule": "chunked"}, "a chunked plan has no tile"),
        ({"tile": {"block_m": 128}}, "block_n is missing"),
        ({"tile": 128}, "tile is not an object"),
    ],
)
def test_a_text_that_is_no_signaled_plan_is_refused(change: dict, says: str) -> None:
    content = json.loads(plan(PROBLEM, gpu(3e11), "signaled").to_json())
    with pytest.raises(PlanError, match=says):
        Plan.from_json(json.dumps({**content, **change}))


def test_bands_that_end_inside_a_tile_are_refused() -> None:
    tile = Tile(128, 256, 64, 8, 4)
    with pytest.raises(PlanError, match=r"positive multiples of 128 .* of rows$"):
        plan_rows(PROBLEM, gpu(3e11), (8000, 192), tile=tile)
    with pytest.raises(PlanError, match="positive multiples of 512 "):
        plan_rows(SCATTER, gpu(3e11), (8192 - 128, 128), tile=tile)
    with pytest.raises(PlanError, match="do not cut 4096 columns"):
        plan_rows(PROBLEM, gpu(3e11), (2048, 2048), by="columns", tile=tile)
    packed = replace(PROBLEM, takes_map=True)
    with pytest.raises(PlanError, match=r"do not cut 1024 tiles.* of rows or tiles$"):
        plan_rows(packed, gpu(3e11), (1000, 25), by="tiles", tile=tile)
    assert plan_rows(packed, gpu(3e11), (1000, 24), by="tiles", tile=tile).order == "packed"


def test_a_kernel_that_was_measured_best_is_taken() -> None:
    tile = Tile(64, 128, 64, 4, 4)
    tuned = TunedPlan(PROBLEM.resolved(), (4096, 4096), 1.25e-2, tile=tile)
    target = replace(gpu(3e11), tuned=(tuned,))
    made = plan(PROBLEM, target)
    assert (made.schedule, made.tile, made.rows) == ("signaled", tile, (4096, 4096))
    assert made.code == "measured_best"
    assert plan(replace(PROBLEM, m=8191), target).code != "measured_best"
    # Readers of tiles could read rows as well, but not the other way round.
    assert plan(replace(PROBLEM, takes_map=True), target).code == "measured_best"
    packing = replace(PROBLEM.resolved(), takes_map=True)
    tiles = TunedPlan(packing, (4000, 96), 1e-2, "tiles", tile)
    assert plan(packing, replace(target, tuned=(tuned, tiles))).by == "tiles"
    assert plan(PROBLEM, replace(target, tuned=(tiles,))).code == "measured_alike"
    with pytest.raises(ValueError, match="do not cut"):
        TunedPlan(PROBLEM.resolved(), (4000, 4192), 1.25e-2, tile=tile)


def test_other_rows_reach_what_won_for_them_or_all_that_may_be_forced() -> None:
    known = configurations(PROBLEM, H100)
    assert reachable_tiles(PROBLEM, H100, "signaled") == known
    assert reachable_tiles(PROBLEM, H100, "auto") == ()
    fewer = replace(PROBLEM, m=4096)
    won = [
        TunedPlan(its.resolved(), (2048, 2048), 1e-2, tile=tile)
        for its, tile in ((fewer, known[1]), (replace(fewer, n=8192), known[0]))
    ]
    assert reachable_tiles(PROBLEM, replace(H100, tuned=tuple(won)), "auto") == (known[1],)


def test_short_runs_have_tiles_of_their_own() -> None:
    """Of 16 sequences every rank of 4 gets a fourth: 128 rows each, or 16 of 128 sequences."""
    problem = replace(SCATTER, blocks=16)
    made, whole = (plan(each, gpu(3e11), "signaled") for each in (problem, SCATTER))
    assert (made.order, made.rows, made.timeline) == ("staged", whole.rows, whole.timeline)
    short = replace(problem, blocks=128)
    # They fill an eighth of a tile, or a fourth of one of 64 rows.
    assert plan(short, gpu(3e11), "signaled").predicted_seconds > 2 * made.predicted_seconds
    assert plan(short, gpu(3e11)).schedule != "signaled"
    # Rows that are tried need not be whole blocks.
    assert plan(replace(short, m=8200), gpu(3e11), "signaled").schedule == "signaled"
    with pytest.raises(ProblemError, match="blocks is 0"):
        replace(SCATTER, blocks=0)


def test_unequal_shares_are_signaled_on_request_only() -> None:
    problem = replace(PROBLEM, collective="all_to_all", row_multiple=1)
    target = gpu(3e11, c=20.0)
    assert plan(replace(problem, row_multiple=4), target).schedule == "signaled"
    uneven = replace(problem, deals_unevenly=True)
    assert plan(uneven, target).schedule != "signaled"
    assert plan(uneven, target, "signaled").schedule == "signaled"


def test_the_schedule_changes_with_the_rows() -> None:
    found = crossovers(PROBLEM, gpu(3e11, c=2.0), 128, 8192, by_groups=False)
    assert found.first.schedule == "serial"
    assert "signaled from m = " in str(found)
    for change in found.changes:
        rows = replace(PROBLEM, m=change.rows)
        assert plan(rows, gpu(3e11, c=2.0)).schedule == change.after.schedule
