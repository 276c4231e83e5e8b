"""Where φ comes from at one attention, by what its graph proves of its scores. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

ONLINE, ZERO, BOUND, SINK, FIRST = "online", "zero", "bound", "sink", "first_tile"
RUNNING = "running"
"""As `codegen.attention.policies` names them."""

TWICE = "computed twice"


@dataclass(frozen=True)
class KnownScores:
    """What a graph says of the scores of an attention."""

    least: float = float("-inf")
    most: float = float("inf")
    """Of those that a row keeps, in nats."""
    phi: float | None = None
    """Relative to it every row's sum of weights is exact; None: no number is known to be one."""
    product: float = float("inf")
    """No scaled product of queries and keys is larger, in nats, as norms and their weights say."""
    why_no_norms: str = ""
    """Why norms that there are say nothing of products, as a clause; empty where none are."""
    is_cached: bool = False
    """That is taken for granted of keys that a cache holds."""
    has_sinks: bool = False
    may_be_none: bool = False
    """A row may keep no key. Under a finite mask its sum is of weights that are nearly zero, and
    only a second pass gives the mean that eager has."""
    is_moved: bool = False
    """A bias that differs from head to head is added, such as of positions: it may take the
    maximum of a row to anywhere."""


UNKNOWN = KnownScores()


@dataclass(frozen=True)
class Source:
    """Where φ comes from, and why from there."""

    policy: str
    how: str
    """The rest of "a kernel of our own makes its softmax"."""
    phi: float = 0.0
    """Where the policy is ``bound``."""


def choose_source(scores: KnownScores, dtype: str, choice: str) -> Source:
    """Choose for one attention under option ``softmax``: "unified", "running" or "online".

    No choice can make a result wrong: rows that leave the range in which sums are exact are
    computed again. It decides how many those are.
    """
    if choice == ONLINE:
        return Source(ONLINE, "with a running maximum")
    if scores.phi is not None and not scores.has_sinks:
        span = f"{scores.least:.4g} and {scores.most:.4g}"
        by = _by_norms(scores) if scores.product < math.inf else ""
        how = f"relative to φ = {scores.phi:.4g}: {by}its scores lie between {span}, and no row"
        which = " that keeps a key" if scores.may_be_none else ""
        return Source(BOUND, f"{how}{which} is {TWICE}", scores.phi)
    found = _unbounded(scores, dtype, choice)
    return replace(found, how=f"{found.how}{_why_norms_do_not(scores, dtype)}")


def _by_norms(scores: KnownScores) -> str:
    were = " (and were, for keys of a cache)" if scores.is_cached else ""
    return f"by its norms' weights as they are{were}, "


def _why_norms_do_not(scores: KnownScores, dtype: str) -> str:
    """Why norms give no φ, where there are norms, as a clause."""
    if scores.why_no_norms or scores.product == math.inf:
        return f"; {scores.why_no_norms}" if scores.why_no_norms else ""
    why = f"no number is safe for all of that in {dtype}"
    if scores.least == -math.inf or scores.most == math.inf:
        why = "what is done to scores leaves no bound"
    elif scores.has_sinks:
        why = "its sinks may lie anywhere"
    return f"; its norms' weights keep products within {scores.product:.4g}, and {why}"


def _unbounded(scores: KnownScores, dtype: str, choice: str) -> Source:
    """Where φ comes from if no number is known to be right for all rows."""
    if scores.is_moved:
        how = "with a running maximum, for a bias of each head may move a row's scores anywhere"
        return Source(ONLINE, how)
    if dtype == "float16":
        # Its weights hold too few powers of two for a φ that is the same for all rows.
        how = "relative to the maximum of each row's first keys"
        if choice == RUNNING:
            how += " (float16 holds too few powers of two for a running φ)"
        return Source(FIRST, f"{how}, and rows of too large or small a sum are {TWICE}")
    if choice == RUNNING:
        how = "relative to a running φ of each head, which earlier calls left"
        why = f"rows of too large or small a sum are {TWICE} and move it"
        return Source(RUNNING, f"{how}: {why}, so that equal calls may round differently")
    if scores.has_sinks:
        how = "relative to each head's sink, whose own weight is then 1"
        return Source(SINK, f"{how}, and rows of too large a sum are {TWICE}")
    return Source(ZERO, f"relative to φ = 0, and rows of too large or small a sum are {TWICE}")
