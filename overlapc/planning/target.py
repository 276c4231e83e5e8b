"""What is known of a machine: the rates that plans are made of."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from math import inf
from pathlib import Path

from overlapc.cache import cache_dir
from overlapc.errors import TargetError
from overlapc.planning.problem import ITEM_BYTES, Problem
from overlapc.planning.rates import GemmRates, Link
from overlapc.planning.records import check_format, from_value
from overlapc.planning.stored import fingerprint, write
from overlapc.planning.tuned import TRIALS, TunedPlan

KEY, FORMAT = "overlapc_target", 7
"""What a file begins with, and the version of the files that `save` writes: one more whenever a
record gets or loses a field. Files of every version before are read, and what they lack has a
default; a newer one is refused."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Source:
    """Where a number of a target comes from."""

    about: str
    """The numbers meant, as the fields that hold them."""
    origin: str
    """A publication, a datasheet, a fit, an assumption, or a measurement and its conditions."""


@dataclass(frozen=True)
class Target:
    """Measured rates of one machine and its links. A plan is a function of a problem and this.

    While a collective is in flight, compute runs ``compute_slowdown`` times slower; while compute
    runs, a collective runs ``link_slowdown`` times slower. A link may have its own two factors.
    """

    name: str
    """Letters, digits, ``.``, ``_`` and ``-``; the file is named after it."""
    device: str
    """Device type as torch names it: "cpu", "cuda"."""
    backend: str
    """Backend of the process group: "gloo", "nccl"."""
    is_measured: bool
    """Whether `calibrate` measured it on the group it is for."""
    gemm: tuple[GemmRates, ...]
    """One entry a dtype, and of float8 a way to scale."""
    links: tuple[Link, ...]
    """One entry a collective and group size."""
    compute_slowdown: float
    """At least 1; includes what the collective's own thread blocks take from a GPU."""
    link_slowdown: float
    """At least 1."""
    signal_seconds: float = 0.0
    """From the last store of a group of tiles to the start of its collective (`signaled`)."""
    communication_sms: int = 0
    """Multiprocessors left to the collective (`signaled`)."""
    source: tuple[Source, ...] = ()
    architecture: str = ""
    """For which kernels are generated, such as ``sm_90``; empty where none are."""
    tuned: tuple[TunedPlan, ...] = ()
    """Cuts that were measured on this group: at most one a problem."""
    l2_bytes: int = 0
    """Size of the last cache before memory, which A and B of `signaled` may stay in; 0 where it is
    unknown, and nothing is taken to stay there."""
    l2_bytes_per_second: float | None = None
    """Rate at which all multiprocessors read it; None where the arithmetic rate includes it."""
    tile_seconds: float = 0.0
    """Overhead of each tile: from its first load to its first product, and from its last store to
    its signal (`signaled`)."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r} holds other than letters, digits, '.', '_', '-'")
        if any(not slowdown >= 1 for slowdown in (self.compute_slowdown, self.link_slowdown)):
            raise ValueError("compute_slowdown and link_slowdown cannot be below 1")
        if not (0 <= self.signal_seconds < inf and self.communication_sms >= 0):
            raise ValueError("signal_seconds and communication_sms cannot be negative")
        rate = self.l2_bytes_per_second
        if not (0 <= self.tile_seconds < inf and self.l2_bytes >= 0 and (rate is None or rate > 0)):
            raise ValueError("tile_seconds and l2_bytes cannot be negative, nor their rate zero")
        gemms = [(rates.dtype, rates.scales) for rates in self.gemm]
        if unknown := sorted({dtype for dtype, _ in gemms} - set(ITEM_BYTES)):
            raise ValueError(f"gemm has unknown dtype {unknown[0]!r}")
        links = [(link.collective, link.world_size) for link in self.links]
        tuned = [plan.problem for plan in self.tuned]
        if any(len(set(keys)) < len(keys) for keys in (gemms, links, tuned)):
            raise ValueError("gemm, links or tuned has two entries for the same thing")

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with any content."""
        return fingerprint(self)

    def slowdowns(self, problem: Problem) -> tuple[float, float]:
        """How much slower compute and the problem's collective run beside each other: c, d."""
        link = self._nearest_link(problem)
        c, d = (link.compute_slowdown, link.link_slowdown) if link else (None, None)
        return c or self.compute_slowdown, d or self.link_slowdown

    def overlap_gains(self, problem: Problem) -> bool:
        """Whether compute and link together do more than one of them alone: 1/c + 1/d > 1."""
        c, d = self.slowdowns(problem)
        return 1 / c + 1 / d > 1

    @cached_property
    def _tuned(self) -> dict[Problem, TunedPlan]:
        return {plan.problem: plan for plan in self.tuned}

    @cached_property
    def _alike(self) -> dict[Problem, list[TunedPlan]]:
        found: dict[Problem, list[TunedPlan]] = {}
        for plan in self.tuned:
            if not plan.is_stale:
                found.setdefault(plan.problem.common(), []).append(plan)
        return found

    def tuned_for(self, problem: Problem) -> TunedPlan | None:
        """What was measured for this problem, or for other work of the same sizes; or None.

        Ranks may compute unlike things beside the same GEMM, and whether they cut it has to be one
        decision, which none asks the others about. So what was measured first of the sizes holds
        for work that was not; and where some of what was measured was best left whole, all is.
        What was measured for readers of rows holds for those that could read tiles as well.
        """
        exact = problem.resolved()
        of_rows = replace(exact, takes_map=False)
        mine = self._tuned.get(exact) or self._tuned.get(of_rows)
        alike = self._alike.get(exact.common(), [])
        whole = [plan for plan in alike if len(plan.rows) == 1]
        if whole and (mine is None or len(mine.rows) > 1):
            return whole[0]
        return mine or next(iter(alike), None)

    def lacks(self, problem: Problem) -> str:
        """What is missing here to plan ``problem``, as a sentence; empty when nothing is."""
        if self.rates_of(problem.dtype) is None:
            known = ", ".join(dict.fromkeys(rates.dtype for rates in self.gemm)) or "none"
            return f"Target {self.name} has no GEMM rates for {problem.dtype}, only for {known}."
        if problem.world_size > 1 and self._nearest_link(problem) is None:
            return f"Target {self.name} has no measured curve for {problem.collective}."
        return ""

    def knows(self, problem: Problem) -> bool:
        """Whether rates were measured here, and the curve with a group of the very size."""
        return self.is_measured and any(
            (link.collective, link.world_size) == (problem.collective, problem.world_size)
            for link in self.links
        )

    def rates(self, problem: Problem) -> GemmRates:
        """GEMM rates for the problem's dtype, or for one of the same kind and width.

        Raises TargetError when there are none.
        """
        rates = self.rates_of(problem.dtype, problem.scales)
        if rates is None:
            raise self._error(self.lacks(problem), f"{problem.dtype} among its --dtypes")
        return rates

    def link(self, problem: Problem) -> Link:
        """The link of the group size nearest to the problem's (the smaller one of two).

        `Link.scaled` says how times follow for another size. Raises TargetError when there is none.
        """
        link = self._nearest_link(problem)
        if link is None:
            option = f"{problem.collective} among its --collectives"
            raise self._error(self.lacks(problem), option)
        return link

    def rates_of(self, dtype: str, scales: str = "") -> GemmRates | None:
        """GEMM rates for a dtype, or for one of the same kind and width; None without any.

        Of float8 that is scaled so, or else otherwise.
        """
        alike = [rates for rates in self.gemm if rates.dtype in (dtype, _TWIN.get(dtype))]
        return min(alike, key=lambda r: (r.scales != scales, r.dtype != dtype), default=None)

    def _nearest_link(self, problem: Problem) -> Link | None:
        links = [link for link in self.links if link.collective == problem.collective]
        size = problem.world_size
        return min(links, key=lambda x: (abs(x.world_size - size), x.world_size), default=None)

    def _error(self, what: str, option: str) -> TargetError:
        return TargetError(
            what,
            where=f"target {self.name} ({self.fingerprint})",
            remedy=f"calibrate on this group (overlapc calibrate, {option}) or give a target that "
            "has it",
        )

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads; its folder is made if needed, the write is atomic."""
        write(Path(path), KEY, FORMAT, self)

    @staticmethod
    def load(name_or_path: str | Path) -> Target:
        """A shipped target, a stored one of the user's, or a file (a path, or a name in .json).

        Raises TargetError for what is not found, not ours, incomplete, or of a newer format.
        """
        text = str(name_or_path)
        if isinstance(name_or_path, Path) or text.endswith(".json") or os.sep in text:
            return _read_file(Path(name_or_path))
        if text in shipped_names():
            return _read(_SHIPPED.joinpath(f"{text}.json").read_text(), f"shipped target {text}")
        stored = stored_path(text)
        if NAME.fullmatch(text) and stored.exists():
            return _read_file(stored)
        near = difflib.get_close_matches(text, shipped_names(), n=1)
        raise TargetError(
            f"There is no target named {text!r}.{f' Did you mean {near[0]!r}?' if near else ''}",
            where=f"shipped targets and {stored.parent}",
            remedy=f"choose one of {', '.join(shipped_names())}, measure this machine by overlapc "
            "calibrate, or give a path ending in .json",
        )

    def renamed(self, name: str) -> Target:
        """This target under another name."""
        return replace(self, name=name)


_TWIN = {
    "float16": "bfloat16",
    "bfloat16": "float16",
    "float8_e4m3fn": "float8_e5m2",
    "float8_e5m2": "float8_e4m3fn",
}
"""Dtypes that run at one rate on every device here."""

_SHIPPED = resources.files("overlapc.planning.targets")


def shipped_names() -> tuple[str, ...]:
    """Names of the targets that come with the package."""
    names = (Path(entry.name) for entry in _SHIPPED.iterdir())
    return tuple(sorted(name.stem for name in names if name.suffix == ".json"))


def stored_path(name: str) -> Path:
    """Where `calibrate` stores the target of that name."""
    return cache_dir() / "targets" / f"{name}.json"


def _read_file(path: Path) -> Target:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TargetError(
            f"The target cannot be read: {error}.",
            where=str(path),
            remedy="give a readable file that overlapc calibrate wrote",
        ) from error
    return _read(text, str(path))


def _read(text: str, where: str) -> Target:
    remedy = "give a file that overlapc calibrate or Target.save wrote, unchanged"
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise TargetError(f"The target is not JSON: {error}.", where=where, remedy=remedy) from None
    if not isinstance(content, dict) or KEY not in content:
        raise TargetError("The file is no overlapc target.", where=where, remedy=remedy)
    try:
        version = content.pop(KEY)
        check_format(version, FORMAT)
    except ValueError as error:
        raise TargetError(
            f"The target cannot be read: {error}.",
            where=where,
            remedy="calibrate again with this version, or use the overlapc that wrote it",
        ) from None
    tuned = content.get("tuned") if version < TRIALS else None
    for plan in tuned if isinstance(tuned, list) else ():
        if isinstance(plan, dict):
            plan.setdefault("since", version)
    try:
        return from_value(Target, content)
    except ValueError as error:
        raise TargetError(
            f"The target is incomplete: {error}.", where=where, remedy=remedy
        ) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of a target")
