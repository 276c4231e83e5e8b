"""A plan's predicted timeline as lines of text."""

from __future__ import annotations

from overlapc.planning.schedule import LANES, Plan, format_rows, format_seconds

COLUMNS = 64
"""Width of the bars: chosen, to fit a terminal of 80 beside the names of the lanes."""

_GROUPS = "0123456789abcdefghijklmnopqrstuvwxyz"


def gantt(plan: Plan, columns: int = COLUMNS) -> str:
    """Draw one bar a lane over ``columns`` equal parts of the plan's time.

    Each part shows the group that holds its middle, ``.`` where the lane idles; groups past the
    36th begin again at 0.
    """
    name_width = max(map(len, LANES))
    lines = [f"{lane:<{name_width}} |{_bar(plan, lane, columns)}|" for lane in LANES]
    end = format_seconds(plan.predicted_seconds)
    lines.append(f"{'':<{name_width}}  0{end:>{columns - 1}}")
    return "\n".join(lines)


def _bar(plan: Plan, lane: str, columns: int) -> str:
    events = [event for event in plan.timeline if event.lane == lane]
    bar = []
    for column in range(columns):
        middle = (column + 0.5) / columns * plan.predicted_seconds
        at = [event.group for event in events if event.start <= middle < event.end]
        bar.append(_GROUPS[at[0] % len(_GROUPS)] if at else ".")
    return "".join(bar)


def describe(plan: Plan) -> str:
    """The plan in a few lines: problem, decision, predicted seconds and timeline."""
    p = plan.problem
    gemm = f"GEMM {p.m}x{p.n}x{p.k} {p.dtype}"
    serial, bound = format_seconds(plan.serial_seconds), format_seconds(plan.bound_seconds)
    return "\n".join(
        (
            f"problem    {gemm}, {p.collective} over {p.world_size} ranks",
            f"target     {plan.target} ({plan.fingerprint})",
            f"schedule   {plan.schedule}: {format_rows(plan.rows)} rows",
            f"reason     {plan.reason} [{plan.code}]",
            f"predicted  {format_seconds(plan.predicted_seconds)} ({plan.speedup:.2f}x of serial "
            f"{serial}; bound {bound})",
            "",
            gantt(plan),
        )
    )
