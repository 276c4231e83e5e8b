"""Right, before it is timed: every kind of kernel, and every staged path, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch

from benchmarks.gpu.device import DTYPE, architecture, shipped_target
from benchmarks.gpu.gemm.chains import EPILOGUES, Site, site
from benchmarks.gpu.gemm.emulated_link import LINKS
from benchmarks.gpu.worker import WrongResult
from benchmarks.measuring.deadline import Deadline
from overlapc.codegen import Bands, GemmSpec, build
from overlapc.codegen.epilogue import Call, Epilogue, Input, Ref
from overlapc.codegen.oracle import error_over_bound
from overlapc.codegen.selfcheck import Case
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan_rows
from overlapc.planning.tiles import MOST_SUMS, SPARING_SUMS, sm_number, sums, tiles_for

Result = TypeVar("Result")

SIZES = ((1000, 776, 528), (2048, 1024, 512))
"""m, n, k: ragged in every dimension, as far as the TMA unit reads it, and whole tiles."""
FP8 = "float8_e4m3fn"
STAGED_SIZES = (6000, 2048, 1024)
"""Of staged paths: several waves, the last band with tiles that are not whole."""
RANKS = 4
CALLS = 4
"""Of a staged path: one that loads everything, and some that overlap."""
REPLAYS = 1000
"""Of its CUDA graph."""
CTAS = 100


GATED = Epilogue(
    (Input("vector", DTYPE), Input("matrix", DTYPE), Input("column", "bool")),
    (
        Call("aten.addmm.default", (Ref("input", 0), Ref("gemm", 0), Ref("gemm", 1))),
        Call("aten.gelu.default", (Ref("value", 0),), (("approximate", "tanh"),)),
        Call("aten.div.Tensor", (Ref("value", 1), 1.5)),
        Call("aten.add.Tensor", (Ref("value", 2), Ref("input", 1))),
        Call("aten.where.ScalarOther", (Ref("input", 2), Ref("value", 3), -1.5)),
    ),
)
"""An epilogue of a kind that needs the device's own functions, and inputs of other shapes."""


def kernels(arch: str) -> Iterator[GemmSpec]:
    """Every kind that is timed, and rarer ones."""
    tiles = tiles_for(arch, DTYPE)
    loads = "descriptors" if sm_number(arch) >= 90 else "pointers"
    on_nvidia = sm_number(arch) > 0
    timed = [
        GemmSpec(DTYPE, DTYPE, **tile.built, loads=loads, flatten=flatten)
        for tile in tiles
        for flatten in [on_nvidia and (loads == "descriptors" or sums(tile, arch) <= SPARING_SUMS)]
    ]
    half = replace(timed[0], loads="pointers", stages=min(timed[0].stages, 3), flatten=False)
    roomy = replace(half, block_n=128, flatten=on_nvidia)
    yield from timed
    yield timed[0].without_signals()
    yield replace(timed[0], order="packed")
    yield replace(timed[0], flatten=False)
    yield replace(roomy, loads=loads, a="col", b="row")
    yield replace(roomy, loads=loads, epilogue=str(GATED))
    yield replace(roomy, loads=loads, epilogue=str(GATED), order="packed")
    yield half
    yield replace(half, dtype="float16", out="float16", bias=True)
    yield replace(roomy, b="row")
    yield replace(roomy, a="strided", b="strided")
    single = tiles_for(arch, "float32")[0]
    yield GemmSpec("float32", "float32", **single.built, flatten=on_nvidia)
    for tile in tiles_for(arch, FP8):
        yield GemmSpec(FP8, DTYPE, **tile.built, loads=loads, flatten=on_nvidia)


def kernel(deadline: Deadline, number: int) -> dict[str, Any]:
    """One kind of kernel: random values, a poisoned C, and its counters."""
    torch.manual_seed(number)
    spec = list(kernels(architecture()))[number]
    errors = [kernel_error(spec, its) for its in SIZES]
    if not max(errors) <= 1:
        raise WrongResult(f"{max(errors):.3g} of what roundings explain: {spec}")
    return {"row": str(spec), "largest error, of what roundings explain": max(errors)}


