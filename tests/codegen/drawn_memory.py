"""Operands in any order of their dimensions with gaps between, and a watch over what is touched."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from triton.runtime.interpreter import interpreter_builder

GUARD = 96
"""Elements before and behind a tensor's own that nothing may touch: more than a row of a tile."""


def laid_out(
    tensor: torch.Tensor, chance: random.Random, poison: float, *, is_aligned: bool = False
) -> torch.Tensor:
    """The values of ``tensor`` with strides of their own, ``poison`` around and between them.

    ``is_aligned``: elements of a row follow one another, and rows begin at multiples of 16 bytes.
    A dimension that is expanded stays so.
    """
    if not tensor.dim():
        return laid_out(tensor[None], chance, poison)[0]
    once = [0 if step == 0 else slice(None) for step in tensor.stride()]
    own = tensor[tuple(slice(0, 1) if at == 0 else at for at in once)]
    order = list(range(own.dim()))
    chance.shuffle(order)
    if is_aligned or chance.random() < 0.3:
        order.remove(own.dim() - 1)
        order.append(own.dim() - 1)
    sizes, steps = [], []
    for place, dim in enumerate(order):
        is_last = place == len(order) - 1
        step = 1 if is_aligned or chance.random() < 0.7 else 2
        beyond = 0 if chance.random() < 0.5 else chance.randint(1, 3)
        size = own.shape[dim] * step + beyond
        sizes.append(-(-size // 8) * 8 if is_aligned and is_last else size)
        steps.append(step)
    count = int(np.prod(sizes)) if sizes else 1
    memory = torch.zeros(count + 2 * GUARD, dtype=own.dtype)
    if own.dtype == torch.bool:
        memory.fill_(poison != 0)
    elif own.dtype.is_floating_point:
        memory.copy_(torch.full(memory.shape, poison))
    else:
        memory.fill_(2**30)
    wide = memory[GUARD : GUARD + count].view(sizes)
    for place, step in enumerate(steps):
        size = own.shape[order[place]]
        wide = (
            wide.narrow(place, 0, size * step).unflatten(place, (size, step)).select(place + 1, 0)
        )
    found = wide.permute([order.index(dim) for dim in range(own.dim())])
    found.copy_(own)
    return found.expand(tensor.shape)


def apart(lengths: torch.Tensor) -> torch.Tensor:
    """The same lengths with others between; what all sequences have lies there once."""
    if lengths.numel() and bool((lengths == lengths[0]).all()):
        return lengths[:1].clone().expand(lengths.shape)
    return torch.stack((lengths, torch.full_like(lengths, 7)), 1)[:, 0]


class Watch:
    """Bytes of storages, and which of them are elements that may be read or written."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.wrong: set[str] = set()

    def add(self, tensor: torch.Tensor | None, *, is_written: bool = False) -> None:
        """Let elements of ``tensor`` be read, or read and written."""
        if tensor is None or not tensor.numel():
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        readable, writable = self.known.setdefault(
            storage.data_ptr(), (np.zeros(size, bool), np.zeros(size, bool))
        )
        item = tensor.element_size()
        places = np.zeros(1, np.int64) + (tensor.data_ptr() - storage.data_ptr())
        for length, step in zip(tensor.shape, tensor.stride(), strict=True):
            along = np.arange(length if step else 1) * step * item
            places = (places[:, None] + along).ravel()
        readable[places] = True
        writable[places] |= is_written

    def check(self, pointers: Any, mask: Any, what: str) -> None:
        """Note what is no element of a known storage; of others nothing is known."""
        touched = np.asarray(pointers.data)[np.asarray(mask.data).astype(bool)].astype(np.int64)
        if not touched.size:
            return
        low, high = touched.min(), touched.max()
        for base, (readable, writable) in self.known.items():
            allowed = writable if what == "written" else readable
            if high < base or low >= base + len(allowed):
                continue
            own = touched[(touched >= base) & (touched < base + len(allowed))] - base
            if not allowed[own].all():
                self.wrong.add(what)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Raise AssertionError where a kernel touches what it may not."""
        builder: Any = interpreter_builder
        load, store = builder.create_masked_load, builder.create_masked_store

        def watched_load(pointers: Any, mask: Any, *others: Any, **named: Any) -> Any:
            self.check(pointers, mask, "read")
            return load(pointers, mask, *others, **named)

        def watched_store(pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
            self.check(pointers, mask, "written")
            return store(pointers, value, mask, *others)

        with patch.multiple(
            builder, create_masked_load=watched_load, create_masked_store=watched_store
        ):
            yield
        assert not self.wrong, f"{sorted(self.wrong)} beside the elements of an operand"
