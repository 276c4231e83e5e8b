"""A report as a person reads it: one table, one summary, and what is not a success."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from overlapc.planning.schedule import Plan, format_rows, format_seconds
from overlapc.reporting.folding import Row, fold
from overlapc.reporting.records import DECISIONS, Site

WIDTH = 160
"""Columns of the plain text: chosen, so that every reason takes at most a few lines."""

_SHAPE_WIDTH = 16
"""Columns for sizes, so that dtype and ranks go below them and leave room for the reason."""

_STYLES = {"rewritten": "green", "kept": "yellow", "refused": "red"}


def to_text(sites: Sequence[Site]) -> str:
    """The report as plain text, the same everywhere."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None, force_terminal=False)
    show(sites, console)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def show(sites: Sequence[Site], console: Console) -> None:
    """Print the report at the console's own width and colours."""
    for part in _parts(sites):
        console.print(part)


def _parts(sites: Sequence[Site]) -> Iterator[RenderableType]:
    if not sites:
        yield (
            "No sites: the graphs hold no collective, no softmax attention, and no linear layer "
            "that overlapc calibrate --linear has measured here."
        )
        return
    rows = fold(sites)
    yield _table(rows)
    yield Text(summary(sites))
    for row in rows:
        if row.first.ran_only_serial:
            yield Text.assemble(("not a success: ", "bold red"), _only_serial(row))


def summary(sites: Sequence[Site]) -> str:
    """Counts of decisions, and the predicted seconds of what was rewritten."""
    count = Counter(site.decision for site in sites)
    decisions = ", ".join(f"{count[decision]} {decision}" for decision in DECISIONS)
    if removed := sum(site.is_removed for site in sites):
        decisions = decisions.replace(" rewritten", f" rewritten ({removed} of them removed)")
    plans = [s.plan for s in sites if s.decision == "rewritten" and s.plan]
    text = f"{_plural(len(sites), 'site')}: {decisions}."
    if not plans:
        return text
    serial = sum(plan.serial_seconds for plan in plans)
    planned = sum(plan.predicted_seconds for plan in plans)
    bound = sum(plan.bound_seconds for plan in plans)
    speedup = f" ({serial / planned:.2f}x)" if planned else ""
    return (
        f"{text} Predicted for the rewritten sites: serial {format_seconds(serial)} -> "
        f"{format_seconds(planned)}{speedup}, bound {format_seconds(bound)}."
    )


def _only_serial(row: Row) -> str:
    sites = f"{_plural(len(row.sites), 'rewritten site')} at {row.where or 'an unknown place'}"
    calls = _plural(row.calls["serial"], "call")
    return f"{sites} ran serial in every one of {calls}: nothing was overlapped there."


def _table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    has_calls = any(row.calls for row in rows)
    table.add_column("kind", no_wrap=True)
    table.add_column("where", overflow="fold")
    table.add_column("shape", overflow="fold", max_width=_SHAPE_WIDTH)
    table.add_column("decision", no_wrap=True)
    table.add_column("plan", overflow="fold")
    table.add_column("predicted", overflow="fold")
    if has_calls:
        table.add_column("calls", overflow="fold")
    table.add_column("reason", overflow="fold")
    for row in rows:
        site = row.first
        table.add_row(
            Text(f"{site.kind}\n{site.graph}{_times(row)}"),
            Text(row.where or "unknown"),
            Text(site.shape),
            Text(site.decision, _STYLES[site.decision]),
            Text("removed" if site.is_removed else _planned(site.plan)),
            Text(_predicted(site.plan)),
            *([Text(_calls(row))] if has_calls else []),
            Text(f"{row.reason} [{site.code}]"),
        )
    return table


def _calls(row: Row) -> str:
    """How often each schedule ran; a graph that was compiled need not have run at all."""
    if row.first.was_never_called:
        return "never called"
    lines = [f"{schedule} {count}" for schedule, count in sorted(row.calls.items())]
    if row.redone_rows is not None:
        lines.append(f"{row.redone_rows} rows redone")
    return "\n".join(lines) or "-"


def _times(row: Row) -> str:
    return f", {len(row.sites)} sites" if len(row.sites) > 1 else ""


def _planned(plan: Plan | None) -> str:
    if plan is None:
        return "-"
    t = plan.tile
    tiles = f"tiles {t.block_m}x{t.block_n}x{t.block_k}, sweeps of {t.sweep}" if t else ""
    kernel = f"\n{plan.order} order, {tiles}" if t else ""
    return f"{plan.schedule} on {plan.target}\n{format_rows(plan.rows)} {plan.by}{kernel}"


def _predicted(plan: Plan | None) -> str:
    if plan is None:
        return "-"
    times = f"{format_seconds(plan.serial_seconds)} -> {format_seconds(plan.predicted_seconds)}"
    return f"{times}\nbound {format_seconds(plan.bound_seconds)}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
