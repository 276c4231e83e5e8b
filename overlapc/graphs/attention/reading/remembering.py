"""What was found of constants, kept while one graph is rewritten: each layer spells the same mask,
and in every checkpoint it would be computed again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")

MOST_BYTES = 1 << 30
"""Of tensors that are kept: chosen, some masks of 8192 by 8192."""

Known = dict[Hashable, Any]

_kept: list[Known] = []
"""That of the graph that is being read, last."""


@contextmanager
def remembered(known: Known) -> Iterator[None]:
    """Keep in ``known`` what ``recalled`` finds in the block."""
    _kept.append(known)
    try:
        yield
    finally:
        _kept.pop()


def recalled(key: Hashable | None, find: Callable[[], Found]) -> Found:
    """Return what ``find`` gave for this key in this block, which nobody may write to; without a
    key, or a block, what it gives now."""
    if key is None or not _kept:
        return find()
    known = _kept[-1]
    if key not in known:
        found = find()
        if _bytes(found) + sum(map(_bytes, known.values())) > MOST_BYTES:
            known.clear()
        known[key] = found
    return known[key]


def _bytes(found: object) -> int:
    return found.nbytes if isinstance(found, torch.Tensor) else 0
