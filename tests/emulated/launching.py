"""Triton's launches on a device that is emulated: what it compiles runs on tensors of the host."""

from __future__ import annotations

import ctypes
import itertools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import CompiledKernel
from triton.runtime import driver

from tests.emulated.assembly import Kernel, parse
from tests.emulated.instructions import step_of
from tests.emulated.memory import POISON, Tensors
from tests.emulated.tensor_maps import SPANS, TensorMap
from tests.emulated.threads import PARAMETER_BASE, Cta, Launch, Step

NUMBERS = {
    "i1": "<u1", "u1": "<u1", "i8": "<i1", "u8": "<u1", "i16": "<i2", "u16": "<u2",
    "i32": "<i4", "u32": "<u4", "i64": "<i8", "u64": "<u8", "fp32": "<f4", "fp64": "<f8",
}  # fmt: skip
"""How a number is told to a kernel, by Triton's type."""
SCRATCH = 2
"""Pointers behind the arguments of every kernel, to memory that ours do not use."""

ORDERS = random.Random(0)
"""Of CTAs."""


class Driver:
    """A device of which Triton asks what it is; each architecture is a device of its own."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return int(self.target.arch)

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@contextmanager
def emulated(architecture: str) -> Iterator[list[str]]:
    """Let launches of Triton run so, compiled for ``sm_80`` and the like; gives the names of
    kernels that have run."""
    launched: list[str] = []

    def run(self: Any) -> Any:
        def launch(*arguments: Any) -> None:
            x, y, z = arguments[:3]
            launched.append(self.name)
            run_grid(self, (x, y, z), arguments[9:])

        return launch

    with (
        patch.object(CompiledKernel, "run", property(run)),
        patch.object(CompiledKernel, "launch_metadata", lambda self, *given: None),
        patch.object(CompiledKernel, "_init_handles", lambda self: None),
        patch.object(driver, "_active", Driver(int(architecture.removeprefix("sm_")))),
        np.errstate(all="ignore"),
    ):
        yield launched


def run_grid(compiled: Any, grid: tuple[int, int, int], arguments: Sequence[Any]) -> None:
    """Run every CTA, one behind the other, in an order of this launch alone."""
    kernel, steps = _read(text_of(compiled))
    maps = iter(compiled.metadata.tensordesc_meta or ())
    values = list(_leaves(list(compiled.src.signature.values()), arguments, maps))
    parameters = dict(_parameters(kernel, values))
    tensors = Tensors(_storage(value) for _, value in values if isinstance(value, torch.Tensor))
    tensor_maps = {
        PARAMETER_BASE + index: value
        for index, (_, value) in enumerate(values) if isinstance(value, TensorMap)
    }  # fmt: skip
    launch = Launch(kernel, steps, grid, compiled.metadata.shared, tensors, parameters, tensor_maps)
    places = list(itertools.product(*(range(count) for count in reversed(grid))))
    for z, y, x in ORDERS.sample(places, len(places)):
        Cta(launch, (x, y, z)).run()


def text_of(compiled: Any) -> str:
    """The kernel in PTX."""
    return compiled.asm["ptx"]


@lru_cache(maxsize=64)
def _read(text: str) -> tuple[Kernel, list[Step]]:
    kernel = parse(text)
    return kernel, [step_of(instruction) for instruction in kernel.instructions]


def _leaves(
    kinds: Sequence[Any], values: Sequence[Any], maps: Iterator[Any]
) -> Iterator[tuple[str, Any]]:
    """Types and values of what a kernel is told at a launch: no constants, tuples flat, sizes and
    strides behind each map."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from _leaves(kind, value, maps)
        elif kind.startswith("tensordesc"):
            yield "map", _tensor_map(value, next(maps))
            yield from (("i32", size) for size in value.shape)
            yield from (("i64", stride) for stride in value.strides)
        elif kind != "constexpr":
            yield kind, value


def _tensor_map(descriptor: Any, said: dict[str, Any]) -> TensorMap:
    """As the driver makes it of what Triton's compiler says of the map."""
    whole = torch.as_strided(descriptor.base, descriptor.shape, descriptor.strides)
    size = whole.element_size()
    pointer, last = (
        whole.data_ptr(),
        sum((n - 1) * s for n, s in zip(whole.shape, whole.stride(), strict=True)),
    )
    held = np.ctypeslib.as_array((ctypes.c_uint8 * ((last + 1) * size)).from_address(pointer))
    content = np.lib.stride_tricks.as_strided(
        held, (*whole.shape, size), (*(step * size for step in whole.stride()), 1)
    )
    padding = POISON if descriptor.padding == "nan" else 0
    return TensorMap(content, tuple(said["block_size"]), SPANS[said["swizzle"]], padding)


def _parameters(kernel: Kernel, values: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, bytes]]:
    assert len(kernel.parameters) == len(values) + SCRATCH, "arguments differ from parameters"
    for (name, size), (kind, value) in zip(kernel.parameters, values, strict=False):
        if isinstance(value, torch.Tensor):
            yield name, value.data_ptr().to_bytes(8, "little")
        elif isinstance(value, TensorMap):
            yield name, bytes(size)
        else:
            held = np.array(value, NUMBERS[kind]).tobytes()
            assert len(held) == size, f"{kind} in {size} bytes"
            yield name, held
    for name, size in kernel.parameters[len(values) :]:
        yield name, bytes(size)


def _storage(tensor: torch.Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
