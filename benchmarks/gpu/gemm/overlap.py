"""A GEMM and its collective over an EMULATED link: as planned, beside serial and the bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.device import DTYPE
from benchmarks.gpu.gemm.chains import Site, site
from benchmarks.gpu.gemm.emulated_link import LINKS
from benchmarks.gpu.gemm.published import IDEAL, RATIO
from benchmarks.gpu.gemm.shapes import Shape
from benchmarks.gpu.gemm.summary import CHOSEN, PREDICTED
from benchmarks.gpu.timing import cell, measure_on_device, raw
from benchmarks.measuring.deadline import Deadline
from benchmarks.measuring.paired import Samples
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan, format_rows
from overlapc.planning.search import plan, plan_rows
from overlapc.planning.target import Target
from overlapc.planning.tiles import MOST_SUMS

SERIAL, AGAIN = "serial", "serial again"
GEMM, COLLECTIVE = "torch.mm alone", "collective alone"
TWO, CHUNKED, SIGNALED, BOUND = "two parts", "chunked", "signaled", "bound"


def overlap(
    deadline: Deadline, shape: Shape, collective: str, link: str, target: Target,
    epilogue: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The planned kernel, checked and then timed; ``target`` has the link's curves."""
    problem = Problem(
        shape.m, shape.n, shape.k, DTYPE, collective, shape.ranks, order="gemm_first",
        kernel_sums=MOST_SUMS,
    )  # fmt: skip
    its = site(problem, target, LINKS[link](shape.ranks), epilogue)
    plans = plans_of(problem, its.target)
    samples = measure_on_device(candidates(its, plans), deadline, seed=shape.m + shape.k)
    row: dict[str, Any] = {
        "row": f"{shape}, {collective}" + (f", epilogue: {epilogue}" if epilogue else ""),
        "collective": collective,
        "EMULATED link": link,
        "serial ms": 1e3 * samples.median(SERIAL),
        "planned": planned(plans),
        "chosen": plan(problem, its.target).schedule,
    }
    for name in (AGAIN, TWO, CHUNKED, SIGNALED):
        if name in samples.seconds:
            row[f"{name} over serial"] = cell(samples.ratio(SERIAL, name))
    row[CHOSEN] = of_chosen(row)
    if SIGNALED in samples.seconds:
        row |= of_signaled(samples)
    for name in plans:
        if name in samples.seconds:
            predicted = plans[name].predicted_seconds / samples.median(name)
            row[f"{name}: {PREDICTED}"] = predicted
    return row | raw(samples)


def of_chosen(row: dict[str, Any]) -> float | None:
    """What a user gets by the plan that is predicted to be best; None where it was not timed."""
    if row["chosen"] == SERIAL:
        return 1.0
    names = {SIGNALED: (SIGNALED,), CHUNKED: (CHUNKED, TWO)}[row["chosen"]]
    ratios = (row.get(f"{name} over serial") for name in names)
    return next((ratio[0] for ratio in ratios if ratio), None)


def plans_of(problem: Problem, target: Target) -> dict[str, Plan]:
    """By the name of the candidate."""
    half = problem.m // 2 // problem.granule * problem.granule
    return {
        SERIAL: plan_rows(problem, target, (problem.m,)),
        TWO: plan_rows(problem, target, (half, problem.m - half)),
        CHUNKED: plan(problem, target, "chunked"),
        SIGNALED: plan(problem, target, "signaled"),
    }


def candidates(its: Site, plans: dict[str, Plan]) -> dict[str, Callable[[], object]]:
    """What is timed; what computes anything else than it should is a WrongResult."""
    serial = its.by_library(plans[SERIAL])
    a, b, *_ = its.operands
    c = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device)
    runs: dict[str, Callable[[], object]] = {SERIAL: serial, AGAIN: serial}
    runs[GEMM] = lambda: torch.mm(a, b, out=c)
    runs[COLLECTIVE] = collective_alone(its, c)
    wanted = its.expected()
    for name in (TWO, CHUNKED):
        if len(plans[name].rows) > 1 and not (name == CHUNKED and is_two(plans)):
            library = its.by_library(plans[name])
            its.check(library, wanted)
            runs[name] = library
    if len(plans[SIGNALED].rows) > 1:
        signaled = its.signaled(plans[SIGNALED])
        for _ in range(2):  # cold, then overlapped
            its.check(signaled, wanted)
        runs[SIGNALED], runs[BOUND] = signaled, its.unordered(plans[SIGNALED])
    return runs


def is_two(plans: dict[str, Plan]) -> bool:
    """Whether the best cut for a library is into halves."""
    return plans[CHUNKED].rows == plans[TWO].rows


def collective_alone(its: Site, c: torch.Tensor) -> Callable[[], object]:
    """The whole collective, on the current stream."""
    p, link = its.problem, its.group.link  # pyright: ignore[reportAttributeAccessIssue]
    target = torch.empty_like(c)
    kept = target[: p.m // p.world_size] if p.collective == "reduce_scatter" else None
    return lambda: link.move(p.collective, c, target, kept)


def of_signaled(samples: Samples) -> dict[str, Any]:
    """What the signaled run reached of what could be, and how much there was to hide."""
    gemm, sent = samples.median(GEMM), samples.median(COLLECTIVE)
    seconds = samples.median(SIGNALED)
    return {
        "share of the bound": cell(samples.ratio(BOUND, SIGNALED)),
        IDEAL: max(gemm, sent) / seconds,
        RATIO: gemm / sent if sent else float("inf"),
    }


def planned(plans: dict[str, Plan]) -> str:
    """The signaled plan in few words."""
    its = plans[SIGNALED]
    if len(its.rows) == 1:
        return "one group, which overlaps nothing"
    return f"{its.order} {its.tile}, rows {format_rows(its.rows)}"
