"""Linear layers of few rows on a GPU: checked, then timed against the library, weights cold.

Tables: how much memory a plain read moves, every kernel against float64, what a call of the op
costs the host, each layer at each row count against what Inductor would run, and what a table of
this machine would hold.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.gpu.device import DTYPE, architecture, device, sms
from benchmarks.gpu.worker import Row, WrongResult
from benchmarks.measuring.deadline import Deadline
from benchmarks.measuring.paired import round_orders
from overlapc.codegen.linear.check import LinearCase
from overlapc.codegen.linear.choice import linear_spec_for
from overlapc.codegen.linear.kernel import build_linear
from overlapc.codegen.linear.spec import LinearSpec
from overlapc.planning.linear.regions import (
    FORCED,
    LIBRARY,
    Gain,
    LinearProblem,
    LinearTrial,
    Regions,
    choose,
)
from overlapc.planning.linear.tiles import FLAT, GEMV, TILE_ROWS, most_counters
from overlapc.planning.target import Target
from overlapc.runtime.linear import op as linear
from overlapc.runtime.linear.kernels import lowered_layer
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.linear.trials import LinearTrials
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

READ, CHECKED, SPEED, REGIONS = "Reading", "Values", "Speed", "Regions"
DISPATCH = "What a call costs the host"
TABLES = (READ, CHECKED, DISPATCH, SPEED, REGIONS)


@dataclass(frozen=True)
class Shape:
    """Layers of the same rows as one launch computes them."""

    columns: tuple[int, ...]
    """Of each result."""
    k: int
    weights: int = 1
    """Of each result: two are gate and up."""
    is_normed: bool = False
    """Whether the launch norms its rows first."""


@dataclass(frozen=True)
class Kind:
    """A kernel to check."""

    shape: Shape
    epilogue: str = ""
    """"residual", or "bias, gelu"."""
    layout: str = "col"
    """Of weights as [k, n]."""
    held: str = ""
    """Dtype of weights where it is narrower."""
    scales: str = ""
    """Dtype of scales of columns, or of groups of ``group`` k."""
    group: int = 0
    zeros: str = ""
    """Dtype of zero points of groups."""

    def spec(self, way: str, rows: int, n: int, k: int) -> LinearSpec:
        """Its kernel for a weight of these sizes on this device."""
        its = replace(self.shape, columns=(n,) * len(self.shape.columns), k=k)
        operands = like(its, self.epilogue)
        layer = lowered_layer(program(its, self.epilogue), operands)

        def of_weights(dtype: str, rows: int, is_turned: bool = False) -> list[torch.Tensor]:
            shape = (n, rows) if is_turned else (rows, n)
            made = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
            return [made.t() if is_turned else made] * (its.weights * len(its.columns))

        groups = k // self.group if self.group else 1
        return linear_spec_for(
            way, rows, operands[0],
            of_weights(self.held or DTYPE, k, self.layout == "col"), layer.lowered[0],
            architecture=architecture(), sms=sms(),
            scales=of_weights(self.scales, groups) if self.scales else [], group=self.group,
            zeros=of_weights(self.zeros, groups) if self.zeros else [],
            eps=layer.norm.eps if layer.norm else None, gain=layer.gain(operands),
        )  # fmt: skip


LAYERS = {
    "Llama-3 8B gate, up": Shape((14336,), 4096, weights=2),
    "Llama-3 8B down": Shape((4096,), 14336),
    "Llama-3 8B, Qwen3-8B qkv": Shape((6144,), 4096),
    "Llama-3 8B, Qwen3-8B o": Shape((4096,), 4096),
    "Llama-3 8B q, k, v": Shape((4096, 1024, 1024), 4096),
    "Llama-3 8B norm, q, k, v": Shape((4096, 1024, 1024), 4096, is_normed=True),
    "Llama-3 8B norm, gate, up": Shape((14336,), 4096, weights=2, is_normed=True),
    "Qwen3-32B gate, up": Shape((25600,), 5120, weights=2),
    "Qwen3-32B down": Shape((5120,), 25600),
    "Llama-3 70B gate, up": Shape((28672,), 8192, weights=2),
    "Llama-3 70B down": Shape((8192,), 28672),
    "Llama-3 70B qkv": Shape((10240,), 8192),
    "Llama-3 70B o": Shape((8192,), 8192),
    "Qwen3-32B qkv": Shape((10240,), 5120),
    "Qwen3-32B o": Shape((5120,), 8192),
    "Qwen3-8B gate, up": Shape((12288,), 4096, weights=2),
    "Qwen3-8B down": Shape((4096,), 12288),
    "Llama-3 8B head": Shape((128256,), 4096),
}
"""The most telling first."""
ONE = Shape((1,), 1)
CHECKED_AS = {
    "residual": Kind(ONE, "residual"),
    "two weights": Kind(Shape((1,), 1, weights=2)),
    "three results, normed": Kind(Shape((1, 1, 1), 1, is_normed=True)),
    "[k, n], bias and GELU": Kind(ONE, "bias, gelu", layout="row"),
    "int8 by columns": Kind(ONE, held="int8", scales="float32"),
    "int8 by groups, zero points": Kind(ONE, held="int8", scales=DTYPE, group=8, zeros="int8"),
    "fp8 by columns, [k, n]": Kind(ONE, layout="row", held="float8_e4m3fn", scales="float32"),
}
"""Kinds of kernels, of any sizes."""
COUNTS = (1, 8, 16, 2, 4, 32, 64)
CHECK_SIZES = ((1000, 776), (4096, 4096))
"""n, k: ragged, and whole tiles with a split k."""
READ_BYTES = 1 << 30
PLAIN = "a sum or a copy of 1 GiB"
BY_DISPATCH, READ_BY_DISPATCH = "by dispatch, of library", "by dispatch, share of reading"
LARGE_MIB = 32
"""Of a weight from which on a layer is to read nearly as fast as anything can."""
TINY = (1, 256, 256)
"""Rows, n and k of a layer that a device computes sooner than a host launches it."""
CALLS, ROUNDS = 200, 9
"""Of it in a round, and rounds."""

Done = Mapping[str, Sequence[Mapping[str, Any]]]


def program(its: Shape, epilogue: str = "") -> Program:
    """Layers alone, of gated pairs, with a residual, or with a bias and GELU. Operands are the
    rows, every weight, the norm's gain, and the residual or bias."""
    operand, value = (lambda i: Ref("operand", i)), (lambda i: Ref("value", i))
    count = len(its.columns) * its.weights
    modes, steps, kept = [ROWS, *[WHOLE] * count], list[Step](), list[Ref]()
    rows = operand(0)
    if its.is_normed:
        steps += _norm(rows, operand(len(modes)))
        modes.append(WHOLE)
        rows = value(len(steps) - 1)
    for first in range(1, count + 1, its.weights):
        if epilogue == "bias, gelu":
            modes.append(WHOLE)
            bias = operand(len(modes) - 1)
            steps.append(Step("aten.addmm.default", (bias, rows, operand(first))))
            steps.append(Step("aten.gelu.default", (value(len(steps) - 1),)))
        else:
            steps.append(Step("aten.mm.default", (rows, operand(first))))
        if its.weights > 1:
            gate = len(steps) - 1
            steps += [
                Step("aten.silu.default", (value(gate),)),
                Step("aten.mm.default", (rows, operand(first + 1))),
                Step("aten.mul.Tensor", (value(gate + 1), value(gate + 2))),
            ]
        if epilogue == "residual":
            modes.append(ROWS)
            steps.append(Step("aten.add.Tensor", (value(len(steps) - 1), operand(len(modes) - 1))))
        kept.append(value(len(steps) - 1))
    return Program(tuple(modes), tuple(steps), None, tuple(kept))


