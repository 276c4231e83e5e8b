"""A table of linear layers, drawn: seconds of every implementation by rows, with M1 and M2, as they
were measured and as the cost model had predicted them.

    python -m benchmarks.linear.plot ~/.cache/overlapc/linear/TABLE.json --out benchmarks/results

Writes one SVG with a panel a layer, and the same as a Markdown table. Needs matplotlib
(``pip install overlapc[bench]``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from overlapc.errors import TargetError
from overlapc.planning.linear.regions import LIBRARY, OURS, LinearTrial, Regions
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.records import from_value
from overlapc.planning.tables import Machine

NAME = "linear_table"
WIDTH, HEIGHT = 4.0, 3.0
"""Of a panel, in inches."""
COLUMNS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the file of the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.linear.plot", description=__doc__)
    parser.add_argument("table", type=Path, help="what overlapc calibrate --linear stored")
    parser.add_argument("--out", type=Path, help="folder to write to, by default the table's")
    given = parser.parse_args(argv)
    try:
        table = read(given.table)
    except (OSError, ValueError, KeyError, TypeError, TargetError) as error:
        what = getattr(error, "what", str(error) or repr(error))
        remedy = "name a file that overlapc calibrate --linear stored with this version"
        parser.error(f"{given.table} holds no table of linear layers: {what} Remedy: {remedy}")
    folder = given.out or given.table.parent
    plot(table, folder)
    print(f"written: {folder / NAME}.svg, {folder / NAME}.md")
    return 0


def plot(table: LinearTable, folder: Path, name: str = NAME) -> None:
    """Write NAME.svg and NAME.md to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(table, folder / f"{name}.svg")
    (folder / f"{name}.md").write_text(page(table))


def read(path: Path) -> LinearTable:
    """The table in a file, of whatever machine: it is only looked at."""
    machine = from_value(Machine, json.loads(path.read_text())["machine"])
    return LinearTable.load(path, machine)


def curves(trials: Sequence[LinearTrial]) -> dict[str, list[tuple[int, float, float, float]]]:
    """By implementation: rows, and its seconds, median and interval, as far as it was measured.

    Seconds follow from the ratio to the library, which is what was compared.
    """
    found: dict[str, list[tuple[int, float, float, float]]] = {LIBRARY: []}
    for trial in trials:
        seconds = trial.library_seconds
        found[LIBRARY].append((trial.rows, seconds, seconds, seconds))
        for gain in trial.gains:
            spread = (seconds / gain.median, seconds / gain.high, seconds / gain.low)
            found.setdefault(gain.implementation, []).append((trial.rows, *spread))
    return found


def page(table: LinearTable) -> str:
    """The table as Markdown."""
    lines = [f"# Linear layers on {table.machine}", ""]
    lines += ["| layer | rows | library, us | gemv | flat | chosen |", "|---|---|---|---|---|---|"]
    for entry in table.entries:
        for trial in entry.trials:
            gains = [trial.gain(way) for way in OURS]
            shown = [f"{g.median:.2f} [{g.low:.2f}, {g.high:.2f}]" if g else "-" for g in gains]
            cells = [entry.problem.text("~"), trial.rows, f"{1e6 * trial.library_seconds:.1f}"]
            chosen = entry.regions.implementation(trial.rows)
            lines.append(f"| {' | '.join(map(str, (*cells, *shown, chosen)))} |")
    lines += ["", "Ratios are of the library's time, paired by round, with their 95 % interval."]
    if any(entry.predicted for entry in table.entries):
        lines += ["", *predicted_page(table)]
    return "\n".join(lines) + "\n"


def predicted_page(table: LinearTable) -> list[str]:
    """M1 and M2 as measured and as predicted; seconds and ratios predicted beside the measured."""
    lines = ["| layer | target | M1, M2 measured | predicted |", "|---|---|---|---|"]
    more = ["| layer | rows | library, us | predicted | gemv | predicted | flat | predicted |"]
    more.append(f"|{'---|' * 8}")
    for entry in table.entries:
        if entry.predicted is None:
            continue
        name, its = entry.problem.text("~"), entry.predicted
        lines.append(f"| {name} | {its.target} | {_ends(entry.regions)} | {_ends(its.regions)} |")
        for trial in entry.trials:
            if (before := its.trial(trial.rows)) is None:
                continue
            cells = [f"{1e6 * one.library_seconds:.1f}" for one in (trial, before)]
            for way in OURS:
                gains = [one.gain(way) for one in (trial, before)]
                cells += [f"{gain.median:.2f}" if gain else "-" for gain in gains]
            more.append(f"| {' | '.join((name, str(trial.rows), *cells))} |")
    return [*lines, "", "What is predicted was said before; it decides nothing.", "", *more]


def _ends(regions: Regions) -> str:
    return "-" if regions.is_empty else f"{regions.flat_from}, {regions.library_from}"


def draw(table: LinearTable, out: Path) -> None:
    """Write the plot as SVG, the same text for the same table."""
    import matplotlib

    matplotlib.use("svg")
    # Names of its elements are random otherwise, and every run would give another file.
    matplotlib.rcParams["svg.hashsalt"] = "overlapc"
    from matplotlib import pyplot

    down = max(1, -(-len(table.entries) // COLUMNS))
    size = (WIDTH * COLUMNS, HEIGHT * down)
    figure, grid = pyplot.subplots(down, COLUMNS, figsize=size, squeeze=False)
    panels = list(grid.flat)
    for entry, panel in zip(table.entries, panels, strict=False):
        colors = {name: f"C{index}" for index, name in enumerate((LIBRARY, *OURS))}
        for name, points in curves(entry.trials).items():
            rows, middle, low, high = zip(*points, strict=True)
            panel.plot(rows, middle, marker="o", markersize=3, color=colors[name], label=name)
            panel.fill_between(rows, low, high, alpha=0.2, color=colors[name])
        if not entry.regions.is_empty:
            panel.axvline(entry.regions.flat_from, color="grey", linestyle=":", label="M1")
            panel.axvline(entry.regions.library_from, color="grey", linestyle="--", label="M2")
        if entry.predicted:
            for name, points in curves(entry.predicted.trials).items():
                rows, middle, *_ = zip(*points, strict=True)
                panel.plot(rows, middle, linewidth=0.8, linestyle="-.", color=colors[name])
            its = entry.predicted.regions
            if not its.is_empty:
                label = "M1, M2 predicted"
                panel.axvline(its.flat_from, color="tan", linestyle=":", label=label)
                panel.axvline(its.library_from, color="tan", linestyle="--")
        panel.set(title=entry.problem.text("~"), xscale="log", yscale="log")
        panel.set(xlabel="rows", ylabel="seconds")
        panel.legend(fontsize="x-small")
    for panel in panels[len(table.entries) :]:
        panel.set_axis_off()
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
