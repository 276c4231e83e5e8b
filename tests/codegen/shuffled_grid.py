"""Programs of a launch in the interpreter, in another order than that of the grid."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.runtime.interpreter import interpreter_builder


@contextmanager
def shuffled_grid(generator: random.Random) -> Iterator[None]:
    """Run the programs of every launch in a random order of both axes of the grid."""
    builder: Any = interpreter_builder
    set_index, set_size = builder.set_grid_idx, builder.set_grid_dim
    order: list[int] = []
    width = [1]

    def sized(x: int, y: int, z: int) -> None:
        order[:] = generator.sample(range(x * y), x * y)
        width[0] = y
        set_size(x, y, z)

    def indexed(x: int, y: int, z: int) -> None:
        place = order[x * width[0] + y]
        set_index(place // width[0], place % width[0], z)

    builder.set_grid_dim, builder.set_grid_idx = sized, indexed
    try:
        yield
    finally:
        builder.set_grid_idx, builder.set_grid_dim = set_index, set_size