def _norm(rows: Ref, gain: Ref) -> list[Step]:
    """An RMSNorm as Llama spells it, at the beginning of a program."""
    cast, value = "prims.convert_element_type.default", (lambda i: Ref("value", i))
    return [
        Step(cast, (rows, torch.float32)),
        Step("aten.pow.Tensor_Scalar", (value(0), 2)),
        Step("aten.mean.dim", (value(1), (-1,), True)),
        Step("aten.add.Tensor", (value(2), 1e-5)),
        Step("aten.rsqrt.default", (value(3),)),
        Step("aten.mul.Tensor", (value(0), value(4))),
        Step(cast, (value(5), getattr(torch, DTYPE))),
        Step("aten.mul.Tensor", (gain, value(6))),
    ]


def like(its: Shape, epilogue: str = "") -> list[torch.Tensor]:
    """Operands of the program without content: of one row, and weights [n, k]."""

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=getattr(torch, DTYPE), device="meta")

    held = [empty(n, its.k).t() for n in its.columns for _ in range(its.weights)]
    gain = [empty(its.k)] if its.is_normed else []
    lead = (1,) if epilogue == "residual" else ()
    return [empty(1, its.k), *held, *gain, *(empty(*lead, n) for n in its.columns if epilogue)]


def reading(deadline: Deadline) -> dict[str, Any]:
    """Bytes a second that a sum of a large tensor reads, or that a copy of it reads and writes if
    those are more: what no layer is to beat."""
    from benchmarks.gpu.timing import measure_on_device

    x = torch.empty(READ_BYTES // 4, device="cuda").normal_()
    y = torch.empty_like(x)
    samples = measure_on_device({"sum": x.sum, "copy": lambda: y.copy_(x)}, deadline, seed=0)
    rates = {
        "sum TB/s": READ_BYTES / samples.median("sum") / 1e12,
        "copy TB/s": 2 * READ_BYTES / samples.median("copy") / 1e12,
    }
    return {"row": PLAIN, "TB/s": max(rates.values()), **rates}


def values(deadline: Deadline, way: str, rows: int, kind: str) -> dict[str, Any]:
    """One kind of kernel on random operands and a poisoned C, against float64."""
    torch.manual_seed(rows)
    errors: dict[str, float] = {}
    for n, k in CHECK_SIZES:
        spec = CHECKED_AS[kind].spec(way, rows, n, k)
        for m in {1, max(1, rows - 1), rows}:
            case = LinearCase.random(build_linear(spec), (m, n, k), "cuda")
            for _ in range(2):  # the second with counters that the first has left
                for out in case.outs:
                    out.fill_(torch.nan)
                case.run()
                errors[str(spec)] = max(errors.get(str(spec), 0.0), case.error())
    worst = max(errors, key=lambda text: errors[text])
    if not errors[worst] <= 1:
        raise WrongResult(f"{errors[worst]:.3g} of what roundings explain: {worst}")
    return {"row": name_of(way, rows, kind), "largest error": errors[worst]}


def name_of(way: str, rows: int, kind: str) -> str:
    """Of a kind of kernel."""
    return f"{way}, {rows} rows, {kind}"


def dispatch(deadline: Deadline) -> dict[str, Any]:
    """Seconds of a call on operands so small that nothing but the host counts, paired by round."""
    (m, n, k), its = TINY, program(Shape((1,), 1))
    x, w = (
        torch.randn(size, device=device()).to(getattr(torch, DTYPE)) for size in ((m, k), (n, k))
    )
    operands, zeros = (
        [x, w.t()],
        torch.zeros(most_counters([n]), dtype=torch.int32, device=device()),
    )
    by_library, by_gemv = (
        LayerSpec(its, regions, f"dispatch of {name}").text()
        for name, regions in ((LIBRARY, Regions()), (GEMV, FORCED))
    )
    mm = torch.ops.aten.mm.default
    calls: dict[str, Callable[[], object]] = {
        "aten.mm": lambda: mm(*operands),
        "op by the library": lambda: linear.run(operands, by_library, zeros),
        "op by gemv": lambda: linear.run(operands, by_gemv, zeros),
        "op by gemv, dispatched": lambda: linear.OP(operands, by_gemv, zeros),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for order in round_orders(list(calls), 1 + ROUNDS, seed=0):
        for name in order:
            seconds[name].append(host_seconds(calls[name]))
    row: dict[str, Any] = {"row": f"{m}x{n}x{k}"}
    row["aten.mm, us"] = 1e6 * statistics.median(seconds["aten.mm"][1:])
    for name in list(calls)[1:]:
        pairs = zip(seconds[name][1:], seconds["aten.mm"][1:], strict=True)
        row[f"{name}, us beyond"] = 1e6 * statistics.median(one - two for one, two in pairs)
    return row


def host_seconds(call: Callable[[], object]) -> float:
    """Of one call among many in a row."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(CALLS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / CALLS


def speed(deadline: Deadline, layer: str, rows: int, read: float) -> dict[str, Any]:
    """One layer at one row count, in every way, against the library as Inductor would call it."""
    its = LAYERS[layer]
    trials = LinearTrials(LayerSpec(program(its), FORCED), like(its), device())
    trial = trials.trial(rows, deadline.left())
    (n, *more) = its.columns
    problem = LinearProblem(n, its.k, DTYPE, weights=its.weights, more=tuple(more))
    bytes_read = problem.weight_bytes
    best = max(trial.gains, key=lambda gain: gain.median, default=None)
    row: dict[str, Any] = {"row": f"{layer}, {rows} rows", "layer": layer, "rows": rows}
    row["weight MiB"] = bytes_read / 2**20
    row["library us"] = 1e6 * trial.library_seconds
    if read:
        row["library share of reading"] = bytes_read / trial.library_seconds / 1e12 / read
    for gain in trial.gains:
        row[f"{gain.implementation} of library"] = [gain.median, gain.low, gain.high]
    for gain in trial.launched or ():
        row[f"{gain.implementation}, launched, of GEMMs"] = [gain.median, gain.low, gain.high]
    if best is not None:
        rate = bytes_read * best.median / trial.library_seconds
        row["TB/s"] = rate / 1e12
        row["share of reading"] = rate / 1e12 / read if read else None
    return row | {"trial": asdict(trial)}


def rows(done: Done, shipped: Target) -> Iterator[Row]:
    """Every row, in the order in which they are measured."""
    yield Row(READ, PLAIN, "benchmarks.gpu.linear.reading")
    for way in (GEMV, FLAT):
        for count in TILE_ROWS[way]:
            for kind in CHECKED_AS:
                given = {"way": way, "rows": count, "kind": kind}
                yield Row(CHECKED, name_of(way, count, kind), "benchmarks.gpu.linear.values", given)
    yield Row(DISPATCH, "a tiny layer", "benchmarks.gpu.linear.dispatch")
    read = next((row["TB/s"] for row in done.get(READ, ()) if "TB/s" in row), 0.0)
    for count in COUNTS:
        for layer in LAYERS:
            given = {"layer": layer, "rows": count, "read": read}
            yield Row(SPEED, f"{layer}, {count} rows", "benchmarks.gpu.linear.speed", given)


def regions(speeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a table would hold of each layer, were row counts between `COUNTS` like those beside."""
    return [
        {"row": layer, "regions": str(chosen), "measured at": len(trials)}
        for layer, (chosen, trials) in _tables(speeds).items()
    ]


def _tables(speeds: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Regions, list[LinearTrial]]]:
    """By layer, what a table would hold of it, and its trials by rows."""
    found = {}
    for layer in LAYERS:
        trials = [_trial(row) for row in speeds if row.get("layer") == layer]
        trials.sort(key=lambda trial: trial.rows)
        if trials:
            found[layer] = choose(trials, COUNTS), trials
    return found


def _trial(row: Mapping[str, Any]) -> LinearTrial:
    its = row["trial"]
    return LinearTrial(
        row["rows"], its["library_seconds"], tuple(Gain(**gain) for gain in its["gains"])
    )


def summary(speeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What dispatch by a table gains, by the kind of layer: geometric mean and minimum. Of large
    weights also the least share of the read bandwidth."""
    found = []
    for name, is_in in SUMMARIES.items():
        its = [row[BY_DISPATCH] for row in speeds if is_in(row)]
        if its:
            mean = math.exp(sum(map(math.log, its)) / len(its))
            found.append({"row": name, "rows": len(its), "geomean": mean, "least": min(its)})
    shares = [
        row[READ_BY_DISPATCH]
        for row in speeds
        if row["weight MiB"] >= LARGE_MIB and READ_BY_DISPATCH in row
    ]
    if shares:
        name = f"weights of {LARGE_MIB} MiB and more"
        found.append({"row": name, "rows": len(shares), "least share of reading": min(shares)})
    return found


def dispatched(speeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with what dispatch by a table of this machine gains there; 1 where that leaves the layer
    to the library. Rows that were not measured stay as they are."""
    tables = _tables([row for row in speeds if "trial" in row])
    return [_dispatched(row, tables) if "trial" in row else dict(row) for row in speeds]


def _dispatched(
    row: Mapping[str, Any], tables: Mapping[str, tuple[Regions, list[LinearTrial]]]
) -> dict[str, Any]:
    regions, _ = tables[row["layer"]]
    found = _trial(row).gain(regions.implementation(row["rows"]))
    gain = found.median if found else 1.0
    more = {BY_DISPATCH: gain}
    if share := row.get("library share of reading"):
        more[READ_BY_DISPATCH] = share * gain
    return {**row, **more}


def _kind(row: Mapping[str, Any]) -> str:
    its = LAYERS[row["layer"]]
    if its.is_normed or len(its.columns) > 1:
        return "more in a launch"
    return "gate and up" if its.weights > 1 else "one weight"


SUMMARIES: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "all layers": lambda row: True,
    "all but gate and up": lambda row: LAYERS[row["layer"]].weights == 1,
    "one weight": lambda row: _kind(row) == "one weight",
    "gate and up": lambda row: _kind(row) == "gate and up",
    "more in a launch": lambda row: _kind(row) == "more in a launch",
}
"""Lines of the summary, and whether a row counts for each."""


def tables(done: Done, shipped: Target) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What a page shows, the conclusions first."""
    speeds = dispatched(done.get(SPEED, ()))
    measured = [row for row in speeds if "trial" in row]
    return {
        "Summary": summary(measured),
        REGIONS: regions(measured),
        **{name: done.get(name, []) for name in (READ, CHECKED, DISPATCH)},
        SPEED: speeds,
    }
