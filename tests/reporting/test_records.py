"""Sites and reports: what they refuse, and that JSON loses nothing."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import pytest

from overlapc.errors import ReportError
from overlapc.reporting.records import DECISIONS, GRAPHS, KINDS, Site
from overlapc.reporting.report import Report
from tests.reporting.examples import make_plan, make_site


def a_report() -> Report:
    sites = [
        make_site(calls={"chunked": 3, "serial": 1}),
        make_site(id="forward-1.7", kind="attention", plan=None, redone_rows=5),
        make_site(id="backward-1.0", graph="backward", decision="kept", plan=make_plan("serial")),
        make_site(id="backward-1.1", decision="refused", code="other_user", where="", group=""),
    ]
    return Report(sites)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "matmul"}, "kind 'matmul' is not one of"),
        ({"decision": "skipped"}, "decision 'skipped' is not one of"),
        ({"graph": "joint"}, "graph 'joint' is not one of"),
        ({"reason": " "}, "reason is empty"),
        ({"id": ""}, "id is empty"),
        ({"code": ""}, "code ''"),
        ({"code": "Other user"}, "code 'Other user'"),
        ({"decision": "refused", "plan": make_plan()}, "a refused site has no plan"),
        ({"calls": {"serial": -1}}, "-1 calls"),
        ({"redone_rows": -1}, "-1 rows"),
        ({"code": "merged", "plan": make_plan()}, "a removed site has no plan"),
        ({"code": "one_rank", "plan": None, "calls": {"serial": 1}}, "makes no calls"),
    ],
)
def test_a_malformed_site_is_refused(changes, message):
    with pytest.raises(ReportError, match=message):
        make_site(**changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_kind_decision_and_graph_survives_json(kind, decision, graph):
    site = make_site(kind=kind, decision=decision, graph=graph)
    assert Report.from_json(Report([site]).to_json()).sites == [site]


def test_json_loses_nothing():
    report = a_report()
    again = Report.from_json(report.to_json())
    assert again == report
    assert again.to_json() == report.to_json()
    assert again.sites[0].calls == {"chunked": 3, "serial": 1}
    assert again.sites[0].plan == make_plan()


def test_sites_are_frozen_and_hash():
    site = make_site(calls={"serial": 1})
    with pytest.raises(FrozenInstanceError):
        site.decision = "kept"  # type: ignore[misc]
    assert hash(site) == hash(make_site(calls={"serial": 1}))


def break_version(content):
    content["overlapc_report"] = 1


def break_marker(content):
    del content["overlapc_report"]


def break_sites(content):
    content["sites"] = {}


def break_site(content):
    content["sites"][0] = "site"


def break_missing(content):
    del content["sites"][0]["where"]


def break_unknown(content):
    content["sites"][0]["speed"] = "fast"


def break_type(content):
    content["sites"][0]["where"] = 3


def break_calls(content):
    content["sites"][0]["calls"] = {"serial": True}


def break_rows(content):
    content["sites"][0]["redone_rows"] = True


def break_plan(content):
    content["sites"][0]["plan"]["rows"] = [1]


def break_decision(content):
    content["sites"][0]["decision"] = "done"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_version, "format 1"),
        (break_marker, "no report"),
        (break_sites, "no list of sites"),
        (break_site, "not an object"),
        (break_missing, "'where' is missing"),
        (break_unknown, "'speed' is unknown"),
        (break_type, "where is 3"),
        (break_calls, "calls are not counts"),
        (break_rows, "redone_rows are no count"),
        (break_plan, "rows"),
        (break_decision, "decision 'done'"),
    ],
)
def test_a_broken_text_is_named(change, message):
    content = json.loads(a_report().to_json())
    change(content)
    with pytest.raises(ReportError, match=message) as caught:
        Report.from_json(json.dumps(content), where="here/report.json")
    assert caught.value.where == "here/report.json"


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"report"'])
def test_a_text_that_is_no_report_is_refused(text):
    with pytest.raises(ReportError, match="cannot be read"):
        Report.from_json(text)


def test_a_report_holds_sites_only():
    with pytest.raises(ReportError, match="not str"):
        Report(["site"])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("decision", "calls", "expected"),
    [
        ("rewritten", {"serial": 4}, True),
        ("rewritten", {"serial": 4, "chunked": 0}, True),
        ("rewritten", {"serial": 4, "chunked": 1}, False),
        ("rewritten", {}, False),
        ("rewritten", {"serial": 0}, False),
        ("kept", {"serial": 4}, False),
    ],
)
def test_a_site_that_ran_only_serial_is_known(decision, calls, expected):
    assert make_site(decision=decision, calls=calls).ran_only_serial is expected


def test_decisions_are_counted():
    assert a_report().decisions == {"rewritten": 2, "kept": 1, "refused": 1}


def test_a_site_needs_every_text():
    with pytest.raises(TypeError, match="reason"):
        Site(id="a", kind="linear", decision="kept", code="c", graph="forward", where="")  # type: ignore[call-arg]
