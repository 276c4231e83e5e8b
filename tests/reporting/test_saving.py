"""The files of a saved report, and the predicted timelines in them."""

from __future__ import annotations

import dataclasses
import json

import pytest

from overlapc.errors import ReportError
from overlapc.planning.schedule import LOCAL
from overlapc.planning.search import plan_rows
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS, tiles_for
from overlapc.planning.tuned import TunedPlan
from overlapc.reporting.gantt import describe, describe_tuned, gantt
from overlapc.reporting.report import Report
from overlapc.reporting.timeline import chrome_trace
from tests.reporting.examples import make_plan, make_site


def a_report() -> Report:
    return Report(
        [
            make_site(),
            make_site(id="odd/../id 1", graph="backward"),
            make_site(id="f.2", decision="refused", code="other_user"),
        ]
    )


def test_a_saved_report_loads_equal(tmp_path):
    report = a_report()
    assert report.save(tmp_path / "deep" / "report") == tmp_path / "deep" / "report"
    assert Report.load(tmp_path / "deep" / "report") == report
    assert (tmp_path / "deep/report/report.txt").read_text() == str(report)


def test_every_planned_site_has_a_timeline(tmp_path):
    a_report().save(tmp_path)
    names = sorted(path.name for path in (tmp_path / "timelines").iterdir())
    assert names == ["000-forward-0a1b2c.0.json", "001-odd-..-id-1.json"]


def test_timelines_of_an_earlier_report_go(tmp_path):
    a_report().save(tmp_path)
    Report([]).save(tmp_path)
    assert not list((tmp_path / "timelines").iterdir())
    assert Report.load(tmp_path).sites == []


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{}"], ids=["absent", "binary", "other"])
def test_a_directory_without_a_report_is_an_error(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ReportError) as caught:
        Report.load(tmp_path)
    assert caught.value.where == str(tmp_path / "report.json")


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="cannot be written") as caught:
        a_report().save(tmp_path / "file" / "report")
    assert "that may be made" in caught.value.remedy


def events_of(trace: str, phase: str) -> list[dict]:
    return [event for event in json.loads(trace)["traceEvents"] if event["ph"] == phase]


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather"])
def test_a_trace_holds_the_plan_in_microseconds(collective):
    plan = make_plan(collective=collective)
    spans = events_of(chrome_trace(make_site(plan=plan), plan), "X")
    has_local = collective == "all_gather"
    assert plan.has_local == has_local
    assert len(spans) == len(plan.timeline) == 2 * len(plan.rows) + has_local
    assert max(e["ts"] + e["dur"] for e in spans) == pytest.approx(plan.predicted_seconds * 1e6)
    for lane in (0, 1):
        of_lane = [event for event in spans if event["tid"] == lane]
        assert sum(event["args"]["rows"] for event in of_lane) == plan.problem.m
        ends = [0.0, *(event["ts"] + event["dur"] for event in of_lane)]
        # Within a lane nothing overlaps; a nanosecond is rounding.
        assert all(e["ts"] >= end - 1e-3 for e, end in zip(of_lane, ends, strict=False))
    if has_local:
        assert spans.pop(0)["name"] == "local rows"
    assert spans[0]["name"] == f"rows 0..{plan.rows[0] - 1}"


def test_a_trace_says_that_it_is_predicted():
    site = make_site()
    trace = chrome_trace(site, make_plan())
    names = [event["args"]["name"] for event in events_of(trace, "M")]
    assert all("predicted" in name for name in names)
    assert site.where in names[0]
    assert {event["cat"] for event in events_of(trace, "X")} == {"predicted"}


@pytest.mark.parametrize("collective", ["all_reduce", "all_gather"])
def test_bars_show_each_group_for_as_long_as_it_takes(collective):
    plan = make_plan(collective=collective)
    compute, communication, _ = gantt(plan, columns=1000).splitlines()
    for line, lane in ((compute, "compute"), (communication, "communication")):
        bar = line.partition("|")[2].rstrip("|")
        assert len(bar) == 1000
        for event in (event for event in plan.timeline if event.lane == lane):
            share = (event.end - event.start) / plan.predicted_seconds
            letter = "L" if event.group == LOCAL else str(event.group)
            assert bar.count(letter) == pytest.approx(1000 * share, abs=2)


