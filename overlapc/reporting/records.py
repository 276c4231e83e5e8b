"""`Site`: what was found, what was decided, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from overlapc.errors import ReportError
from overlapc.planning.schedule import Plan

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
    """Why the decision was made, in one sentence."""
    code: str
    """A stable, short, lower-case name of the reason."""
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
    redone_rows: int | None = None
    """Rows of attention that a generated kernel computed a second time, over all of these calls;
    None where no kernel counted them."""

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
        if self.redone_rows is not None and self.redone_rows < 0:
            raise self._error(f"{self.redone_rows} rows cannot be")

    def _error(self, what: str) -> ReportError:
        return ReportError(
            f"A site is malformed: {what}.",
            where=f"{self.kind} site {self.id!r} at {self.where or 'an unknown place'}",
            remedy="give every field what the documentation of Site says",
        )

    @property
    def is_removed(self) -> bool:
        """Whether it was rewritten to nothing, so that it never makes a call."""
        return self.decision == "rewritten" and self.code in REMOVED

    @property
    def was_never_called(self) -> bool:
        """Whether it was rewritten to an op that counts its calls, and none was made in this
        process."""
        return (
            self.decision == "rewritten" and self.plan is not None and not any(self.calls.values())
        )

    @property
    def ran_only_serial(self) -> bool:
        """Whether it was rewritten and called, and not one call overlapped anything."""
        ran = {schedule for schedule, count in self.calls.items() if count}
        return self.decision == "rewritten" and ran == {"serial"}
