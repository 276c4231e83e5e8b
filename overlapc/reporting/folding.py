"""Sites that differ only in the number of their layer, as one row of a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from overlapc.reporting.records import Site

_LAYER = re.compile(r"(?<![\w:])\d+(?=\.)|(?<=\.)\d+(?![\w:])")
"""A whole part of a dotted module path that is a number; never a line number or a file's name."""

_LAYER_IN_TEXT = re.compile(r"(?<=[A-Za-z_]\.)\d+(?=\.[A-Za-z_]| \()")
"""The same where a sentence names another place: never a decimal number."""


@dataclass(frozen=True)
class Row:
    """Sites of one kind, size, plan and reason."""

    sites: tuple[Site, ...]
    """At least one, in the order of the report."""

    @property
    def first(self) -> Site:
        """Stands for all of them, but for its place and calls."""
        return self.sites[0]

    @property
    def where(self) -> str:
        """The common place, with ``{0..31}`` in place of layer numbers that differ."""
        return _common(_LAYER, [site.where for site in self.sites])

    @property
    def reason(self) -> str:
        """The common reason; layer numbers of the places that it names as in ``where``."""
        return _common(_LAYER_IN_TEXT, [site.reason for site in self.sites])

    @property
    def calls(self) -> Counter[str]:
        """Calls for each schedule, over all sites."""
        total: Counter[str] = Counter()
        for site in self.sites:
            total.update(site.calls)
        return total

    @property
    def redone_rows(self) -> int | None:
        """Rows computed a second time, over all sites; None where none of them counts."""
        counts = [site.redone_rows for site in self.sites if site.redone_rows is not None]
        return sum(counts) if counts else None


def fold(sites: Sequence[Site]) -> list[Row]:
    """Rows in the order of their first sites. Which schedules ran separates rows, counts do not."""
    rows: dict[object, list[Site]] = {}
    for site in sites:
        ran = frozenset(schedule for schedule, count in site.calls.items() if count)
        place = _LAYER.sub("*", site.where)
        key = (site.kind, site.graph, place, site.shape, site.decision, site.plan, site.code)
        reason = _LAYER_IN_TEXT.sub("*", site.reason)
        rows.setdefault((*key, reason, ran), []).append(site)
    return [Row(tuple(members)) for members in rows.values()]


def _common(layer: re.Pattern[str], texts: Sequence[str]) -> str:
    """The first text, with the layer numbers of all of them as ranges."""
    numbers = [layer.findall(text) for text in texts]
    ranges = iter([_span([int(n) for n in column]) for column in zip(*numbers, strict=True)])
    return layer.sub(lambda _: next(ranges), texts[0])


def _span(numbers: Sequence[int]) -> str:
    """``7`` for one number, ``{0..31}`` for a run without gaps, else ``{0,2,5}``."""
    distinct = sorted(set(numbers))
    if len(distinct) == 1:
        return str(distinct[0])
    if distinct[-1] - distinct[0] == len(distinct) - 1:
        return f"{{{distinct[0]}..{distinct[-1]}}}"
    return f"{{{','.join(map(str, distinct))}}}"