def test_a_serial_plan_computes_and_then_communicates():
    compute, communication, _ = gantt(make_plan("serial")).splitlines()
    computing = compute.count("0")
    assert communication.partition("|")[2].startswith("." * computing + "0")


def test_a_serial_consumer_communicates_and_then_computes():
    compute, communication, _ = gantt(make_plan("serial", collective="all_gather")).splitlines()
    sending = communication.count("0")
    assert compute.partition("|")[2].startswith("." * sending + "0")
    text = describe(make_plan(collective="all_gather"))
    assert "all_gather over 8 ranks, then GEMM 8192x8192x3584" in text


def test_what_was_tuned_is_told_in_a_line():
    problem = make_plan().problem
    serial = TunedPlan(problem.resolved(), (8192,), 2e-3)
    size = "gemm_all_reduce 8192x8192x3584 bfloat16 over 8"
    assert describe_tuned(serial) == f"{size}: serial, 2 ms"
    program = (
        '{"program": {"steps": [["aten.addmm.default", [], {}], ["aten.gelu.default", [], {}]]}}'
    )
    its = dataclasses.replace(serial, problem=dataclasses.replace(serial.problem, program=program))
    assert describe_tuned(its) == f"{size} of addmm gelu: serial, 2 ms"
    cut = TunedPlan(problem.resolved(), (4096, 2048, 2048), 2e-3)
    assert describe_tuned(cut) == f"{size}: chunked, 4096 + 2x2048 rows, 2 ms"


def test_groups_of_columns_are_called_so():
    whole = make_plan()
    problem = dataclasses.replace(whole.problem, cuts_columns=True)
    plan = plan_rows(problem, Target.load("h100-nvlink"), (8000, 192), by="columns")
    spans = events_of(chrome_trace(make_site(plan=plan), plan), "X")
    assert [span["name"] for span in spans[::2]] == ["columns 0..7999", "columns 8000..8191"]
    assert [span["args"]["columns"] for span in spans[::2]] == [8000, 192]
    assert "chunked: 8000 + 192 columns" in describe(plan)
    tuned = TunedPlan(problem.resolved(), (8000, 192), 2e-3, by="columns")
    assert describe_tuned(tuned).endswith("chunked, 8000 + 192 columns, 2 ms")


def test_the_kernel_of_a_signaled_plan_is_described():
    problem = dataclasses.replace(make_plan().problem, kernel_sums=MOST_SUMS, takes_map=True)
    tile = tiles_for("sm_90", "bfloat16")[0]
    plan = plan_rows(problem, Target.load("h100-nvlink"), (8064, 128), tile=tile)
    kernel = "kernel     band order of tiles 128x256x64 with 8 warps, 4 stages and sweeps of 8"
    assert kernel in describe(plan)
    assert "signaled: 8064 + 128 rows" in describe(plan)
    table = str(Report([make_site(plan=plan)]))
    assert "band order, tiles" in table
    assert "sweeps of 8" in table
    assert "128x256x64" in table
    tuned = TunedPlan(problem.resolved(), (8064, 128), 2e-3, tile=tile)
    assert describe_tuned(tuned).endswith(f"signaled, 8064 + 128 rows, tiles of {tile}, 2 ms")
    packed = plan_rows(problem, Target.load("h100-nvlink"), (2000, 48), by="tiles", tile=tile)
    spans = events_of(chrome_trace(make_site(plan=packed), packed), "X")
    assert [span["name"] for span in spans[::2]] == ["tiles 0..1999", *["tiles 2000..2047"] * 2]
    assert "packed order of tiles" in describe(packed)


def test_the_description_names_what_decides():
    plan = make_plan()
    text = describe(plan)
    for part in ("8192x8192x3584", "h100-nvlink", plan.fingerprint, plan.reason, plan.code):
        assert part in text
