"""Sites as JSON text, and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from overlapc.errors import OverlapcError, ReportError
from overlapc.planning.schedule import Plan
from overlapc.reporting.records import Site

FORMAT = 2
"""Version of the text that `to_json` writes."""
NO_TEXTS = {"calls", "plan", "redone_rows"}


def to_json(sites: Sequence[Site]) -> str:
    """Text from which `from_json` makes equal sites."""
    values = [_site_value(site) for site in sites]
    return json.dumps({"overlapc_report": FORMAT, "sites": values}, indent=1) + "\n"


def from_json(text: str, where: str) -> list[Site]:
    """The sites that `to_json` wrote; raises ReportError, which names ``where``, for other text."""
    try:
        return [_read_site(value) for value in _site_values(json.loads(text))]
    except ValueError as error:
        what = error.what if isinstance(error, OverlapcError) else f"{error}."
        raise ReportError(
            f"The report cannot be read: {what}",
            where=where,
            remedy="give the text that Report.to_json wrote, unchanged",
        ) from error


def _site_value(site: Site) -> dict[str, Any]:
    value: dict[str, Any] = {f.name: getattr(site, f.name) for f in fields(site)}
    value["calls"] = dict(site.calls)
    value["plan"] = None if site.plan is None else json.loads(site.plan.to_json())
    return value


def _site_values(content: Any) -> list[Any]:
    if not isinstance(content, dict) or "overlapc_report" not in content:
        raise ValueError("the text is no report")
    if (version := content["overlapc_report"]) != FORMAT:
        raise ValueError(f"it has format {version!r}, and this overlapc reads {FORMAT}")
    if not isinstance(sites := content.get("sites"), list):
        raise ValueError("it has no list of sites")
    return sites


def _read_site(value: Any) -> Site:
    if not isinstance(value, dict):
        raise ValueError("a site is not an object")
    calls, plan = value.get("calls"), value.get("plan")
    if not isinstance(calls, dict) or not all(type(n) is int for n in calls.values()):
        raise ValueError("a site's calls are not counts")
    redone = value.get("redone_rows")
    if type(redone) not in (int, type(None)):
        raise ValueError("a site's redone_rows are no count")
    plain = {name: item for name, item in value.items() if name not in NO_TEXTS}
    return Site(
        **_texts(plain),
        calls=calls,
        redone_rows=redone,
        plan=None if plan is None else Plan.from_json(json.dumps(plan)),
    )


def _texts(value: dict[str, Any]) -> dict[str, str]:
    known = {f.name for f in fields(Site)} - NO_TEXTS
    if value.keys() != known:
        odd = min(value.keys() ^ known)
        raise ValueError(f"a site's field {odd!r} is {'missing' if odd in known else 'unknown'}")
    for name, item in value.items():
        if not isinstance(item, str):
            raise ValueError(f"a site's {name} is {item!r}, not a text")
    return value
