"""Linear layers of few rows on a GPU: checked, then timed against the library, weights cold.

Tables: how much memory a plain read moves, every kernel against float64, each layer at each row
count against what Inductor would run, and what a table of this machine would hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.deadline import Deadline
from benchmarks.gpu_chains import WrongResult
from benchmarks.gpu_device import DTYPE, architecture, device, sms
from benchmarks.gpu_worker import Row
from overlapc.codegen.linear_check import LinearCase
from overlapc.codegen.linear_choice import linear_spec_for
from overlapc.codegen.linear_kernel import build_linear
from overlapc.planning.linear import FORCED, Gain, LinearProblem, LinearTrial, choose
from overlapc.planning.linear_costs import weight_bytes
from overlapc.planning.linear_tiles import FLAT, GEMV, TILE_ROWS
from overlapc.planning.target import Target
from overlapc.runtime.kernels import lowered_program
from overlapc.runtime.linear_spec import LayerSpec
from overlapc.runtime.linear_trials import LinearTrials
from overlapc.runtime.program import ROWS, WHOLE, Program, Ref, Step

READ, CHECKED, SPEED, REGIONS = "Reading", "Values", "Speed", "Regions"
TABLES = (READ, CHECKED, SPEED, REGIONS)

LAYERS = {
    "Llama-3 8B gate, up": (14336, 4096, True),
    "Llama-3 8B down": (4096, 14336, False),
    "Llama-3 8B qkv": (6144, 4096, False),
    "Llama-3 8B o": (4096, 4096, False),
    "Qwen3-32B gate, up": (25600, 5120, True),
    "Qwen3-32B down": (5120, 25600, False),
    "Llama-3 70B gate, up": (28672, 8192, True),
    "Llama-3 70B down": (8192, 28672, False),
    "Llama-3 70B qkv": (10240, 8192, False),
    "Llama-3 70B o": (8192, 8192, False),
    "Qwen3-8B gate, up": (12288, 4096, True),
    "Qwen3-8B down": (4096, 12288, False),
    "Llama-3 8B head": (128256, 4096, False),
}
"""Columns, contracted size, and whether gate and up are one launch; the most telling first."""
COUNTS = (1, 8, 16, 2, 4, 32, 64)
CHECK_SIZES = ((1000, 776), (4096, 4096))
"""n, k: ragged, and whole tiles with a split k."""
READ_BYTES = 1 << 30

Done = Mapping[str, Sequence[Mapping[str, Any]]]


def program(pair: bool, epilogue: str = "") -> tuple[Program, int]:
    """A layer's program, and how many weights it has: alone, a gated pair, or with a residual."""
    operand, value = (lambda i: Ref("operand", i)), (lambda i: Ref("value", i))
    steps = [Step("aten.mm.default", (operand(0), operand(1)))]
    modes = [ROWS, WHOLE]
    if pair:
        modes.append(WHOLE)
        steps += [
            Step("aten.silu.default", (value(0),)),
            Step("aten.mm.default", (operand(0), operand(2))),
            Step("aten.mul.Tensor", (value(1), value(2))),
        ]
    if epilogue == "residual":
        modes.append(ROWS)
        steps.append(Step("aten.add.Tensor", (value(len(steps) - 1), operand(len(modes) - 1))))
    return Program(tuple(modes), tuple(steps), None, (value(len(steps) - 1),)), 1 + pair


def like(its: Program, weights: int, n: int, k: int) -> list[torch.Tensor]:
    """Operands without content: one row, weights [n, k], and what an epilogue reads."""
    kind = getattr(torch, DTYPE)
    x = torch.empty(1, k, dtype=kind, device="meta")
    held = [torch.empty(n, k, dtype=kind, device="meta").t() for _ in range(weights)]
    more = len(its.modes) - 1 - weights
    return [x, *held, *(torch.empty(1, n, dtype=kind, device="meta") for _ in range(more))]


