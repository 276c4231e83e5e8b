"""Asked, measured, met or missed: what pages conclude from rows, and the list of all of it."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.gpu import asked as gpu_asked
from benchmarks.gpu.asked import ASKED, GEOMEAN, LEAST, RIGHT, Asked
from benchmarks.gpu.gemm import flashoverlap
from benchmarks.gpu.gemm import published as gpu_published
from benchmarks.gpu.report import Page
from benchmarks.gpu.verdicts import LIST, RESULTS, listed, newest, rewritten, verdict, verdicts

ROWS = [
    {"row": "a", "x": [1.2, 1.1, 1.3], "tokens": 1},
    {"row": "b", "x": 0.9, "tokens": 5},
    {"row": "c", "error": "it crashed"},
    {"row": "d", "skipped": "too large"},
    {"row": "e", "y": 2.0},
]


def asked(**given) -> Asked:
    return Asked("gemm", "what", ("T",), **{"column": "x", **given})


def test_a_verdict_says_what_it_rests_on():
    """Mutants: the mean for the least; rows that failed count as measured; ends of intervals."""
    found = verdict(asked(by=LEAST, goal=0.9), {"T": ROWS})
    assert (found["measured"], found["verdict"], found["least of"]) == (0.9, "met", "b")
    assert found["rows"] == "2, 1 failed, 1 skipped"
    assert found["rows that reach it"] == "2 of 2"
    assert verdict(asked(by=LEAST, goal=0.91), {"T": ROWS})["verdict"] == "missed"
    mean = math.sqrt(1.2 * 0.9)
    of_all = verdict(asked(by=GEOMEAN, goal=1.0), {"T": ROWS})
    assert (of_all["measured"], of_all["verdict"]) == (pytest.approx(mean), "met")
    assert of_all["rows that reach it"] == "1 of 2"
    assert verdict(asked(by=GEOMEAN, goal=1.1), {"T": ROWS})["verdict"] == "missed"
    some = verdict(asked(goal=1.0, only=lambda row: row.get("tokens", 0) < 3), {"T": ROWS})
    assert (some["measured"], some["rows"]) == (1.2, "1, 1 failed, 1 skipped")
    assert verdict(asked(goal=None), {"T": ROWS})["verdict"] == "reported"


def test_what_is_to_be_right_is_missed_where_one_row_failed():
    right = asked(column="", by=RIGHT)
    found = verdict(right, {"T": ROWS})
    assert (found["measured"], found["verdict"]) == ("3 of 4", "missed")
    assert verdict(right, {"T": [ROWS[0], ROWS[3]]})["verdict"] == "met"
    assert verdict(right, {"T": [ROWS[2]]})["verdict"] == "missed"


@pytest.mark.parametrize("by", [LEAST, RIGHT])
def test_what_was_not_measured_is_neither_met_nor_missed(by):
    its = asked(by=by)
    assert (
        verdict(its, {})["verdict"] == verdict(its, {"T": [ROWS[3]]})["verdict"] == ("not measured")
    )
    assert verdict(its, {"T": [ROWS[3]]})["measured"] == "not measured: too large"
    assert verdict(its, {"T": [ROWS[3], {"row": "f", "skipped": "old"}]})["measured"] == (
        "not measured"
    )


def test_every_figure_is_a_row_of_its_part():
    parts = {its.part for its in ASKED}
    assert parts == {"attention", "gemm", "linear", "model"}
    assert sum(len(verdicts(part, {})) for part in parts) == len(ASKED)
    assert len({(its.part, its.what, its.by) for its in ASKED}) == len(ASKED)


def test_the_list_is_that_of_the_pages_beside_it(tmp_path):
    text = LIST.read_text()
    assert text == rewritten(text, RESULTS)
    for date, ratio in (("2026-11-28", 0.5), ("2026-11-30", 0.98), ("2026-11-29", 0.6)):
        rows = [{"row": "s", "of torch.mm": [ratio, ratio, ratio]}]
        about = {"device": "NVIDIA H200, 132 SMs", "date": date}
        Page(tmp_path, "gemm").write(about, {"The GEMM alone": rows})
    (path, content) = newest(tmp_path)["gemm"]
    assert content["about"]["date"] == "2026-11-30"
    lines = [line for line in listed(tmp_path).splitlines() if "over `torch.mm`, bfloat16" in line]
    assert [line.split(" | ")[2:5] for line in lines] == [["0.98", "1", "met"]] * 2
    assert all(f"[{path.stem}]({path.stem}.md)" in line for line in lines)


def test_every_page_of_a_device_says_which_and_when():
    for path in RESULTS.glob("gpu-*.json"):
        about = json.loads(path.read_text())["about"]
        assert {"device", "versions", "date", "command", "rows"} <= set(about), path
        assert path.with_suffix(".md").exists(), path


# Beside FlashOverlap


def chain(ratio, ours, collective="all_reduce"):
    return {
        "row": "s", "collective": collective, "EMULATED link": "NVLink-like",
        "compute to communication": ratio, "signaled over serial": [ours, ours, ours],
        gpu_published.IDEAL: 0.9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "collective", "devices"),
    [
        (0.28, "all_reduce", {"8 RTX 4090"}),
        (0.32, "all_reduce", {"4 RTX 4090", "8 RTX 4090"}),
        (6.0, "all_reduce", {"2 A800"}),
        (10.0, "all_reduce", {"2 A800"}),
        (10.0, "reduce_scatter", {"2 A800"}),
        (0.2, "all_to_all", {"8 RTX 4090"}),
        (100.0, "all_reduce", set()),
        (math.inf, "all_reduce", set()),
    ],
)
def test_a_ratio_is_compared_with_those_that_include_it(ratio, collective, devices):
    """Else with the nearest, and with none that is far. Mutant: every mean of the collective."""
    found = flashoverlap.alike(collective, ratio)
    assert {str(mean).partition(",")[0] for mean in found} == devices
    assert all(mean.collective == collective for mean in found)


def test_ours_is_compared_with_their_mean_on_like_ratios():
    """Mutants: their most, or their least, for the mean."""
    means = [mean.flashoverlap.mean for mean in flashoverlap.alike("all_reduce", 0.32)]
    theirs = sum(means) / len(means)
    rows = [chain(0.32, theirs + 0.01), chain(0.32, theirs - 0.01), chain(100.0, 2.0),
            {"row": "f", "error": "it crashed"}]  # fmt: skip
    above, below, none = gpu_published.compared(rows)
    assert above["verdict"] == "above their mean"
    assert below["verdict"] == "below their mean"
    assert above["their mean"] == pytest.approx(theirs)
    assert above["theirs"] == "1.09 to 1.4"
    assert none["verdict"] == gpu_published.NONE_ALIKE
    said = verdicts("gemm", {gpu_asked.COMPARED: [above, below, none]})
    (one,) = [row for row in said if "FlashOverlap" in row["row"]]
    assert one["rows"] == "2"
    assert one["measured"] == pytest.approx(math.sqrt(1 - (0.01 / theirs) ** 2))
    assert one["verdict"] == "missed"


def test_what_is_published_is_as_it_was_read():
    """The figures' own sums: means of the heat maps, and the least and most of all bars."""
    for device, printed in flashoverlap.HEATMAP_MEANS.items():
        values = [speedup for _, _, speedup in flashoverlap.cells(device)]
        assert len(values) == 49
        assert round(sum(values) / 49, 2) == printed
    bars = [mean.flashoverlap for mean in flashoverlap.MEANS]
    assert max(bar.most for bar in bars) == 1.65
    assert all(bar.least < bar.mean < bar.most for bar in bars)
    assert all(mean.two_parts.mean < mean.flashoverlap.mean for mean in flashoverlap.MEANS)
