"""The overlap benchmark's results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from benchmarks.overlap_rows import (
    BOUND,
    INDUCTOR,
    OVERLAPC,
    SERIAL,
    SERIAL_AGAIN,
    Prediction,
    Row,
    Summary,
    summarise,
)
from overlapc.planning.schedule import format_rows

NOTHING = "–"


def markdown(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """The whole page: how it was measured, the table, and the summary."""
    parts = [
        "# GEMM and all-reduce over an emulated link",
        _about(about),
        _legend(),
        _table(rows),
        "\n".join(f"* {line}" for line in summary_lines(summarise(rows))),
    ]
    return "\n\n".join(parts) + "\n"


def summary_lines(summary: Summary) -> list[str]:
    """The conclusions, one sentence each."""
    shares = ", ".join(f"{name} {share:.3f}" for name, share in summary.shares.items())
    lines = [
        f"Median share of the bound over {summary.pairs} pairs: {shares or NOTHING}.",
        f"Noise (median of |{SERIAL_AGAIN} / {SERIAL} - 1|): {summary.noise:.1%}.",
    ]
    if summary.worst is None:
        return [*lines, "overlapc was not measured in this run."]
    error = summary.prediction_error
    return [
        *lines,
        f"Worst {SERIAL} / {OVERLAPC} over all pairs: {summary.worst}.",
        f"Slower pairs (95 % interval of {SERIAL} / {OVERLAPC} below 0.98): {summary.slower}.",
        f"Pairs slower than {INDUCTOR} in the same sense: {summary.slower_than_inductor}.",
        f"Median prediction error: {NOTHING if error is None else f'{error:.1%}'}.",
    ]


def _about(about: Mapping[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in about.items())


def _legend() -> str:
    return (
        "Times are medians in ms, of the slowest rank in each round. "
        f"`{BOUND}`: the same GEMM and collective started together with no dependency between "
        f"them. `{SERIAL_AGAIN}`: {SERIAL} measured twice. Ratios are paired by round, with their "
        "95 % sign-test interval. "
        f"`{SERIAL}` is called eagerly: it is spared what torch.compile adds to every call, which "
        f"`{INDUCTOR}` and `{OVERLAPC}` pay alike, and which shows in the smallest shapes. "
        "Shapes marked * are extremes, where the plan should be serial or overlap cannot gain "
        "much; they count for slower pairs, not for the share of the bound."
    )


def _table(rows: Sequence[Row]) -> str:
    names = list(rows[0].samples.seconds)
    header = ["rate", "M×N×K", *names, "A/A", "4, 12 parts of bound"]
    if OVERLAPC in names:
        header += [
            "speedup",
            f"{INDUCTOR} / {OVERLAPC}",
            "of bound",
            "predicted / measured",
            "plan",
        ]
    lines = [_line(header), _line(["---"] * len(header))]
    for _, of_rate in groupby(rows, key=lambda row: row.pair.rate):
        lines += [_line(_cells(row, names)) for row in of_rate]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    parts = [name for name in names if name.endswith("parts")]
    cells = [
        row.pair.rate,
        f"{row.pair.shape}{' *' if row.pair.is_extreme else ''}",
        *(_milliseconds(row.samples.median(name)) for name in names),
        str(row.samples.ratio(SERIAL, SERIAL_AGAIN)),
        ", ".join(f"{row.share_of_bound(name):.2f}" for name in parts),
    ]
    if not row.has_overlapc:
        return cells
    ratio = row.prediction_ratio
    return [
        *cells,
        f"{row.speedup}{' slower' if row.is_slower else ''}",
        f"{row.samples.ratio(INDUCTOR, OVERLAPC).median:.3f}",
        f"{row.share_of_bound(OVERLAPC):.3f}",
        NOTHING if ratio is None else f"{ratio:.2f}",
        _plan(row.prediction),
    ]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds >= 1e-3 else f"{seconds * 1e3:.2f}"


def _plan(prediction: Prediction | None) -> str:
    if prediction is None:
        return NOTHING
    return f"{prediction.schedule}: {format_rows(prediction.rows)}"
