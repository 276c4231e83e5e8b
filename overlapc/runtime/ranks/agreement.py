"""How the ranks of a group come to cut a call alike, although their own sizes might differ.

A rank that recompiles because its sizes changed cannot know whether the others did, and they do not
know that it did. So nothing depends on whose graph is new: how a call is cut follows from what
every rank knows of it, its place in the source and what its collective wants equal, and from what
ranks said at the first call of those.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from overlapc.errors import ProblemError
from overlapc.planning.packed_order import PackedOrder
from overlapc.planning.problem import ROWS, Problem
from overlapc.planning.tiles import Tile
from overlapc.runtime.cutting.layout import Dealing
from overlapc.runtime.programs import program
from overlapc.runtime.programs.program import OFFSETS, Program, canonical
from overlapc.runtime.ranks import comparing, groups
from overlapc.runtime.sizing import problem_of
from overlapc.runtime.spec import ChainSpec

MOST_REMEMBERED = 4096
"""Agreements of one group, about one a line and number of columns. What comes after them runs
serial: were one forgotten, ranks that keep what they made ready by it would not meet the others."""


@dataclass(frozen=True)
class Cut:
    """How a call is cut: by which schedule, and how many GEMM rows, columns or tiles each group
    has."""

    schedule: str
    rows: tuple[int, ...]
    by: str = ROWS
    """What ``rows`` counts, "rows", "columns" or "tiles"."""
    tile: Tile | None = None
    """Of groups of tiles: other tiles lie elsewhere."""


@dataclass(frozen=True)
class Work:
    """What all ranks plan for, whatever each computes: the chain of one of them at a first call."""

    program: Program
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    ways: frozenset[str]
    """What the chains of all ranks can be cut by: "rows", "columns"."""
    takes_map: bool
    """Whether the graphs of all ranks took tiles in any order."""
    layouts: tuple[str, str]
    """How A and B of a kernel lay at the first call."""

    def problem(self, spec: ChainSpec, deal: Dealing, moved: int) -> Problem | None:
        """Return what to plan for a call whose collective is given ``moved`` units, or None."""
        rows = [deal.units] * len(self.shapes)
        if spec.is_consumer:
            rows[0] = moved
        modes = self.program.modes
        given = zip(self.shapes, modes, rows, strict=True)
        shapes = [(n, *shape[1:]) if mode == program.ROWS else shape for shape, mode, n in given]
        own = {"program": self.program, "takes_map": self.takes_map, "packed": None}
        found = problem_at(replace(spec, **own), shapes, self.dtypes, deal)
        return found and replace(found, layouts=self.layouts)


def problem_at(
    spec: ChainSpec,
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[torch.dtype],
    deal: Dealing,
    strides: Sequence[Sequence[int]] = (),
) -> Problem | None:
    """Return what is planned for operands of these shapes; None where nothing can be."""
    if OFFSETS in spec.program.modes and deal.outer > 1:
        return None  # a group's rows would not be in the order that the offsets count
    try:
        return problem_of(spec, shapes, dtypes, deal.ranks, deal.receives, deal.outer, strides)
    except ProblemError:
        return None  # nothing is planned for this dtype


@dataclass(frozen=True)
class Agreed:
    """What the ranks of a group agreed on, by the identity of a call."""

    works: dict[str, Work | None] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
    """Of uneven all-to-alls."""
    tiles: dict[str, bool] = field(default_factory=dict)
    """Whether tiles are sent, by the number of rows as well."""


_agreed: WeakKeyDictionary[dist.ProcessGroup, Agreed] = WeakKeyDictionary()


def common_work(
    group: dist.ProcessGroup,
    spec: ChainSpec,
    identity: str,
    sizes: str,
    operands: Sequence[torch.Tensor],
    deal: Dealing,
) -> Work | None:
    """Return what all ranks plan for where a call has this identity; None where all run serial.

    Compared at the first call of the identity, where ranks whose ``sizes`` differ, which the
    collective wants equal, are an error. Of unlike works it is the one that computes most, for
    that one is waited for.
    """
    known = _agreed.setdefault(group, Agreed()).works
    if identity in known or len(known) >= MOST_REMEMBERED:
        return known.get(identity)
    mine = f"{comparing.call_of(spec)} of {sizes}"
    with comparing.refusals_told(group, spec.wait_seconds, is_asked=True):
        work = _described(spec, operands, deal)
    values = groups.exchange(group, f"{mine}{comparing.BY}{work}", spec.wait_seconds)
    said = [value.partition(comparing.BY) for value in values]
    if len({same for same, _, _ in said}) > 1:
        comparing.raise_unlike(group, values, comparing.place_of(spec))
    known[identity] = _heaviest([work for _, _, work in said])
    return known[identity]


def _described(spec: ChainSpec, operands: Sequence[torch.Tensor], deal: Dealing) -> str:
    """A work as the others read it; empty where nothing is planned."""
    shapes, dtypes = [tuple(t.shape) for t in operands], [t.dtype for t in operands]
    problem = problem_at(spec, shapes, dtypes, deal, [t.stride() for t in operands])
    if problem is None:
        return ""
    return canonical(
        {
            "flops": problem.flops,
            "program": spec.program.value(),
            "shapes": shapes,
            "dtypes": [str(dtype).removeprefix("torch.") for dtype in dtypes],
            "ways": problem.dimensions,
            "takes_map": spec.takes_map,
            "layouts": problem.layouts,
        }
    )


def _heaviest(texts: Sequence[str]) -> Work | None:
    if not all(texts):
        return None
    read = {text: json.loads(text) for text in texts}
    most = read[max(texts, key=lambda text: (read[text]["flops"], text))]
    return Work(
        Program.from_value(most["program"]),
        tuple(map(tuple, most["shapes"])),
        tuple(getattr(torch, name) for name in most["dtypes"]),
        frozenset.intersection(*(frozenset(work["ways"]) for work in read.values())),
        all(work["takes_map"] for work in read.values()),
        tuple(most["layouts"]),
    )


def all_read(
    group: dist.ProcessGroup, spec: ChainSpec, identity: str, sizes: str, order: PackedOrder
) -> bool:
    """Return whether all ranks send tiles in this order, for all their graphs read C so.

    Compared at the first call of the identity that is planned so with so many rows, which the
    ranks have in common. Graphs that one of them compiles later send what was agreed on.
    """
    known = _agreed.setdefault(group, Agreed()).tiles
    key = f"{identity} {order.m}"
    if key in known or len(known) >= MOST_REMEMBERED:
        return known.get(key, False)
    mine = f"{comparing.call_of(spec)} of {sizes}"
    read = PackedOrder(order.m, order.n, spec.packed).shape if spec.packed else ROWS
    values = groups.exchange(group, f"{mine}{comparing.BY}{read}", spec.wait_seconds)
    said = [value.partition(comparing.BY) for value in values]
    if len({same for same, _, _ in said}) > 1:
        comparing.raise_unlike(group, values, comparing.place_of(spec))
    known[key] = all(their == f"{order.shape}" for _, _, their in said)
    return known[key]


def known_count(group: dist.ProcessGroup, identity: str) -> Cut | None:
    """Return what ``common_count`` returned for the identity; None if it is to be asked."""
    known = _agreed.setdefault(group, Agreed()).cuts
    if identity in known or len(known) < MOST_REMEMBERED:
        return known.get(identity)
    return Cut("serial", (1,))


def common_count(
    group: dist.ProcessGroup, identity: str, call: str, mine: Cut, seconds: float
) -> Cut:
    """Return in which proportion all ranks cut every block of an uneven all-to-all, or its columns.

    Rows differ by rank and by call, so the ranks' wishes at the first call are compared, and the
    one with the middle number of groups is kept. Columns are cut where all wish it: of them every
    rank has as many.
    """
    text = f"{call} of uneven parts in "
    wish = f"{mine.schedule} {mine.by} {','.join(map(str, mine.rows))}"
    values = groups.exchange(group, text + wish, seconds)
    if not all(value.startswith(text) for value in values):
        comparing.raise_unlike(group, values)
    wishes = [_read_wish(value.removeprefix(text)) for value in values]
    if any(cut.by == ROWS for cut in wishes):
        wishes = [cut for cut in wishes if cut.by == ROWS]
    wishes.sort(key=lambda cut: (len(cut.rows), str(cut)))
    cut = wishes[(len(wishes) - 1) // 2]
    _agreed.setdefault(group, Agreed()).cuts[identity] = cut
    return cut


def _read_wish(value: str) -> Cut:
    schedule, by, rows = value.split()
    # A rank that has no rows now wishes for nothing; blocks that come later are one group.
    return Cut(schedule, tuple(max(1, int(count)) for count in rows.split(",")), by)
