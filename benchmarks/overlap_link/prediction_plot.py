"""How far predictions were off: a histogram and a cumulative plot, made of benchmark results.

    python -m benchmarks.overlap_link.prediction_plot benchmarks/results/overlap_link.json

Writes ``prediction_error.svg`` beside the first file of results, or where ``--out`` says. Needs
matplotlib (``pip install overlapc[bench]``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.overlap_link.rows import Row, read_rows
from benchmarks.overlap_link.table import TITLES
from overlapc.errors import CommandError

GOAL = 0.03
"""The median error that the planner is to stay below."""

SPAN = 0.2
"""The histogram shows errors up to this; larger ones stand in its outermost bins."""

BINS = 40
NAME = "prediction_error.svg"


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the files of the command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.overlap_link.prediction_plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="+", help="JSON of benchmarks.overlap_link")
    parser.add_argument("--out", type=Path, help="the SVG to write")
    arguments = parser.parse_args(argv)
    rows = [row for path in arguments.results for row in read_rows(path)]
    out = arguments.out or arguments.results[0].parent / NAME
    draw(rows, out)
    print(f"written: {out}")
    return 0


def ratios(rows: Sequence[Row], *, extremes: bool = False) -> dict[str, list[float]]:
    """Predicted / measured of each kind of chain, sorted; of extremes too if asked for."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.prediction_ratio is not None and (extremes or not row.pair.is_extreme):
            found.setdefault(row.pair.kind, []).append(row.prediction_ratio)
    return {kind: sorted(values) for kind, values in found.items()}


def within_span(values: Sequence[float]) -> list[float]:
    """Values that lie outside the histogram, moved to its ends."""
    return [min(max(value, 1 - SPAN), 1 + SPAN) for value in values]


def cumulative(values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Deviations from 1 in rising order, and the share of the values that deviate no more."""
    deviations = sorted(abs(value - 1) for value in values)
    count = len(deviations)
    return deviations, [(index + 1) / count for index in range(count)]


def draw(rows: Sequence[Row], out: Path) -> None:
    """Write the plot as SVG, the same text for the same rows; CommandError without predictions."""
    usual = ratios(rows)
    if not usual:
        raise CommandError(
            "None of these results holds a prediction.",
            where="benchmarks.overlap_link.prediction_plot",
            remedy="run benchmarks.overlap_link without --no-overlapc first",
        )
    import matplotlib

    matplotlib.use("svg")
    # Names of its elements are random otherwise, and every run would give another file.
    matplotlib.rcParams["svg.hashsalt"] = "overlapc"
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    _histogram(left, usual)
    _cumulative(right, usual, ratios(rows, extremes=True))
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


def _histogram(axes: Any, by_kind: Mapping[str, Sequence[float]]) -> None:
    edges = [1 - SPAN + 2 * SPAN * index / BINS for index in range(BINS + 1)]
    values = [within_span(of_kind) for of_kind in by_kind.values()]
    labels = [_label(kind, of_kind) for kind, of_kind in by_kind.items()]
    axes.hist(values, bins=edges, stacked=True, label=labels)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xlabel="predicted / measured seconds", ylabel="pairs", xlim=(1 - SPAN, 1 + SPAN))
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _cumulative(
    axes: Any, usual: Mapping[str, Sequence[float]], everything: Mapping[str, Sequence[float]]
) -> None:
    for kind, values in usual.items():
        axes.step(*cumulative(values), where="post", label=TITLES[kind])
    together = [value for values in usual.values() for value in values]
    axes.step(*cumulative(together), where="post", color="black", label="all of these")
    extremes_too = [value for values in everything.values() for value in values]
    if len(extremes_too) > len(together):
        style: dict[str, Any] = {"color": "black", "linestyle": ":", "label": "extremes too"}
        axes.step(*cumulative(extremes_too), where="post", **style)
    axes.axvline(GOAL, color="gray", linewidth=0.8)
    axes.axhline(0.5, color="gray", linewidth=0.8)
    axes.set(
        xlabel="|predicted / measured − 1|", ylabel="share of pairs", xlim=(0, SPAN), ylim=(0, 1)
    )
    axes.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _label(kind: str, values: Sequence[float]) -> str:
    deviations, _ = cumulative(values)
    middle = len(deviations) // 2
    median = (deviations[middle] + deviations[-1 - middle]) / 2
    return f"{TITLES[kind]}: {len(values)} pairs, median error {median:.1%}"


if __name__ == "__main__":
    sys.exit(main())
