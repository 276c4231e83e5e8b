"""Conclusions about plans, on times whose conclusions are known."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.measuring.paired import Samples
from benchmarks.overlap_link.shapes import LARGE, Pair
from benchmarks.plan_quality.rows import (
    QualityRow,
    finalists,
    from_json,
    markdown,
    summarise,
    summary_lines,
    to_json,
)

FIRST = {"serial": 0.3, "2 parts": 0.25, "4 parts": 0.2, "8 parts": 0.21, "16 parts": 0.24}
CUTS = {
    "serial": (1024,),
    "2 parts": (512, 512),
    "4 parts": (256,) * 4,
    "8 parts": (128,) * 8,
    "16 parts": (64,) * 16,
    "plan": (640, 256, 128),
}


def samples(times: dict[str, float], noise: float = 0.001, seed: int = 0) -> Samples:
    generator = random.Random(seed)
    drift = [generator.uniform(1, 1.5) for _ in range(11)]
    return Samples(
        {n: tuple(t * d * generator.gauss(1, noise) for d in drift) for n, t in times.items()}
    )


def row(plan: float = 0.2, noise: float = 0.001, **fresh: float) -> QualityRow:
    finals = {"4 parts": 0.204, "8 parts": 0.2, "16 parts": 0.24, **fresh}
    return QualityRow(
        pair=Pair(LARGE, "1gbit", False, "all_gather_gemm"),
        cuts=CUTS,
        plan_schedule="chunked",
        first=samples({**FIRST, "plan": plan}),
        fresh=samples({**finals, "plan": plan, "plan again": plan}, noise),
        errors={"plan": 1e-7},
        predicted={name: 1.1 * seconds for name, seconds in {**FIRST, "plan": plan}.items()},
        reason="it pays [overlaps]",
    )


def without_plan(full: QualityRow) -> QualityRow:
    def less(of: Samples) -> Samples:
        return Samples({n: t for n, t in of.seconds.items() if not n.startswith("plan")})

    first, fresh = less(full.first), less(full.fresh)
    return replace(full, plan_schedule="", first=first, fresh=fresh, predicted={}, reason="")


def test_finalists_are_the_fastest_fixed_cuts() -> None:
    assert finalists(samples({**FIRST, "plan": 0.1}, 0.0)) == ["4 parts", "8 parts", "16 parts"]


def test_the_best_is_the_best_of_the_fresh_rounds() -> None:
    # In the first rounds it was "4 parts": taking that one would be the winner's curse.
    assert row().best == "8 parts"
    assert row(plan=0.1).best == "8 parts"


def test_no_cut_is_judged_by_the_rounds_that_it_was_lucky_in() -> None:
    generator = random.Random(0)
    names = ["4 parts", "8 parts", "16 parts", "plan", "plan again"]
    # All are equally fast: whoever takes the best of three values sees plans that are too slow.
    excesses, naive = [], []
    for _ in range(200):
        fresh = Samples({n: tuple(generator.gauss(1, 0.1) for _ in range(10)) for n in names})
        measured = replace(row(), fresh=fresh)
        excesses.append(measured.excess.median)
        naive.append(fresh.ratio("plan", measured.best).median)
    assert sum(naive) / 200 > 1.02
    assert sum(excesses) / 200 == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("plan", "noise", "within", "beyond_doubt"),
    [
        (0.19, 0.001, True, False),
        (0.205, 0.001, True, False),  # 1.025
        (0.208, 0.1, False, False),  # 1.04, but it may be chance
        (0.212, 0.001, False, True),  # 1.06
    ],
)
def test_what_is_within_and_what_surely_is_not(
    plan: float, noise: float, within: bool, beyond_doubt: bool
) -> None:
    measured = row(plan, noise)
    if noise < 0.01:
        assert measured.is_within == within
        assert measured.excess.median == pytest.approx(plan / 0.2, rel=0.005)
    assert measured.is_beyond_doubt == beyond_doubt


def test_nine_of_ten_reach_the_goal_and_eight_do_not() -> None:
    good, bad = row(), row(0.25)
    assert summarise([good] * 9 + [bad]).is_reached
    assert not summarise([good] * 8 + [bad] * 2).is_reached
    found = summarise([good] * 3 + [bad] * 2)
    assert (found.cases, found.within, found.beyond_doubt) == (5, 3, 2)
    assert found.median_excess == pytest.approx(1.0, abs=0.01)
    assert found.noise is not None
    assert found.noise < 0.01


def test_predictions_are_compared_for_every_cut() -> None:
    # Rounds drift by up to one half, and predictions of undisturbed times are 1.1 of those.
    measured = replace(row(), first=Samples({n: (s, s) for n, s in {**FIRST, "plan": 0.2}.items()}))
    assert measured.prediction_ratios == pytest.approx(dict.fromkeys([*FIRST, "plan"], 1.1))
    assert summarise([measured]).prediction_error == pytest.approx(0.1)
    low = replace(measured, predicted=dict.fromkeys(FIRST, 0.0))
    assert summarise([measured, low, low]).prediction_error == pytest.approx(1.0)


def test_a_run_without_plans_concludes_nothing() -> None:
    rows = [without_plan(row())]
    assert summarise(rows).cases == 0
    assert summary_lines(rows)[0].startswith("Nothing was planned")
    assert "| – | – | – | – | – |" in markdown(rows, {})


def test_rows_survive_being_written() -> None:
    for written in (row(), without_plan(row())):
        assert from_json(to_json(written)) == written


def test_the_page_says_what_missed() -> None:
    page = markdown([row(), row(0.25)], {"link": "emulated"})
    lines = [line for line in page.splitlines() if line.startswith("| all-gather → GEMM")]
    assert len(lines) == 4
    assert "missed" not in lines[0]
    assert "missed" in lines[1]
    assert "640 + 256 + 128" in lines[0]
    assert "1 of 2 (50%" in page
    first = next(line for line in lines if line.count("(") > 5)
    measured = 1e3 * row().first.median("serial")
    assert f"{measured:.1f} ({330 / measured:.2f})" in first
    assert page.count("it pays [overlaps]") == 2
