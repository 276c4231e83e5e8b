"""Which units of a tensor's dimension 0 a group is made of, and how to take and put them.

A scatter deals the units out as ``[outer, ranks, inner]``: a group then has some units of every
rank, in the order of the ranks, which is no range of the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch

Range = tuple[int, int]
"""From and to."""


@dataclass(frozen=True)
class Box:
    """Units ``[outer, ranks, inner]`` of these ranges, in the order of ranks, outer, inner."""

    outer: Range
    ranks: Range
    inner: Range

    @property
    def count(self) -> int:
        """Units."""
        (o, o_end), (r, r_end), (i, i_end) = self.outer, self.ranks, self.inner
        return (o_end - o) * (r_end - r) * (i_end - i)

    def of(self, tensor: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
        """View of ``[outer * ranks * inner, ...]`` as ``[ranks, outer, inner, ...]``.

        Without ``outer`` where that is one.
        """
        first = 1 if grid[0] == 1 else 0
        part = tensor.view(*grid[first:], *tensor.shape[1:])  # a dimension can always be split
        for dim, (start, end) in enumerate((self.outer, self.ranks, self.inner)):
            if end - start != grid[dim]:
                part = part.narrow(dim - first, start, end - start)
        return part if first else part.transpose(0, 1)


@dataclass(frozen=True)
class Units:
    """Some units of dimension 0, read as a grid, in the order of the boxes."""

    grid: tuple[int, int, int]
    """Outer, ranks, inner: their product is the size of dimension 0."""
    boxes: tuple[Box, ...]

    @cached_property
    def count(self) -> int:
        """How many units these are."""
        return sum(box.count for box in self.boxes)

    @cached_property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """(start, length) of the units, in their order; neighbours are one slice."""
        merged: list[tuple[int, int]] = []
        for start, length in self._rows():
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            elif length:
                merged.append((start, length))
        return tuple(merged)

    def _rows(self) -> Iterator[tuple[int, int]]:
        _, ranks, inner = self.grid
        for box in self.boxes:
            for r in range(*box.ranks):
                for o in range(*box.outer):
                    yield (o * ranks + r) * inner + box.inner[0], box.inner[1] - box.inner[0]

    @cached_property
    def run(self) -> tuple[int, int] | None:
        """(start, length) where the units are one range, else None."""
        if not self.slices:
            return 0, 0
        return self.slices[0] if len(self.slices) == 1 else None

    @cached_property
    def is_all(self) -> bool:
        """Whether these are all units, in the tensor's own order."""
        outer, ranks, inner = self.grid
        return self.run == (0, outer * ranks * inner)

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return these units of a tensor ``[units, ...]``: a view if they are one range.

        Else they are contiguous: kernels refuse scales with other strides, of one a rank too.
        """
        if self.run is not None:
            return tensor if self.is_all else tensor.narrow(0, *self.run)
        if len(self.boxes) == 1:
            part = self.boxes[0].of(tensor, self.grid)
            return part.reshape(self.count, *tensor.shape[1:]).contiguous()
        last = -tensor.dim()  # of the dimensions that are units: one or more, by the part
        return torch.cat([part.flatten(0, last) for part, _ in self._parts(tensor)])

    def put(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        """Write ``values[count, ...]`` to these units of ``tensor[units, ...]``."""
        if self.run is not None:
            tensor.narrow(0, *self.run).copy_(values)
            return
        start = 0
        for place, count in self._parts(tensor):
            place.copy_(values.narrow(0, start, count).view(place.shape))
            start += count

    def _parts(self, tensor: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
        """Views of a tensor that make up these units, and how many units each has."""
        if len(self.slices) <= len(self.boxes):
            for start, length in self.slices:
                yield tensor.narrow(0, start, length), length
            return
        for box in self.boxes:
            yield box.of(tensor, self.grid), box.count

    def offsets(self, ends: torch.Tensor) -> torch.Tensor:
        """Return how many of these units lie before each of ``ends``; they have to be rising."""
        if self.is_all:
            return ends
        before = [(ends - start).clamp(0, length) for start, length in self.slices]
        return sum(before[1:], before[0]) if before else torch.zeros_like(ends)


def ranges(counts: Sequence[int]) -> list[Range]:
    """Return where each of so many units starts and ends."""
    return list(pairwise((0, *accumulate(counts))))


def band(start: int, end: int, units: int) -> Units:
    """Return the units from ``start`` to ``end`` of so many."""
    return Units((1, 1, units), (Box((0, 1), (0, 1), (start, end)),))


def dealt(
    grid: tuple[int, int, int], start: int, end: int, ranks: Sequence[Range] | None = None
) -> Units:
    """Return, of every rank of a grid, its units from ``start`` to ``end``.

    A rank's units are numbered as [outer, inner]. ``ranks``: those of these ranges only.
    """
    _, size, inner = grid
    ranks = [(0, size)] if ranks is None else ranks
    areas = list(_areas(start, end, inner))
    if len(areas) > 1:  # of every rank all of its areas, before those of the next
        ranks = [(rank, rank + 1) for first, last in ranks for rank in range(first, last)]
    boxes = tuple(Box(rows, span, columns) for span in ranks for rows, columns in areas)
    return Units(grid, boxes)


def _areas(start: int, end: int, inner: int) -> Iterator[tuple[Range, Range]]:
    """The at most three rectangles of [outer, inner] that the units from start to end make."""
    while start < end:
        row, column = divmod(start, inner)
        rows = (end - start) // inner
        if column == 0 and rows:
            yield (row, row + rows), (0, inner)
            start += rows * inner
        else:
            stop = min(inner, column + end - start)
            yield (row, row + 1), (column, stop)
            start += stop - column


Share = tuple[int, int, int]
"""Of a block: from where to where, in units of which the whole block has so many."""

WHOLE_SHARE: Share = (0, 1, 1)


def portions(sizes: Sequence[int], share: Share, ranks: Sequence[int]) -> Units:
    """Return a share of the blocks of some ranks.

    Block r has ``sizes[r]`` units. Who sends a block cuts it as who receives it does.
    """
    low, high, whole = share
    blocks = ranges(sizes)
    boxes = []
    for start, end in (blocks[rank] for rank in ranks):
        size = end - start
        part = (start + size * low // whole, start + size * high // whole)
        boxes.append(Box((0, 1), (0, 1), part))
    return Units((1, 1, sum(sizes)), tuple(boxes))
