"""`Site` and `Report`: what was found, what was decided, and why."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from overlapc.errors import OverlapcError, ReportError
from overlapc.planning.schedule import Plan

FORMAT = 1
"""Version of the text that `Report.to_json` writes."""

KINDS = (
    "gemm_all_reduce",
    "gemm_reduce_scatter",
    "all_gather_gemm",
    "gemm_all_to_all",
    "all_to_all_gemm",
    "attention",
    "linear",
)
DECISIONS = ("rewritten", "kept", "refused")

REMOVED = ("merged", "one_rank")
"""Codes of rewritten sites that left nothing behind that could run."""

BEFORE_AUTOGRAD = "dynamo-"
"""How the identifiers of sites begin that were found before autograd, whose passes always run."""

GRAPHS = ("forward", "backward", "inference")

_CODE = re.compile(r"[a-z0-9]+([_.-][a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Site:
    """One collective, attention or linear layer of a graph, and what became of it."""

    id: str
    """Equal for equal graphs, on every rank and in every run; short."""
    kind: str
    """One of ``KINDS``."""
    decision: str
    """"rewritten"; "kept": could be rewritten, predicted not to pay; "refused": may not be."""
    reason: str
    """Of the decision, in one sentence."""
    code: str
    """Of the reason: stable, short, lower case."""
    graph: str
    """One of ``GRAPHS``."""
    where: str
    """Module path and user source line; empty where the graph does not tell."""
    plan: Plan | None = None
    """For the sizes known at compile time; None where nothing was planned."""
    group: str = ""
    """Name of the process group; empty without one."""
    shape: str = ""
    """Sizes as a person reads them, such as ``8192x4096x3584 bfloat16``."""
    calls: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Calls in this process for each schedule that ran; empty where nothing has run."""

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("decision", DECISIONS), ("graph", GRAPHS)):
            if (value := getattr(self, name)) not in allowed:
                raise self._error(f"{name} {value!r} is not one of {', '.join(allowed)}")
        if not self.id.strip():
            raise self._error("its id is empty")
        if not self.reason.strip():
            raise self._error("its reason is empty")
        if not _CODE.fullmatch(self.code):
            raise self._error(f"code {self.code!r} is no short lower-case identifier")
        if self.decision == "refused" and self.plan is not None:
            raise self._error("a refused site has no plan")
        if self.is_removed and (self.plan is not None or any(self.calls.values())):
            raise self._error("a removed site has no plan and makes no calls")
        if bad := [count for count in self.calls.values() if count < 0]:
            raise self._error(f"{bad[0]} calls cannot be")

    def _error(self, what: str) -> ReportError:
        return ReportError(
            f"A site is malformed: {what}.",
            where=f"{self.kind} site {self.id!r} at {self.where or 'an unknown place'}",
            remedy="give every field what the documentation of Site says",
        )

    @property
    def is_removed(self) -> bool:
        """It was rewritten to nothing, so it never makes a call."""
        return self.decision == "rewritten" and self.code in REMOVED

    @property
    def was_never_called(self) -> bool:
        """It was rewritten to an op that counts its calls, and none was made in this process."""
        return (
            self.decision == "rewritten" and self.plan is not None and not any(self.calls.values())
        )

    @property
    def ran_only_serial(self) -> bool:
        """It was rewritten and called, and not one call overlapped anything."""
        ran = {schedule for schedule, count in self.calls.items() if count}
        return self.decision == "rewritten" and ran == {"serial"}


@dataclass(frozen=True)
class Report:
    """Every site of every graph that one compilation saw, in the order of the graphs."""

    sites: list[Site]
    """Empty for a model with nothing to rewrite."""

    def __post_init__(self) -> None:
        for site in self.sites:
            if not isinstance(site, Site):
                raise ReportError(
                    f"A report holds sites, not {type(site).__name__}.",
                    where="Report",
                    remedy="build it from Site records",
                )

    @property
    def decisions(self) -> Counter[str]:
        """How many sites were rewritten, kept and refused."""
        return Counter(site.decision for site in self.sites)

    def __str__(self) -> str:
        """The table, as plain text of a fixed width."""
        # rich takes longer to import than a compiled graph needs to start.
        from overlapc.reporting.table import to_text

        return to_text(self)

    def save(self, directory: str | Path) -> Path:
        """Write report.json, report.txt and the predicted timelines; return the directory."""
        from overlapc.reporting.saving import save

        return save(self, Path(directory))

    @staticmethod
    def load(directory: str | Path) -> Report:
        """The report that `save` wrote to a directory; raises ReportError where there is none."""
        from overlapc.reporting.saving import load

        return load(Path(directory))

    def to_json(self) -> str:
        """Text from which `from_json` makes an equal report."""
        sites = [_site_value(site) for site in self.sites]
        return json.dumps({"overlapc_report": FORMAT, "sites": sites}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, where: str = "Report.from_json") -> Report:
        """The report that `to_json` wrote; raises ReportError for anything else.

        ``where`` names the source of the text in the error.
        """
        try:
            return Report([_read_site(value) for value in _site_values(json.loads(text))])
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
    plain = {name: item for name, item in value.items() if name not in ("calls", "plan")}
    return Site(
        **_texts(plain),
        calls=calls,
        plan=None if plan is None else Plan.from_json(json.dumps(plan)),
    )


def _texts(value: dict[str, Any]) -> dict[str, str]:
    known = {f.name for f in fields(Site)} - {"calls", "plan"}
    if value.keys() != known:
        odd = min(value.keys() ^ known)
        raise ValueError(f"a site's field {odd!r} is {'missing' if odd in known else 'unknown'}")
    for name, item in value.items():
        if not isinstance(item, str):
            raise ValueError(f"a site's {name} is {item!r}, not a text")
    return value
