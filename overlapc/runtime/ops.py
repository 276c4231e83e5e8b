"""The ops that stand in a compiled graph in place of a chain: schemas, fakes, implementations.

An op is self-contained: its tensors, the name of its group and one specification say everything,
for on a warm cache no pass of ours has run in the process that calls it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

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


@dataclass
class _Caller:
    """What one (group, specification) needs at every call, worked out at the first."""

    group: dist.ProcessGroup
    spec: ChainSpec
    options: dist.AllreduceOptions
    plans: dict[tuple[int, int, int, torch.dtype], Plan] = field(default_factory=dict)


_callers: dict[tuple[str, str], _Caller] = {}
_calls: dict[str, Counter[str]] = {}


def calls_of(site: str) -> Counter[str]:
    """Return how often a site ran each schedule in this process."""
    return _calls.setdefault(site, Counter())


def plan_digest(options: str, target: str) -> str:
    """Return what the members of a group compare: our sources, their options and target."""
    return groups.digest_of(fingerprint_of_sources(), options, target)


@torch.library.impl(_library, "gemm_all_reduce", "CompositeExplicitAutograd")
def gemm_all_reduce(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, group: str, spec: str
) -> torch.Tensor:
    """Return the all-reduce over ``group`` of ``a[m, k] @ b[k, n] (+ bias)``, as ``spec`` plans it.

    Which collectives are sent, and in how many pieces, depends on the plan and so on sizes and
    target only: a rank that had to compute a band otherwise would still send the same.
    """
    caller = _caller(group, spec)
    m, k = a.shape
    n = b.shape[1]
    sizes = (m, n, k, a.dtype)
    if caller.spec.verify:
        groups.compare(
            caller.group, str(sizes), caller.spec.wait_seconds, what="the sizes of a call differ"
        )
    plan = caller.plans.get(sizes)
    if plan is None:
        plan = caller.plans[sizes] = _plan(caller, *sizes)
    out = None
    if plan.schedule == "signaled" and signaled.fits(a, bias, n):
        target = target_of(caller.spec.target)
        out = signaled.run(plan, target, a, b, bias, caller.group, caller.options)
    ran = "serial" if len(plan.rows) == 1 else "chunked" if out is None else "signaled"
    _calls[caller.spec.site][ran] += 1
    if out is None:
        out = a.new_empty((m, n))
        run_rows(out, a, b, bias, plan.rows, caller.group, caller.options)
    return out


@torch.library.register_fake("overlapc::gemm_all_reduce", lib=_library)
def _(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, group: str, spec: str):  # noqa: ANN202
    return a.new_empty((a.shape[0], b.shape[1]))


def _caller(group: str, spec: str) -> _Caller:
    living = groups.resolve(group)
    caller = _callers.get((group, spec))
    if caller is None or caller.group is not living:
        parsed = ChainSpec.parse(spec)
        digest = plan_digest(parsed.options, parsed.target)
        groups.agree_once(living, digest, parsed.wait_seconds)
        calls_of(parsed.site)
        caller = _callers[group, spec] = _Caller(living, parsed, all_reduce_options(parsed.reduce))
    return caller


def _plan(caller: _Caller, m: int, n: int, k: int, dtype: torch.dtype) -> Plan:
    problem = Problem(
        m=m,
        n=n,
        k=k,
        dtype=str(dtype).removeprefix("torch."),
        collective="all_reduce",
        world_size=caller.group.size(),
    )
    return plan_call(caller.spec.target, caller.spec.schedule, problem)
