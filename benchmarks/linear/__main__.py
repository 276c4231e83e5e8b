"""Linear layers of few rows on a processor: Inductor against overlapc, paired.

``python -m benchmarks.linear`` (half an hour) calibrates the layers of a small Llama as ``overlapc
calibrate --linear`` does, in a cache of its own; then compiles each by Inductor, by Inductor with
all that a user may have it try, and by overlapc, and measures afresh from cold caches. It writes
linear.md and linear.json to benchmarks/results, and what was calibrated as linear_table.md and
linear_table.svg, with M1 and M2. ``--only down --rows 1,8 --seconds 1`` takes a minute or two.
``--llama`` measures layers as large as those of Llama-3 8B, ``--silu`` such as a bias and SiLU
follow; ``--append`` goes on with the rows that stand in the file, so that parts make one table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.linear import layers
from benchmarks.linear.candidates import calibrated, measured
from benchmarks.linear.plot import plot
from benchmarks.linear.rows import (
    LinearRow,
    cells,
    from_json,
    page,
    to_json,
)
from benchmarks.measuring.results import about, write_results

NAME = "linear"
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""The last is beyond all that an op takes: what it costs to leave it to the library."""
TUNED_ROWS = (1, 8, 64)
"""Where Inductor tries all it has as well, for seconds each."""


def earlier(path: Path) -> tuple[list[LinearRow], list[str]]:
    """What runs before wrote, and their commands."""
    if not path.exists():
        return [], []
    kept = json.loads(path.read_text())
    return [from_json(row) for row in kept["rows"]], [kept["about"]["command"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate, measure, print every row, and write all of it."""
    given = _parser().parse_args(argv)
    if given.name is None and (given.only or given.rows != ROWS or given.llama or given.silu):
        given.name = f"{NAME}_part"
    name, head = given.name or NAME, about("benchmarks.linear", argv or sys.argv[1:], 1)
    head = {k: v for k, v in head.items() if k not in ("ranks", "link")}
    head["threads"] = str(torch.get_num_threads())
    head["last cache"] = f"{layers.last_cache() >> 20} MiB"
    rows, commands = earlier(given.out / f"{name}.json") if given.append else ([], [])
    head["command"] = ", then ".join([*commands, head["command"]])
    for case in layers.cases(layers.LLAMA if given.llama else layers.SHAPES, silu=given.silu):
        if given.only not in str(case):
            continue
        plot(calibrated(case, given.calibrating), given.out, f"{name}_table")
        model = layers.Layers(case, case.weights)
        for count in given.rows:
            tunes = count in given.tuned
            rows.append(measured(case, model, count, given.seconds, tunes=tunes))
            print(" | ".join(cells(rows[-1])), flush=True)
            # Row by row: a run that is cut short leaves what it measured.
            write_results(given.out, name, head, list(map(to_json, rows)), page(rows, head))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.linear", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each row, about")
    text = "to calibrate a layer for, about, if its rounds do not take longer"
    parser.add_argument("--calibrating", type=float, default=20.0, help=text)
    parser.add_argument("--only", default="", help="layers whose text contains this")
    parser.add_argument("--rows", type=_counts, default=ROWS, help="row counts, by default all")
    text = "row counts at which Inductor tries all it has as well"
    parser.add_argument("--tuned", type=_counts, default=TUNED_ROWS, help=text)
    parser.add_argument("--llama", action="store_true", help="the layers of Llama-3 8B")
    parser.add_argument("--silu", action="store_true", help="a bias and SiLU follow each layer")
    parser.add_argument("--append", action="store_true", help="to the rows of an earlier run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", help="of the files, by default linear, or linear_part of a part")
    return parser


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    with torch.no_grad(), tempfile.TemporaryDirectory() as own:
        os.environ["XDG_CACHE_HOME"] = own  # the user's table is neither read nor written
        main()
