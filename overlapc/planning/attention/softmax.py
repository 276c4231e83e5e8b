"""Which φ the heads of an attention are to have, from the scores that prompts gave them. No torch.

Scores and φ are in nats: ``exp(score - φ)`` is a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

QUANTILES = (0.0001, 0.5, 0.9999)
"""Of scores: the first and the last are those between which a φ for all was chosen by what the
idea is from (FlashDecoding++)."""
EIGHTH = 1 / 8
"""Of a nat: scores are counted by it."""
MOST_REDONE = 1e-4
"""Rows that may be computed twice. One such row costs all rows of its CTA the same time again, up
to 128 of them: chosen, so that this stays near a hundredth of the CTAs."""
LEAST_SLACK = 2.0
"""By which scores of other prompts may shift before more rows than those are: chosen."""

MOST_PHI = 1e30
"""Of a size that is a number of float32 over the scale of scores as well: kernels take it off
products, and multiply what is left."""


LEGEND = f"""\
Of each head of queries: the rows of queries that saw a key, and their attention scores, scaled and
masked as softmax takes them, in nats (natural logarithms of weights). φ is the number of that head
that softmax='unified' takes scores relative to, as exp(score - φ), in place of each row's maximum:
the middle of all that would serve, so it may lie beside the scores;
slack is by how many nats other prompts may shift scores, either way, before more than
{100 * MOST_REDONE:g} % of the rows are computed twice. Where a head has no φ, its attention takes
maxima of rows instead."""
"""What ``HeadScores.text`` says."""
NO_KERNEL = """\
On this machine no kernel can take a φ, for those that do run on GPUs: what is stored serves the
same weights where a GPU is, and here under TRITON_INTERPRET=1."""
"""What calibration says where kernels of attention do not run."""


@dataclass(frozen=True)
class HeadScores:
    """What was seen of one head of queries."""

    rows: int
    """That saw a key."""
    least: float
    most: float
    """Of all scores."""
    quantiles: tuple[float, ...]
    """At ``QUANTILES``, rounded down to an eighth."""
    phi: float | None
    """None: no number is one relative to which few enough rows are computed twice."""
    slack: float
    """By which it may be off, either way."""
    redone_by_first: int
    """Rows that would be computed twice relative to the maximum over their first keys."""

    def __post_init__(self) -> None:
        # Relative to another one even rows without a key, whose result is zeros, are NaN.
        if self.phi is not None and not abs(self.phi) <= MOST_PHI:
            raise ValueError(f"a φ of {self.phi} is no number that scores are relative to")

    def text(self) -> str:
        """The range and what is chosen, as a person reads it."""
        least, middle, most = self.quantiles
        span = f"{self.rows} rows, scores {self.least:.3g} to {self.most:.3g} nats"
        # What was rounded down lies within an eighth above, and within all scores.
        least, most = max(least, self.least), min(most + EIGHTH, self.most)
        middle = min(max(middle + EIGHTH / 2, self.least), self.most)
        inner = f"median about {middle:.3g}, {_percent(QUANTILES[2] - QUANTILES[0])} within"
        chosen = "none" if self.phi is None else f"{self.phi:g} nats, slack {self.slack:g}"
        return f"{span} ({inner} {least:.3g} to {most:.3g}); φ {chosen}"


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


@dataclass(frozen=True)
class Phi:
    """A number that rows may be taken relative to."""

    value: float
    slack: float


def choose_phi(lows: Mapping[int, int], highs: Mapping[int, int]) -> Phi | None:
    """The middle of the widest range of φ in which at most `MOST_REDONE` of the rows are redone.

    Of each row the least φ that it can have is counted in ``lows``, and the greatest in ``highs``.
    None where there is no such range, or one too narrow for prompts that were not seen.
    """
    rows = sum(lows.values())
    wanted = rows - int(rows * MOST_REDONE)
    changes = Counter(lows)
    for at, count in highs.items():
        changes[at + 1] -= count
    covered, begin, widest = 0, None, (0, -1)
    for at in sorted(changes):
        covered += changes[at]
        if covered >= wanted:
            begin = at if begin is None else begin
        elif begin is not None:
            widest = max(widest, (begin, at - 1), key=lambda span: span[1] - span[0])
            begin = None
    slack = (widest[1] - widest[0]) / 2
    return Phi(widest[0] + slack, slack) if slack >= LEAST_SLACK else None


@dataclass(frozen=True)
class SiteScores:
    """One attention of a graph: what was seen of it, head by head."""

    where: str
    """Module path and source line."""
    attention: str
    """What of it φ depends on beside the weights, as text."""
    heads: tuple[HeadScores, ...]
    """Empty: it is not ours to compute, or no row saw a key."""

    @property
    def policy(self) -> str:
        """Where φ is to come from, as `codegen.attention.policies` names it; empty: not known."""
        if not self.heads:
            return ""
        if all(head.phi is not None for head in self.heads):
            return "head"
        rows = sum(head.rows for head in self.heads)
        redone = sum(head.redone_by_first for head in self.heads)
        return "first_tile" if redone <= rows * MOST_REDONE else "online"

    @property
    def phi(self) -> tuple[float, ...]:
        """Of each head, where all have one; else nothing."""
        return (
            tuple(head.phi for head in self.heads if head.phi is not None)
            if self.policy == "head"
            else ()
        )

    def text(self) -> str:
        """What follows for it, in a clause that a site's reason goes on with."""
        rows = sum(head.rows for head in self.heads)
        seen = f"{rows} rows of prompts"
        if self.policy == "head":
            span = " to ".join(dict.fromkeys(f"{end:g}" for end in (min(self.phi), max(self.phi))))
            return f"relative to a φ of each head, {span}, chosen for {seen}"
        without = sum(head.phi is None for head in self.heads)
        why = f"{seen} left no φ to {without} of {len(self.heads)} heads"
        if self.policy == "first_tile":
            return f"relative to the maximum of each row's first keys, for {why}"
        return f"with a running maximum, for {why}, and first keys say too little"
