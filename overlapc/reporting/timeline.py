"""A plan's predicted timeline as a trace that Chrome and Perfetto open."""

from __future__ import annotations

import json
from typing import Any

from overlapc.planning.schedule import LANES, LOCAL, Event, Plan
from overlapc.reporting.records import Site


def chrome_trace(site: Site, plan: Plan) -> str:
    """The JSON text of a trace with one track a lane; its times are predictions, and it says so."""
    process = f"predicted: {site.kind} {site.where or site.id}"
    events: list[dict[str, Any]] = [_named("process_name", process, 0)]
    events += [_named("thread_name", f"{lane} (predicted)", i) for i, lane in enumerate(LANES)]
    for event in plan.timeline:
        name, count = _rows(plan, event)
        events.append(
            {
                "name": name,
                "cat": "predicted",
                "ph": "X",
                "pid": 0,
                "tid": LANES.index(event.lane),
                # The format counts in microseconds.
                "ts": event.start * 1e6,
                "dur": (event.end - event.start) * 1e6,
                "args": {"group": event.group, plan.by: count},
            }
        )
    about = {"predicted": "true", "plan": str(plan), "site": site.id, "target": plan.target}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}) + "\n"


def _rows(plan: Plan, event: Event) -> tuple[str, int]:
    """Which rows or columns an event is about, as a name, and how many it sends or computes."""
    if event.group == LOCAL:
        return "local rows", plan.problem.local_rows(plan.problem.m)
    start, count = plan.starts[event.group], plan.rows[event.group]
    early = plan.problem.local_rows(count) if plan.has_local and event.lane == "compute" else 0
    return f"{plan.by} {start}..{start + count - 1}", count - early


def _named(what: str, name: str, thread: int) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": 0, "tid": thread, "args": {"name": name}}
