"""Where φ comes from at one attention, by what its graph proves of its scores. No torch."""

from __future__ import annotations

from dataclasses import dataclass

ONLINE, ZERO, BOUND, SINK, FIRST = "online", "zero", "bound", "sink", "first_tile"
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
    has_sinks: bool = False
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
    """Choose for one attention under option ``softmax``: "unified" or "online".

    No choice can make a result wrong: rows that leave the range in which sums are exact are
    computed again. It decides how many those are.
    """
    if choice == ONLINE:
        return Source(ONLINE, "with a running maximum")
    if scores.phi is not None and not scores.has_sinks:
        span = f"{scores.least:.4g} and {scores.most:.4g}"
        how = f"relative to φ = {scores.phi:.4g}: its scores lie between {span}, and no row is"
        return Source(BOUND, f"{how} {TWICE}", scores.phi)
    if scores.is_moved:
        how = "with a running maximum, for a bias of each head may move a row's scores anywhere"
        return Source(ONLINE, how)
    if dtype == "float16":
        # Its weights hold too few powers of two for a φ that is the same for all rows.
        how = "relative to the maximum of each row's first keys"
        return Source(FIRST, f"{how}, and rows of too large or small a sum are {TWICE}")
    if scores.has_sinks:
        how = "relative to each head's sink, whose own weight is then 1"
        return Source(SINK, f"{how}, and rows of too large a sum are {TWICE}")
    return Source(ZERO, f"relative to φ = 0, and rows of too large or small a sum are {TWICE}")
