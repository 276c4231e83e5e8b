"""What the scores of one head of an attention are like, added up over calls."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch

from overlapc.codegen.attention.policies import SAFE_SUMS
from overlapc.errors import ProblemError
from overlapc.planning.attention.fills import WEAKEST_FILL
from overlapc.planning.attention.softmax import QUANTILES, HeadScores, choose_phi

FIRST_KEYS = 16
"""The fewest keys of a tile of any kernel, whose maximum ``first_tile`` takes for φ."""
EIGHTHS, FURTHEST = 8, 1 << 15
"""Scores are counted by eighths of a nat, as far as this many of them."""


@dataclass
class HeadRange:
    """The scores of one head of queries in the dtype of its weights, so far."""

    dtype: str
    rows: int = 0
    least: float = math.inf
    most: float = -math.inf
    eighths: Counter[int] = field(default_factory=Counter)
    """Scores by eighths of a nat."""
    lows: Counter[int] = field(default_factory=Counter)
    highs: Counter[int] = field(default_factory=Counter)
    """Rows by the least and the greatest whole φ relative to which they are exact."""
    redone_by_first: int = 0

    def add(
        self,
        scores: torch.Tensor,
        seen: torch.Tensor | None = None,
        sink: torch.Tensor | None = None,
    ) -> None:
        """Take in scores ``[rows, keys]``, of which each row sees what ``seen`` says, as shaped,
        and beside them the sink of the head.

        Rows all of whose keys are masked say nothing: no φ suits them, and none needs to.
        """
        peak = scores.amax(-1)
        alive = peak > WEAKEST_FILL
        if peak.isnan().any() or (peak == math.inf).any():
            raise ProblemError(
                "A score is NaN or infinite.",
                where="an attention of the model that is calibrated",
                remedy="give a model and prompts whose results are finite",
            )
        scores, peak = scores[alive], peak[alive]
        if not len(scores):
            return
        seen = None if seen is None else seen.expand(len(alive), -1)[alive]
        kept = scores[scores > WEAKEST_FILL]
        self.rows += len(scores)
        self.least = min(self.least, kept.min().item())
        self.most = max(self.most, kept.max().item())
        _count(self.eighths, (EIGHTHS * kept).floor().clamp(-FURTHEST, FURTHEST))
        sums = torch.logsumexp(scores.double(), -1)
        if sink is not None:
            sums = torch.logaddexp(sums, sink.double())
        low, high = self._range(peak, sums, scores.shape[-1], seen)
        _count(self.lows, low.ceil())
        _count(self.highs, high.floor())
        first = _first(scores)
        first = first if sink is None else first.maximum(sink)
        # It is a score of the row, above which none is too high: only a sum may be too large.
        self.redone_by_first += int((first < low).sum())

    def _range(
        self, peak: torch.Tensor, sums: torch.Tensor, count: int, seen: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The least and the greatest φ relative to which each row is exact: see ``SafeSums``."""
        safe = SAFE_SUMS[self.dtype]
        largest = math.log(torch.finfo(getattr(torch, self.dtype)).max)
        keys = peak.new_full(peak.shape, count) if seen is None else seen.sum(-1)
        least = (keys.double() * safe.least_each).clamp(min=safe.least).log()
        low = torch.maximum(peak.double() - largest, sums - math.log(safe.most))
        return low, sums - least

    def summary(self) -> HeadScores:
        """What is stored of it."""
        phi = choose_phi(self.lows, self.highs)
        return HeadScores(
            rows=self.rows,
            least=self.least,
            most=self.most,
            quantiles=quantiles(self.eighths),
            phi=phi.value if phi else None,
            slack=phi.slack if phi else 0.0,
            redone_by_first=self.redone_by_first,
        )


def quantiles(eighths: Counter[int]) -> tuple[float, ...]:
    """Return the ``QUANTILES`` of scores that were counted by eighths."""
    total, found = eighths.total(), []
    for share in QUANTILES:
        passed = 0
        for at in sorted(eighths):
            passed += eighths[at]
            if passed >= share * total:
                found.append(at / EIGHTHS)
                break
    return tuple(found)


def _count(into: Counter[int], values: torch.Tensor) -> None:
    whole = values.long()
    least = int(whole.min())
    counts = torch.bincount(whole - least)
    for at in counts.nonzero().flatten().tolist():
        into[least + at] += int(counts[at])


def _first(scores: torch.Tensor) -> torch.Tensor:
    """The maximum over the first keys of each row, from the first that it keeps on."""
    begin = (scores > WEAKEST_FILL).long().argmax(-1, keepdim=True)
    places = begin + torch.arange(FIRST_KEYS, device=scores.device)
    return scores.gather(-1, places.clamp(max=scores.shape[-1] - 1)).amax(-1)