def kernel_error(spec: GemmSpec, sizes: tuple[int, int, int]) -> float:
    """The error of one run over what is allowed; infinite where a counter is wrong."""
    if spec.loads == "pointers":
        spec = replace(spec, even_k=sizes[2] % spec.block_k == 0)
    groups = min(3, -(-sizes[0] // spec.block_m))
    case = Case.random(build(spec), sizes, "cuda", groups)
    case.run(CTAS)
    error = error_over_bound(spec, case.a, case.b, None, case.result, case.inputs)
    return error if case.is_counted else float("inf")


def equal_bands(block_m: int, m: int, parts: int) -> Bands:
    """At most ``parts`` bands of as equal a height as whole tile rows allow."""
    tiles = -(-m // block_m)
    parts = min(parts, tiles)
    ends = [min(tiles * (part + 1) // parts * block_m, m) for part in range(parts)]
    starts = [0, *ends[:-1]]
    return Bands.of([end - at for at, end in zip(starts, ends, strict=True)], block_m)


PATHS = tuple(
    (collective, by_columns, epilogue)
    for epilogue in EPILOGUES
    for collective, by_columns in (
        *(("all_reduce", False), ("reduce_scatter", False), ("all_to_all", False)),
        *(("reduce_scatter", True), ("all_to_all", True)),
    )
)
"""The collective, whether columns are dealt out in place of rows, and the epilogue."""


def staged(deadline: Deadline, collective: str, by_columns: bool, epilogue: str) -> dict[str, Any]:
    """One staged path of the ops over an EMULATED link: cold, warm with other operands, and
    replayed from a CUDA graph.

    Sums and parts are those of an emulated group; the ops' own code does all the rest. WrongResult
    too where the check is blind to bands that nobody waited for.
    """
    torch.manual_seed(0)
    m, n, k = STAGED_SIZES
    problem = Problem(
        m, n, k, DTYPE, collective, RANKS, order="gemm_first", kernel_sums=MOST_SUMS,
        axis=int(by_columns),
    )  # fmt: skip
    target = shipped_target()
    its = site(problem, target, LINKS["NVLink-like"](RANKS), epilogue)
    plan = ragged(problem, its)
    run, errors = its.signaled(plan), []
    for _ in range(CALLS):
        errors.append(its.check(run, its.expected()))
        its.operands[0].neg_()  # what was computed before is wrong now
    replay = captured(run)
    for _ in range(REPLAYS):
        replay()
    its.operands[0].neg_()
    errors.append(its.check(replay, its.expected()))
    if not _sees_early_bands(its, plan):
        raise WrongResult("bands that were sent before they were computed are not seen")
    row = {"row": name_of(collective, by_columns, epilogue), "groups": len(plan.rows)}
    return {**row, "largest error": max(errors), "without waits": "seen to be wrong"}


def captured(run: Callable[[], Result]) -> Callable[[], Result]:
    """Replays of a graph of a run that has been called before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def name_of(collective: str, by_columns: bool, epilogue: str) -> str:
    """Of a path."""
    dealt = " of columns" if by_columns else ""
    return f"{collective}{dealt}, epilogue: {epilogue or 'none'}"


def ragged(problem: Problem, its: Site) -> Plan:
    """Three groups of growing sizes, as far as there are whole bands for them."""
    tile = tiles_for(its.target.architecture, problem.dtype)[0]
    unit = problem.band_rows(tile)
    rows = [unit, 2 * unit, problem.m - 3 * unit]
    if rows[-1] <= 0:
        rows = [unit, problem.m - unit]
    return plan_rows(problem, its.target, rows, tile=tile)


def _sees_early_bands(its: Site, plan: Plan) -> bool:
    """Whether the check sees bands that are sent before any is computed."""
    its.operands[0].neg_()  # what memory may still hold of a call before is wrong too
    try:
        its.check(its.unordered(plan, late=True), its.expected())
    except WrongResult:
        return True
    return False
