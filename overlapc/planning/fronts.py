"""Half-made cuts that are worth completing: the Pareto labels of the search."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from math import inf
from operator import itemgetter

Label = tuple[float, float, int, int, "Label | None"]
"""One way to pass the first rows through both lanes: when that leaves the first lane (``ready``)
and the second (``end``), in how many groups, how many rows, and the label without the last group.
"""


def undominated(reached: Iterable[Label]) -> list[Label]:
    """The labels that no other equals or beats in both times; fewer groups win a tie.

    Along the list ``ready`` rises and ``end`` falls.
    """
    kept: list[Label] = []
    earliest = inf
    for label in sorted(reached, key=itemgetter(0, 1, 2)):
        if label[1] < earliest:
            kept.append(label)
            earliest = label[1]
    return kept


class Front:
    """The undominated labels of the same rows, for lanes that slow each other by c and d."""

    def __init__(self, reached: Iterable[Label], c: float, d: float) -> None:
        self.labels = undominated(reached)
        self._ratio, share = c / d, d * (1 - 1 / c)
        # `ready` rises and `end` falls from label to label, so the backlog falls too.
        self._spare = [label[0] - label[1] for label in self.labels]
        self._quickest = list(self.labels)
        for index in range(len(self.labels) - 2, -1, -1):
            mine, other = self.labels[index], self._quickest[index + 1]
            if _idle_ready(mine, share) > _idle_ready(other, share):
                self._quickest[index] = other

    def before(self, work: float) -> list[Label]:
        """The labels that can be the best to add a group of ``work`` to.

        Where the second lane has caught up before the group is ready, when that is alone decides
        what follows (`cost.advance`), so one of those labels is enough.
        """
        busy = bisect_left(self._spare, -work * self._ratio)
        return self.labels[:busy] + self._quickest[busy : busy + 1]


def _idle_ready(label: Label, share: float) -> float:
    """When a group is ready that outlasts the second lane's backlog, less its own work."""
    return label[0] + share * (label[1] - label[0])
