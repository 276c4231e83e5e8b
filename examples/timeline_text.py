"""A plan's predicted timeline, drawn with characters."""

from __future__ import annotations

from overlapc.planning.schedule import LANES, Plan, format_seconds

WIDTH = 72
"""Characters for the longest of the two schedules."""


def draw(plan: Plan) -> str:
    """One line a lane; each group's number fills the time it takes, and ``.`` is waiting."""
    total = max(plan.serial_seconds, plan.predicted_seconds)
    lines = [
        f"{plan.schedule} {format_seconds(plan.predicted_seconds)}, serial would take "
        f"{format_seconds(plan.serial_seconds)}, the bound is {format_seconds(plan.bound_seconds)}"
    ]
    for lane in LANES:
        line = ["."] * round(WIDTH * plan.predicted_seconds / total)
        for event in plan.timeline:
            if event.lane == lane:
                first, last = (round(WIDTH * at / total) for at in (event.start, event.end))
                line[first:last] = [_mark(event.group)] * (last - first)
        lines.append(f"  {lane:>13} {''.join(line)}")
    return "\n".join(lines)


def _mark(group: int) -> str:
    marks = "123456789abcdefghijklmnopqrstuvwxyz"
    return marks[group % len(marks)]
