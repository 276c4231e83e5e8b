"""What overlap could save at most: each site's GEMM and all-reduce, measured together and apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist

from benchmarks.measuring.paired import measure
from benchmarks.overlap_link.chains import CHAINS
from benchmarks.overlap_link.shapes import Shape
from benchmarks.processes.ranks import GroupRanks
from examples.llama_model import SiteShape

ROUNDS = 9


@dataclass(frozen=True)
class SiteBound:
    """Median seconds of one site."""

    site: SiteShape
    serial: float
    """The GEMM, then the all-reduce."""
    together: float
    """Both started at once, with no dependency: no schedule is faster."""

    @property
    def saved(self) -> float:
        """What all calls of the site in one forward could save at most."""
        return self.site.count * max(0.0, self.serial - self.together)


@dataclass(frozen=True)
class ModelBound:
    """The fastest that a forward could be if only its all-reduces were overlapped."""

    sites: tuple[SiteBound, ...]
    seconds: float
    """Inductor's time less what every site could save."""


def bound_of_model(
    sites: Sequence[SiteShape], inductor_seconds: float, group: dist.ProcessGroup
) -> ModelBound:
    """Measure each site on its own operands; every rank calls this together."""
    measured = tuple(_bound_of_site(site, group) for site in sites)
    return ModelBound(measured, inductor_seconds - sum(bound.saved for bound in measured))


def _bound_of_site(site: SiteShape, group: dist.ProcessGroup) -> SiteBound:
    chain = CHAINS["gemm_all_reduce"]
    shape = Shape(site.m, site.n, site.k, site.name)
    operands = chain.operands(shape, group.rank(), group.size())
    candidates = {
        "serial": lambda: chain.serial(operands.x, operands.weight, group),
        "together": lambda: chain.together(operands, group),
    }
    for run in candidates.values():
        run()
    samples = measure(
        candidates,
        GroupRanks(group),
        rounds=ROUNDS,
        seed=2,
        before=operands.renew,
    )
    return SiteBound(site, samples.median("serial"), samples.median("together"))
