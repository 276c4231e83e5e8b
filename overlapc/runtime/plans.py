"""Plans at run time: from a specification and the sizes of a call to the rows of each group."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path

from overlapc.errors import TargetError
from overlapc.planning.problem import Problem
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan
from overlapc.planning.target import Target
from overlapc.runtime.artifacts import beside_artifacts

log = logging.getLogger(__name__)

_targets: dict[str, Target] = {}


def remember(target: Target) -> None:
    """Keep a target under its fingerprint, for plans of this process."""
    _targets[target.fingerprint] = target


def keep(target: Target) -> None:
    """Keep a target for the ops of later processes too.

    A warm cache runs no pass: its ops know their target by fingerprint only.
    """
    remember(target)
    path = _file(target.fingerprint)
    try:
        if not path.exists():
            target.save(path)
    except OSError as error:
        log.warning("a target is not kept for the ops of later processes: %s", error)


def target_of(fingerprint: str) -> Target:
    """Return the target of that fingerprint; ``TargetError`` if this machine never saw it."""
    if fingerprint not in _targets:
        path = _file(fingerprint)
        if not path.exists():
            raise TargetError(
                f"The target {fingerprint} that a compiled graph was planned for is unknown here.",
                where=str(path),
                remedy="clear Inductor's cache, or copy that file from the machine that compiled",
            )
        _targets[fingerprint] = Target.load(path)
    return _targets[fingerprint]


def _file(fingerprint: str) -> Path:
    return beside_artifacts() / "targets" / f"{fingerprint}.json"


@lru_cache(maxsize=4096)
def plan_call(fingerprint: str, schedule: str, problem: Problem) -> Plan:
    """Return the plan of one call: a function of its arguments only, so every rank has the same.

    A generated kernel is slower than the library's where its rate is not what is assumed, so "auto"
    takes one only where it won a trial on the group.
    """
    return plan(problem, target_of(fingerprint), schedule, untried_kernels=False)
