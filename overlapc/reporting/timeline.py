"""A plan's predicted timeline as a trace that Chrome and Perfetto open."""

from __future__ import annotations

import json
from typing import Any

from overlapc.planning.schedule import LANES, Plan
from overlapc.reporting.records import Site


def chrome_trace(site: Site, plan: Plan) -> str:
    """The JSON text of a trace with one track a lane; its times are predictions, and it says so."""
    process = f"predicted: {site.kind} {site.where or site.id}"
    events: list[dict[str, Any]] = [_named("process_name", process, 0)]
    events += [_named("thread_name", f"{lane} (predicted)", i) for i, lane in enumerate(LANES)]
    first_rows = plan.starts
    for event in plan.timeline:
        start, count = first_rows[event.group], plan.rows[event.group]
        events.append(
            {
                "name": f"rows {start}..{start + count - 1}",
                "cat": "predicted",
                "ph": "X",
                "pid": 0,
                "tid": LANES.index(event.lane),
                # The format counts in microseconds.
                "ts": event.start * 1e6,
                "dur": (event.end - event.start) * 1e6,
                "args": {"group": event.group, "rows": count},
            }
        )
    about = {"predicted": "true", "plan": str(plan), "site": site.id, "target": plan.target}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}) + "\n"


def _named(what: str, name: str, thread: int) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": 0, "tid": thread, "args": {"name": name}}
