"""A GEMM with an epilogue and a collective, which the ops' own code runs over an EMULATED link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch

from benchmarks.gpu.device import device
from benchmarks.gpu.gemm.emulated_group import ME, EmulatedGroup
from benchmarks.gpu.gemm.emulated_link import EmulatedLink
from benchmarks.gpu.worker import WrongResult
from overlapc.codegen import Bands, Kernel
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.target import Target
from overlapc.runtime.cutting import columns
from overlapc.runtime.measuring.kernel_trials import KernelTrial
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step
from overlapc.runtime.signaled.schedule import Built, Signaled
from overlapc.runtime.spec import ChainSpec

BOUND = 0.02
"""Of an element's error, over its size and the mean: a few roundings to bfloat16."""

LATE_CYCLES = 20_000_000
"""Of the device's clock: some ten milliseconds, many times what a checked path sends in."""

A, B, MORE = (Ref("operand", index) for index in range(3))
EPILOGUES: dict[str, tuple[tuple[str, ...], tuple[Step, ...]]] = {
    "": ((ROWS, WHOLE), (Step("aten.mm.default", (A, B)),)),
    "bias": ((ROWS, WHOLE, WHOLE), (Step("aten.addmm.default", (MORE, A, B)),)),
    "gated": (
        (ROWS, WHOLE, ROWS),
        (
            Step("aten.mm.default", (A, B)),
            Step("aten.silu.default", (Ref("value", 0),)),
            Step("aten.mul.Tensor", (Ref("value", 1), MORE)),
        ),
    ),
}
"""How operands are cut, and the calls, by name."""


def by_kernel(trial: KernelTrial, plan: Plan) -> Callable[[], torch.Tensor]:
    """What runs a plan's kernel; a call that the library had to compute is a WrongResult."""
    run = trial.ready(plan).signaled
    if run is None:
        raise WrongResult(f"a plan of one group: {plan}")

    def call() -> torch.Tensor:
        (result,), why = run(trial.operands, trial.group)
        if why:
            raise WrongResult(f"the library computed it: {why}")
        return result

    return call


@dataclass(frozen=True)
class Site(KernelTrial):
    """A problem as compiled graphs have it, with operands of its own."""

    epilogue: str = ""

    @cached_property
    def operands(self) -> list[torch.Tensor]:
        """A[m, k], the transposed weight B[k, n], and what the epilogue reads."""
        p, (modes, _) = self.problem, EPILOGUES[self.epilogue]
        more = [(p.n,) if mode == WHOLE else (p.m, p.n) for mode in modes[2:]]
        shapes = [(p.m, p.k), (p.n, p.k), *more]
        dtype = getattr(torch, p.dtype)
        a, weight, *rest = (torch.randn(shape, device=self.device).to(dtype) for shape in shapes)
        return [a, weight.t(), *rest]

    def spec(self, plan: Plan | None = None) -> ChainSpec:
        """The chain with its epilogue."""
        (modes, steps), plain = EPILOGUES[self.epilogue], super().spec(plan)
        return replace(plain, program=Program(modes, steps, Ref("value", len(steps) - 1)))

    def expected(self) -> torch.Tensor:
        """float64[units, columns]: what arrives here of an emulated group."""
        p = self.problem
        a, b, *more = (tensor.double() for tensor in self.operands)
        c = a @ b
        if self.epilogue == "bias":
            c += more[0]
        if self.epilogue == "gated":
            c = torch.nn.functional.silu(c) * more[0]
        if p.collective == "all_reduce":
            return c
        if p.parts == 1:
            c = columns.pack(c, p.world_size)
        return c if p.collective == "all_to_all" else c.chunk(p.world_size)[ME]

    def signaled(self, plan: Plan) -> Callable[[], torch.Tensor]:
        """What runs a plan's kernel; a call that the library had to compute is a WrongResult."""
        return by_kernel(self, plan)

    def by_library(self, plan: Plan) -> Callable[[], torch.Tensor]:
        """What runs a plan with the library."""
        run = self.ready(plan).run
        return lambda: run(self.operands, self.group)[0]

    def unordered(self, plan: Plan, *, late: bool = False) -> Callable[[], torch.Tensor]:
        """The same kernel and collectives where nobody waits for a tile: no schedule beats it.

        The plan has been called before. What it gives is wrong, and surely so if the kernel is
        ``late``.
        """
        built = built_of(self.ready(plan).signaled)
        bands = built.gemm.bands
        assert isinstance(bands, Bands), "no plan here is of tiles"
        free = Unordered(bands.runs, bands.block_m)
        kernel = built.gemm.kernel
        kernel = Late(kernel.spec, kernel.path, kernel.module) if late else kernel
        gemm, given = replace(built.gemm, bands=free, kernel=kernel), self.operands
        link = self.group.link  # pyright: ignore[reportAttributeAccessIssue]
        inputs = [given[index] for index in built.inputs]
        return lambda: gemm(
            given[built.a], given[built.b], self.group, link.ctas,
            name=("signaled", link), inputs=inputs,
        )  # fmt: skip

    def check(self, run: Callable[[], torch.Tensor], wanted: torch.Tensor) -> float:
        """The error of a call; WrongResult where it is more than roundings explain."""
        found = run()
        error = worst(found, wanted)
        if not error <= BOUND:
            raise WrongResult(f"an error of {error:.3g} of what it should be, above {BOUND}")
        if not self.is_seen(found):
            raise WrongResult("a band was sent before it was whole")
        return error

    def is_seen(self, found: torch.Tensor) -> bool:
        """Whether collectives read what there was in the end; of others than an all-reduce the
        result says it."""
        if self.problem.collective != "all_reduce":
            return True
        seen: Any = self.group.seen  # pyright: ignore[reportAttributeAccessIssue]
        return torch.equal(found.view(-1), seen[: found.numel()])


class Late(Kernel):
    """A kernel that begins when collectives that wait for nothing have ended."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Launch, behind some milliseconds of idling on the same stream."""
        torch.cuda._sleep(LATE_CYCLES)
        return super().__call__(*given, **named)


class Unordered(Bands):
    """Bands for which nobody waits."""

    def targets(self, tiles_n: int) -> tuple[int, ...]:
        """No tile of any."""
        return (0,) * len(self.runs)


def built_of(run: Signaled | None) -> Built:
    """The kernel of a chain that has been called."""
    assert run is not None, "a plan of one group"
    (built,) = run.built.values()
    assert isinstance(built, Built), built
    return built


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest error of an element over its size and the mean size; infinite where none is."""
    if found.shape != wanted.shape:
        return float("inf")
    size = wanted.abs() + wanted.square().mean().sqrt()
    error = ((found.double() - wanted).abs() / size).max().item()
    return float("inf") if error != error else error


@cache
def _group(link: EmulatedLink) -> EmulatedGroup:
    return EmulatedGroup(link, device())


def site(problem: Problem, target: Target, link: EmulatedLink, epilogue: str = "") -> Site:
    """A problem on the emulated group of a link, for which the target leaves SMs."""
    group = _group(link)
    group.reserve(problem.m * problem.n, problem.dtype)
    return Site(
        problem, replace(target, communication_sms=link.ctas), group, device(), epilogue=epilogue
    )
