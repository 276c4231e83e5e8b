"""Attention over pages by its kernel. Runs in a process of the ``interpreted`` fixture."""

from __future__ import annotations

from overlapc.runtime.attention import paged
from overlapc.runtime.ops import calls_of
from tests.runtime.attention.paged_cases import Case, error


def run(case: Case) -> tuple[float, dict[str, int]]:
    """The largest deviation from float64, and what the call counted under."""
    calls_of(paged.SITE).clear()
    return error(case), dict(calls_of(paged.SITE))