def reading(deadline: Deadline) -> dict[str, Any]:
    """Bytes a second that a sum of a large tensor reads: what no layer can beat."""
    from benchmarks.gpu_timing import measure_on_device

    x = torch.empty(READ_BYTES // 4, device="cuda").normal_()
    samples = measure_on_device({"sum": x.sum}, deadline, seed=0)
    return {"row": "a sum of 1 GiB", "TB/s": READ_BYTES / samples.median("sum") / 1e12}


def values(deadline: Deadline, way: str, rows: int, pair: bool) -> dict[str, Any]:
    """One kind of kernel on random operands and a poisoned C, against float64."""
    torch.manual_seed(rows)
    its, weights = program(pair, "" if pair else "residual")
    errors: dict[str, float] = {}
    for n, k in CHECK_SIZES:
        given = like(its, weights, n, k)
        lowered = lowered_program(its, given, 2)
        spec = linear_spec_for(
            way, rows, given[0], given[1 : 1 + weights], lowered,
            architecture=architecture(), sms=sms(),
        )  # fmt: skip
        for m in {1, max(1, rows - 1), rows}:
            case = LinearCase.random(build_linear(spec), (m, n, k), "cuda")
            for _ in range(2):  # the second with counters that the first has left
                case.outs[0].fill_(torch.nan)
                case.run()
                errors[str(spec)] = max(errors.get(str(spec), 0.0), case.error())
    worst = max(errors, key=lambda text: errors[text])
    if not errors[worst] <= 1:
        raise WrongResult(f"{errors[worst]:.3g} of what roundings explain: {worst}")
    return {"row": name_of(way, rows, pair), "largest error": errors[worst]}


def name_of(way: str, rows: int, pair: bool) -> str:
    """Of a kind of kernel."""
    return f"{way}, {rows} rows{', two weights' if pair else ', residual'}"


def speed(deadline: Deadline, layer: str, rows: int, read: float) -> dict[str, Any]:
    """One layer at one row count, in every way, against the library as Inductor would call it."""
    n, k, pair = LAYERS[layer]
    its, weights = program(pair)
    trials = LinearTrials(LayerSpec(its, FORCED), like(its, weights, n, k), device())
    trial = trials.trial(rows, deadline.left())
    bytes_read = weight_bytes(LinearProblem(n, k, DTYPE, weights=weights))
    best = max(trial.gains, key=lambda gain: gain.median, default=None)
    row: dict[str, Any] = {"row": f"{layer}, {rows} rows", "layer": layer, "rows": rows}
    row["library us"] = 1e6 * trial.library_seconds
    for gain in trial.gains:
        row[f"{gain.implementation} of library"] = [gain.median, gain.low, gain.high]
    if best is not None:
        rate = bytes_read * best.median / trial.library_seconds
        row["TB/s"] = rate / 1e12
        row["share of reading"] = rate / 1e12 / read if read else None
    return row | {"trial": asdict(trial)}


def rows(done: Done, shipped: Target) -> Iterator[Row]:
    """Every row, in the order in which they are measured."""
    yield Row(READ, "a sum of 1 GiB", "benchmarks.gpu_linear.reading")
    for pair in (False, True):
        for way in (GEMV, FLAT):
            for count in TILE_ROWS[way]:
                given = {"way": way, "rows": count, "pair": pair}
                yield Row(CHECKED, name_of(way, count, pair), "benchmarks.gpu_linear.values", given)
    read = next((row["TB/s"] for row in done.get(READ, ()) if "TB/s" in row), 0.0)
    for count in COUNTS:
        for layer in LAYERS:
            given = {"layer": layer, "rows": count, "read": read}
            yield Row(SPEED, f"{layer}, {count} rows", "benchmarks.gpu_linear.speed", given)


def regions(speeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a table would hold of each layer, were row counts between `COUNTS` like those beside."""
    found = []
    for layer in LAYERS:
        trials = [
            LinearTrial(
                row["rows"], row["trial"]["library_seconds"],
                tuple(Gain(**gain) for gain in row["trial"]["gains"]),
            )
            for row in speeds
            if row.get("layer") == layer
        ]  # fmt: skip
        if trials:
            chosen = choose(sorted(trials, key=lambda trial: trial.rows), COUNTS)
            found.append({"row": layer, "regions": str(chosen), "measured at": len(trials)})
    return found


def summary(speeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The geometric mean of what dispatch gains, and its minimum, for single and paired layers."""
    found = []
    for name, pair in (("one weight", False), ("gate and up", True)):
        gains = [_dispatched(row) for row in speeds if row.get("layer") and _pairs(row) == pair]
        if gains:
            mean = math.exp(sum(map(math.log, gains)) / len(gains))
            found.append({"row": name, "rows": len(gains), "geomean": mean, "least": min(gains)})
    return found


def _pairs(row: Mapping[str, Any]) -> bool:
    return LAYERS[row["layer"]][2]


def _dispatched(row: Mapping[str, Any]) -> float:
    """The best gain that is repeatable; 1 where the library keeps the layer."""
    gains = [Gain(**gain) for gain in row["trial"]["gains"]]
    return max((gain.median for gain in gains if gain.is_repeatable), default=1.0)


def tables(done: Done, shipped: Target) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What a page shows, the conclusions first."""
    speeds = [row for row in done.get(SPEED, ()) if "trial" in row]
    return {
        "Summary": summary(speeds),
        REGIONS: regions(speeds),
        **{name: done.get(name, []) for name in (READ, CHECKED, SPEED)},
    }
