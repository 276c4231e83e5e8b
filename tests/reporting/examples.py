"""Plans and sites for the tests of reporting: real plans of the planner, made-up places."""

from __future__ import annotations

from typing import Any

from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan_gemm
from overlapc.reporting.records import Site


def make_plan(schedule: str = "chunked", m: int = 8192, collective: str = "all_reduce") -> Plan:
    return plan_gemm(
        m=m,
        n=8192,
        k=3584,
        collective=collective,
        world_size=8,
        dtype="bfloat16",
        target="h100-nvlink",
        schedule=schedule,
    )


def written_plan(schedule: str, rows: tuple[int, ...]) -> Plan:
    """A plan with figures written here, for texts that no change of the planner may change."""
    return Plan(
        problem=Problem(sum(rows), 4096, 1792, "bfloat16", "all_reduce", 2),
        target="somewhere",
        fingerprint="0123456789ab",
        schedule=schedule,
        rows=rows,
        predicted_seconds=1.25e-3 if schedule == "chunked" else 2e-3,
        serial_seconds=2e-3,
        bound_seconds=1.1e-3,
        code="written",
        reason="Written by hand.",
        timeline=(),
    )


def make_site(**changes: Any) -> Site:
    """A rewritten site; each keyword replaces a field."""
    plan = changes.get("plan", make_plan() if changes.get("decision") != "refused" else None)
    values: dict[str, Any] = {
        "id": "forward-0a1b2c.0",
        "kind": "gemm_all_reduce",
        "decision": "rewritten",
        "reason": "Most of the transfer hides behind the GEMM.",
        "code": "chunked_overlaps",
        "graph": "forward",
        "where": "model.layers.0.mlp.down_proj (modeling.py:175)",
        "plan": plan,
        "group": "tp",
        "shape": "8192x8192x3584 bfloat16 over 8",
    }
    return Site(**{**values, **changes})
