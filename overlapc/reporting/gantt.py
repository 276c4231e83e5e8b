"""A plan's predicted timeline as lines of text."""

from __future__ import annotations

from overlapc.planning.schedule import LANES, LOCAL, Plan, format_rows, format_seconds
from overlapc.planning.tuned import TunedPlan

COLUMNS = 64
"""Width of the bars: chosen, to fit a terminal of 80 beside the names of the lanes."""

_GROUPS = "0123456789abcdefghijklmnopqrstuvwxyz"
_LOCAL = "L"


def gantt(plan: Plan, columns: int = COLUMNS) -> str:
    """Draw one bar a lane over ``columns`` equal parts of the plan's time.

    Each part shows the group that holds its middle, ``L`` for the rows a consumer has itself, ``.``
    where the lane idles; groups past the 36th begin again at 0.
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
        bar.append(_letter(at[0]) if at else ".")
    return "".join(bar)


def _letter(group: int) -> str:
    return _LOCAL if group == LOCAL else _GROUPS[group % len(_GROUPS)]


def describe_tuned(tuned: TunedPlan) -> str:
    """What was measured of one problem, in a line."""
    p = tuned.problem
    if tuned.tile:
        rows = f"signaled, {format_rows(tuned.rows)} {tuned.by}, tiles of {tuned.tile}"
    elif len(tuned.rows) == 1:
        rows = "serial"
    else:
        rows = f"chunked, {format_rows(tuned.rows)} {tuned.by}"
    size = f"{p.kind} {p.m}x{p.n}x{p.k} {p.dtype} over {p.world_size}"
    computed = f" of {' '.join(p.ops)}" if p.ops else ""
    return f"{size}{computed}: {rows}, {format_seconds(tuned.seconds)}"


def describe(plan: Plan) -> str:
    """The plan in a few lines: problem, decision, predicted seconds and timeline."""
    p = plan.problem
    gemm = f"GEMM {p.m}x{p.n}x{p.k} {p.dtype}"
    collective = f"{p.collective} over {p.world_size} ranks"
    problem = f"{collective}, then {gemm}" if p.is_consumer else f"{gemm}, {collective}"
    serial, bound = format_seconds(plan.serial_seconds), format_seconds(plan.bound_seconds)
    kernel = (f"kernel     {plan.order} order of tiles {plan.tile}",) if plan.tile else ()
    return "\n".join(
        (
            f"problem    {problem}",
            f"target     {plan.target} ({plan.fingerprint})",
            f"schedule   {plan.schedule}: {format_rows(plan.rows)} {plan.by}",
            *kernel,
            f"reason     {plan.reason} [{plan.code}]",
            f"predicted  {format_seconds(plan.predicted_seconds)} ({plan.speedup:.2f}x of serial "
            f"{serial}; bound {bound})",
            "",
            gantt(plan),
        )
    )
