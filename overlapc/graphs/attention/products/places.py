"""Where rows and keys stand among the dimensions of scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Places:
    """Dimensions of rows and keys, counted from the end; all others are batches, in their order."""

    rows: int = -2
    keys: int = -1

    @property
    def are_last(self) -> bool:
        """Return whether no batch stands behind rows or keys."""
        return min(self.rows, self.keys) == -2

    @property
    def is_usual(self) -> bool:
        """Return whether rows and then keys are the last two."""
        return (self.rows, self.keys) == (-2, -1)

    def order(self, dims: int) -> tuple[int, ...]:
        """Return the permutation of so many dimensions to ``[..., rows, keys]``."""
        own = self.rows % dims, self.keys % dims
        return (*(dim for dim in range(dims) if dim not in own), *own)

    def batch(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """Return the sizes of a shape that are of batches."""
        return tuple(shape[dim] for dim in self.order(len(shape))[:-2])

    def before(self, order: tuple[int, ...]) -> Places | None:
        """Return where they stand in what is permuted to these; None where batches change places
        among themselves."""
        if not order:
            return None
        batches = [order[dim] for dim in self.order(len(order))[:-2]]
        if batches != sorted(batches):
            return None
        return Places(order[self.rows] - len(order), order[self.keys] - len(order))

    def after(self, order: tuple[int, ...]) -> Places | None:
        """Return where they stand once these are permuted; None as of ``before``."""
        return self.before(tuple(sorted(range(len(order)), key=order.__getitem__)))


def possible_places(dims: int, keys: int) -> Iterator[Places]:
    """Yield where rows may stand among so many dimensions, the usual place first."""
    usual = -2 if keys == -1 else -1
    others = (dim for dim in range(-1, -dims - 1, -1) if dim not in (keys, usual))
    for rows in (usual, *others):
        yield Places(rows, keys)
