"""The overlap benchmark's results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.measuring.tables import NOTHING, listed, milliseconds, table
from benchmarks.overlap_link.rows import (
    BOUND,
    INDUCTOR,
    OVERLAPC,
    SERIAL,
    SERIAL_AGAIN,
    Prediction,
    Row,
    Summary,
    by_kind,
    summarise,
)
from overlapc.planning.schedule import format_rows

TITLES = {
    "gemm_all_reduce": "GEMM → all-reduce",
    "gemm_reduce_scatter": "GEMM → reduce-scatter",
    "all_gather_gemm": "all-gather → GEMM",
    "gemm_all_to_all": "GEMM → all-to-all",
    "all_to_all_gemm": "all-to-all → GEMM",
}


def markdown(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """The whole page: how it was measured, the summary, and a table for each kind of chain."""
    parts = [
        f"# Chains of a GEMM and a collective over an emulated link, {rows[0].pair.ranks} ranks",
        listed(about),
        _legend(),
        overview(rows),
        "\n".join(f"* {line}" for line in summary_lines(summarise(rows))),
    ]
    for kind, of_kind in by_kind(rows).items():
        parts += [f"## {TITLES[kind]}", _table(of_kind), _origins(of_kind)]
    return "\n\n".join(parts) + "\n"


def overview(rows: Sequence[Row]) -> str:
    """A line for each kind of chain: the conclusions side by side."""
    names = [name for name in rows[0].samples.seconds if name not in (BOUND, SERIAL_AGAIN)]
    header = ["chain", "pairs", *(f"{name}, of bound" for name in names), "noise"]
    if OVERLAPC in names:
        header += ["slower", f"slower than {INDUCTOR}", "prediction error"]
    lines = []
    for kind, of_kind in by_kind(rows).items():
        found = summarise(of_kind)
        shares = [_number(found.shares.get(name)) for name in names]
        cells = [TITLES[kind], str(found.pairs), *shares, f"{found.noise:.1%}"]
        if OVERLAPC in names:
            cells += [
                f"{found.slower_usual} of {found.pairs}, all {found.slower} of {len(of_kind)}",
                str(found.slower_than_inductor),
                _percent(found.prediction_error),
            ]
        lines.append(cells)
    return table(header, lines)


def summary_lines(summary: Summary) -> list[str]:
    """The conclusions, one sentence each."""
    shares = ", ".join(f"{name} {share:.3f}" for name, share in summary.shares.items())
    lines = [
        f"Median share of the bound over {summary.pairs} pairs: {shares or NOTHING}.",
        f"Noise (median of |{SERIAL_AGAIN} / {SERIAL} - 1|): {summary.noise:.1%}.",
    ]
    if summary.worst is None:
        return [*lines, "overlapc was not measured in this run."]
    return [
        *lines,
        f"Worst {SERIAL} / {OVERLAPC} over all pairs: {summary.worst}.",
        f"Slower pairs (95 % interval of {SERIAL} / {OVERLAPC} below 0.98): {summary.slower}, "
        f"of which {summary.slower_usual} are no extremes.",
        f"Pairs slower than {INDUCTOR} in the same sense: {summary.slower_than_inductor}.",
        f"Median prediction error: {_percent(summary.prediction_error)}; "
        f"extremes included, {_percent(summary.prediction_error_all)}.",
    ]


def _legend() -> str:
    return (
        "M×N×K is the GEMM of one rank; the rows of an all-gather's are the gathered ones. "
        "Times are medians in ms, of the slowest rank in each round. "
        f"`{BOUND}`: the same GEMM and collective started together with no dependency between "
        f"them. `{SERIAL_AGAIN}`: {SERIAL} measured twice. Ratios are paired by round, with their "
        "95 % sign-test interval. Parts are of equal size and scheduled by hand. "
        f"`{SERIAL}` is called eagerly: it is spared what torch.compile adds to every call, which "
        f"`{INDUCTOR}` and `{OVERLAPC}` pay alike, and which shows in the smallest shapes. "
        "Shapes marked * are extremes, where the plan should be serial or overlap cannot gain "
        "much; they count for slower pairs, not for the share of the bound. gloo reduce-scatters "
        "by an all-reduce, which sends twice as much as an all-to-all and a sum: the bound is the "
        "quicker of both in the median, as it is where gloo may use one direction at a time only."
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
    return table(header, [_cells(row, names) for row in rows])


def _origins(rows: Sequence[Row]) -> str:
    """What each shape is of, once."""
    shapes = dict.fromkeys(row.pair.shape for row in rows)
    return "Shapes: " + "; ".join(f"{shape}: {shape.origin}" for shape in shapes) + "."


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    parts = [name for name in names if name.endswith("parts")]
    cells = [
        row.pair.rate,
        f"{row.pair.shape}{' *' if row.pair.is_extreme else ''}",
        *(milliseconds(row.samples.median(name)) for name in names),
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
        _number(ratio, 2),
        _plan(row.prediction),
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1%}"


def _plan(prediction: Prediction | None) -> str:
    if prediction is None:
        return NOTHING
    of_columns = " columns" if prediction.by == "columns" else ""
    return f"{prediction.schedule}: {format_rows(prediction.rows)}{of_columns}"
