"""The demo's tables and timelines, as text."""

from __future__ import annotations

from collections.abc import Mapping

import overlapc
from benchmarks.measuring.paired import Samples
from examples.llama_bound import ModelBound
from overlapc.reporting.gantt import describe

SHIPPED = "h100-nvlink"
"""Planned for where nothing could be overlapped on this machine."""


def comparison(samples: Samples, errors: Mapping[str, float], bound: ModelBound) -> str:
    """Time, paired speedup over Inductor, share of the bound and error of every candidate."""
    lines = [f"{'':>14}  {'median':>9}  {'speedup over inductor':>23}  {'of bound':>8}  error"]
    for name in samples.seconds:
        seconds = samples.median(name)
        lines.append(
            f"{name:>14}  {seconds * 1e3:6.0f} ms  {samples.ratio('inductor', name)!s:>23}  "
            f"{bound.seconds / seconds:8.2f}  {errors[name]:.1e}"
        )
    speedup = samples.median("inductor") / bound.seconds
    lines.append(f"{'bound':>14}  {bound.seconds * 1e3:6.0f} ms  {speedup:23.3f}  {1:8.2f}")
    return "\n".join([*lines, "", *_notes(samples, bound)])


def _notes(samples: Samples, bound: ModelBound) -> list[str]:
    notes = [
        f"Medians of {samples.rounds} rounds, the slower process of each; speedups are paired by",
        "round, with their 95 % interval. error: largest deviation of the logits from float64.",
        "The bound is measured: inductor's time less what each site could save if its GEMM and",
        "all-reduce, started together, did not depend on each other:",
    ]
    for found in bound.sites:
        site = found.site
        notes.append(
            f"  {site.count} x {site.name:<9} {site.m}x{site.n}x{site.k}: "
            f"apart {found.serial * 1e3:.1f} ms, together {found.together * 1e3:.1f} ms"
        )
    return notes


def timelines(report: overlapc.Report) -> str:
    """The site whose rewrite saves most; where none was rewritten, a plan for a shipped target."""
    plans = [site.plan for site in report.sites if site.decision == "rewritten" and site.plan]
    if plans:
        best = max(plans, key=lambda plan: plan.serial_seconds - plan.predicted_seconds)
        return f"The plan that saves most, as predicted (. is waiting):\n{describe(best)}"
    elsewhere = overlapc.plan(
        m=8192,
        n=8192,
        k=3584,
        collective="all_reduce",
        world_size=8,
        dtype="bfloat16",
        target=SHIPPED,
    )
    return (
        "Nothing was overlapped here, because it would not pay. On eight H100s it would, for\n"
        f"example at the down projection of Llama 3 70B with 8,192 tokens:\n{describe(elsewhere)}"
    )
