"""The ops that stand in a compiled graph in place of a chain: schemas, fakes, implementations.

An op is self-contained: its tensors, the name of its group and one specification say everything,
for on a warm cache no pass of ours has run in the process that calls it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.fx.node import has_side_effect

from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.runtime import groups, signaled
from overlapc.runtime.plans import plan_call, target_of
from overlapc.runtime.schedules import all_reduce_options, run_rows
from overlapc.runtime.spec import ChainSpec
from overlapc.sources import fingerprint_of_sources

_library = torch.library.Library("overlapc", "DEF")
_library.define(
    "gemm_all_reduce(Tensor a, Tensor b, Tensor? bias, str group, str spec) -> Tensor",
    # Inductor may not change the layout of b: most often it is a transposed view of a weight.
    tags=(torch.Tag.needs_exact_strides,),
)


# Like a wait of c10d: a rank that drops a collective whose result it does not read hangs its peers.
has_side_effect(torch.ops.overlapc.gemm_all_reduce.default)


@dataclass
class _Caller:
    """What one (group, specification) needs at every call, worked out at the first."""

    spec: ChainSpec
    options: dist.AllreduceOptions
    plans: dict[tuple[int, int, int, torch.dtype], Plan] = field(default_factory=dict)


# By group, and without holding it: a group that is destroyed takes its callers along.
_callers: WeakKeyDictionary[dist.ProcessGroup, dict[str, _Caller]] = WeakKeyDictionary()
_common: WeakKeyDictionary[dist.ProcessGroup, dict[str, bool]] = WeakKeyDictionary()
_calls: dict[str, Counter[str]] = {}


def calls_of(site: str) -> Counter[str]:
    """Return how often a site ran each schedule in this process; replays of CUDA graphs do not
    come by here."""
    return _calls.setdefault(site, Counter())


def choices_text(options: str, target: str) -> str:
    """Return what the members of a group compare: our sources, their options and target."""
    return f"sources={fingerprint_of_sources()} options={options} target={target}"


@torch.library.impl(_library, "gemm_all_reduce", "CompositeExplicitAutograd")
def gemm_all_reduce(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, group: str, spec: str
) -> torch.Tensor:
    """Return the all-reduce over ``group`` of ``a[m, k] @ b[k, n] (+ bias)``, as ``spec`` plans it.

    Which collectives are sent, and in how many pieces, depends on the plan and so on sizes and
    target only: a rank that had to compute a band otherwise would still send the same.
    """
    living = groups.resolve(group)
    caller = _callers.setdefault(living, {}).get(spec) or _new_caller(living, spec)
    m, k = a.shape
    n = b.shape[1]
    sizes = (m, n, k, a.dtype)
    if caller.spec.verify:
        text, seconds = str(sizes), caller.spec.wait_seconds
        groups.compare(living, text, seconds, what="the sizes of a call differ")
    plan = caller.plans.get(sizes)
    if plan is None:
        plan = caller.plans[sizes] = _plan(living, caller.spec, *sizes)
    out = None
    if plan.schedule == "signaled" and signaled.fits(a, bias, n):
        target = target_of(caller.spec.target)
        out = signaled.run(plan, target, a, b, bias, living, caller.options)
    ran = "signaled" if out is not None else "serial" if len(plan.rows) == 1 else "chunked"
    _calls[caller.spec.site][ran] += 1
    if out is None:
        out = a.new_empty((m, n))
        run_rows(out, a, b, bias, plan.rows, living, caller.options)
    return out


@torch.library.register_fake("overlapc::gemm_all_reduce", lib=_library)
def _(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, group: str, spec: str):  # noqa: ANN202
    return a.new_empty((a.shape[0], b.shape[1]))


def _new_caller(group: dist.ProcessGroup, text: str) -> _Caller:
    spec = ChainSpec.parse(text)
    groups.agree_once(group, choices_text(spec.options, spec.target), spec.wait_seconds)
    calls_of(spec.site)
    caller = _callers[group][text] = _Caller(spec, all_reduce_options(spec.reduce))
    return caller


def _plan(
    group: dist.ProcessGroup, spec: ChainSpec, m: int, n: int, k: int, dtype: torch.dtype
) -> Plan:
    problem = Problem(
        m=m,
        n=n,
        k=k,
        dtype=str(dtype).removeprefix("torch."),
        collective="all_reduce",
        world_size=group.size(),
    )
    plan = plan_call(spec.target, spec.schedule, problem)
    if len(plan.rows) == 1 and plan.problem.m == 0:
        return plan
    if _is_common(group, plan, spec.wait_seconds):
        return plan
    return plan_call(spec.target, "serial", problem)


def _is_common(group: dist.ProcessGroup, plan: Plan, seconds: float) -> bool:
    """Whether every rank cuts these rows alike; asked once for each plan of a group.

    A shard of uneven size has another k on some ranks, and so may have another plan: then all of
    them run serial. Ranks whose outputs differ could not be reduced at all.
    """
    known = _common.setdefault(group, {})
    p = plan.problem
    mine = f"{p.m}x{p.n} {p.dtype} in {plan.schedule} rows {plan.rows}"
    if mine not in known:
        values = groups.exchange(group, mine, seconds)
        sizes = {value.partition(" in ")[0] for value in values}
        if len(sizes) > 1:
            groups.raise_disagreement(group, values, what="the sizes of a call differ")
        known[mine] = len(set(values)) == 1
    return known[mine]
