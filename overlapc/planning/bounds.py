"""How early any completion of a half-made cut can end: what a search may prune by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

Step = tuple[float, float, float]
"""``work``, ``alone`` and ``queued`` of a group, as `cost.advance` takes them."""


class Bounds:
    """Lower bounds on the end, from (ready, end) after each of ``starts`` but the first.

    ``steps`` gives the step of a group that is not the first by its rows. Beside each other the
    lanes run at 1/c and 1/d. So whatever the cut, the time that is left is at least the work of one
    lane and a share of that of the other: with weights of at most 1 such that neither one lane
    alone nor both side by side do more than one unit of weighted work a second.
    """

    def __init__(
        self, starts: Sequence[int], steps: Mapping[int, Step], c: float, d: float
    ) -> None:
        self.share = min(1.0, d * (1 - 1 / c))
        """Weight of the second lane's work beside all of the first's: 1/c + share/d <= 1."""
        other = min(1.0, c * (1 - 1 / d))
        self.by_ready = _least(
            # Nothing is beside the second lane while it does the last group.
            starts,
            {rows: work + self.share * queued for rows, (work, _, queued) in steps.items()},
            {
                rows: work + self.share * queued + (1 - self.share) * alone
                for rows, (work, alone, queued) in steps.items()
            },
        )
        """Least time left after each start, counted from ``ready + share * (end - ready)``."""
        by_end = {rows: queued + other * work for rows, (work, _, queued) in steps.items()}
        self.by_end = _least(starts, by_end, by_end)
        """Least time left after each start, counted from ``end``."""


def _least(
    starts: Sequence[int], inner: Mapping[int, float], last: Mapping[int, float]
) -> list[float]:
    """From each start but the first, the least sum over the groups of any cut of what remains.

    The last group counts ``last``, the others ``inner``, by their rows.
    """
    final = len(starts) - 1
    least = [0.0] * len(starts)
    for index in range(final - 1, 0, -1):
        start = starts[index]
        more = (inner[starts[after] - start] + least[after] for after in range(index + 1, final))
        least[index] = min(last[starts[final] - start], *more, inf)
    return least
