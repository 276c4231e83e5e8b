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
import copy
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor import config as inductor_config

import overlapc
from benchmarks.attention import Alone
from benchmarks.jobs import about, write_results
from benchmarks.linear_plot import plot
from benchmarks.linear_rows import (
    AGAIN,
    INDUCTOR,
    OVERLAPC,
    OVERLAPC_VARYING,
    TUNED,
    VARYING,
    LinearRow,
    cells,
    from_json,
    page,
    to_json,
)
from benchmarks.paired import Samples, measure
from overlapc.planning.linear.table import LinearTable
from overlapc.tuning.linear import calibrate_linears, layers_of

NAME = "linear"
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""The last is beyond all that an op takes: what it costs to leave it to the library."""
VARYING_ROWS, TUNED_ROWS = (2, 8, 64, 128), (1, 8, 64)
"""Where these are compiled as well, each for seconds."""
SHAPES = {"qkv": (1536, 1024), "o": (1024, 1024), "gate": (2816, 1024), "down": (1024, 2816),
          "head": (32000, 1024)}  # fmt: skip
"""Columns and contracted size of the layers of a small Llama, and of its vocabulary."""
LLAMA = {"qkv": (6144, 4096), "o": (4096, 4096), "gate": (14336, 4096), "down": (4096, 14336)}
"""Of Llama-3 8B."""
COLD_BYTES = 96 << 20
"""Of weights of one call, at least; more where the last cache is larger."""
MOST_WEIGHTS = 64
FEWEST_ROUNDS, MOST_ROUNDS = 15, 100
EVERYTHING = {"max_autotune": True, "freezing": True}
"""Inductor has C++ templates only for weights that are frozen."""

Call = Callable[[], Any]


def last_cache() -> int:
    """Bytes of the largest cache of this processor; zero where Linux does not say."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(size.read_text().removesuffix("K\n")) << 10 for size in sizes), default=0)


@dataclass(frozen=True)
class Case:
    """One layer."""

    name: str
    n: int
    k: int
    dtype: torch.dtype
    silu: bool = False
    """Whether a bias and SiLU follow the product."""

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}, {self.n}x{self.k} {dtype}{', then silu' if self.silu else ''}"

    @property
    def weights(self) -> int:
        """How many a call reads."""
        return min(MOST_WEIGHTS, max(2, math.ceil(max(COLD_BYTES, last_cache()) / self.bytes)))

    @property
    def bytes(self) -> int:
        """Of one weight."""
        return self.n * self.k * self.dtype.itemsize

    def x(self, rows: int) -> torch.Tensor:
        """So many random rows."""
        return torch.randn(rows, self.k).to(self.dtype)


class Layers(nn.Module):
    """Layers that are alike but for their weights, of the same rows.

    One graph calls all of them, as a model's does, so that what a call of a graph costs by itself
    is no part of what is compared.
    """

    def __init__(self, case: Case, count: int) -> None:
        super().__init__()
        made = [nn.Linear(case.k, case.n, bias=case.silu, dtype=case.dtype) for _ in range(count)]
        self.layers, self.after = nn.ModuleList(made), F.silu if case.silu else nn.Identity()

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The result of each."""
        return [self.after(layer(x)) for layer in self.layers]


def cases(shapes: Mapping[str, tuple[int, int]], *, silu: bool = False) -> Iterator[Case]:
    """Every layer in both dtypes."""
    for dtype in (torch.float32, torch.bfloat16):
        for name, (n, k) in shapes.items():
            yield Case(name, n, k, dtype, silu)


def calibrated(case: Case, seconds: float) -> LinearTable:
    """Measure the case's layer, and remember it with those before."""
    return calibrate_linears(layers_of(Layers(case, 1), (case.x(8),)), seconds=seconds)


def compiled(model: nn.Module, x: torch.Tensor, **choices: Any) -> Call:
    """A call of the model as compiled with these choices of ``torch.compile``, warm.

    Dynamo keeps those of other choices beside, for it tells them apart. Options are set while it
    traces as well: only so does it take weights for constants, which may be frozen.
    """
    run = torch.compile(model, **choices)
    with inductor_config.patch(choices.get("options", {})):
        run(x)
    return lambda: run(x)


def candidates(model: nn.Module, x: torch.Tensor, *, tunes: bool) -> dict[str, Call]:
    """A warm call for each way to compile the model for these rows."""
    torch._dynamo.reset()
    rows = len(x)
    inductor = compiled(model, x, dynamic=False)
    found = {INDUCTOR: inductor, AGAIN: inductor}
    found[OVERLAPC] = compiled(model, x, backend="overlapc", dynamic=False)
    if rows in VARYING_ROWS:
        found[VARYING] = compiled(model, x, dynamic=True)
        found[OVERLAPC_VARYING] = compiled(model, x, backend="overlapc", dynamic=True)
    if tunes:
        found[TUNED] = compiled(model, x, dynamic=False, options=EVERYTHING)
    return found


def timed(found: dict[str, Call], seconds: float) -> Samples:
    """Rounds of about ``seconds`` in total."""
    for call in found.values():
        call()
    start = time.perf_counter()
    for call in found.values():
        call()
    once = time.perf_counter() - start
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / once)))
    return measure(found, Alone(), rounds=rounds, seed=0)


def decided(model: nn.Module, x: torch.Tensor, *, dynamic: bool) -> str:
    """What overlapc does with each of the layers: ``rewritten [measured]``."""
    sites = overlapc.explain(model, dynamic=dynamic)(x).sites
    return ", ".join(dict.fromkeys(f"{site.decision} [{site.code}]" for site in sites))


def error_of(model: Layers, x: torch.Tensor, call: Call) -> float:
    """Of the first layer's values in a call, relative to the largest, against float64."""
    layer = copy.deepcopy(model.layers[0]).double()
    (first, *_), right = call(), model.after(layer(x.double()))
    return float((first.double() - right).abs().max() / right.abs().max())


def measured(case: Case, model: Layers, rows: int, seconds: float, *, tunes: bool) -> LinearRow:
    """Compile and time one layer at one row count."""
    x = case.x(rows)
    one = Layers(case, 1)
    decision = decided(one, x, dynamic=False)
    varying = decided(one, x, dynamic=True) if rows in VARYING_ROWS else ""
    found = candidates(model, x, tunes=tunes)
    error = max(error_of(model, x, call) for name, call in found.items() if OVERLAPC in name)
    read = case.weights * case.bytes
    times = timed(found, seconds)
    return LinearRow(str(case), rows, case.weights, read, times, decision, varying, error)


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
    head["last cache"] = f"{last_cache() >> 20} MiB"
    rows, commands = earlier(given.out / f"{name}.json") if given.append else ([], [])
    head["command"] = ", then ".join([*commands, head["command"]])
    for case in cases(LLAMA if given.llama else SHAPES, silu=given.silu):
        if given.only not in str(case):
            continue
        plot(calibrated(case, given.calibrating), given.out, f"{name}_table")
        model = Layers(case, case.weights)
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
