"""What a row of the catalogue is made of: its record, its inputs, and collectives to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

RANKS = 2
BATCH, ROWS, INNER, COLUMNS = 4, 128, 64, 128
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Spelling:
    """One row of the catalogue."""

    function: Callable[..., Any]
    inputs: Callable[[], tuple[Any, ...]]
    sites: tuple[str, ...]
    """Kind of a rewritten site, or ``!code`` of a refused one."""
    backward: tuple[str, ...] | None = None
    """The same of the backward graph; None where nothing is differentiated."""
    dynamic: int | None = None
    """Dimension of the first input that varies; None where none may."""


def x2(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(BATCH * ROWS, INNER).to(dtype)


def x3() -> torch.Tensor:
    return torch.randn(BATCH, ROWS, INNER)


def weight(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(COLUMNS, INNER).to(dtype)


def bias() -> torch.Tensor:
    return torch.randn(COLUMNS)


def group() -> dist.ProcessGroup:
    found = dist.group.WORLD
    assert found is not None
    return found


def all_reduce(y: torch.Tensor, op: str = "sum") -> torch.Tensor:
    return functional.all_reduce(y, op, group())


def reduce_scatter(y: torch.Tensor, dim: int = 0, op: str = "sum") -> torch.Tensor:
    return functional.reduce_scatter_tensor_autograd(y, op, dim, group())


def all_gather(x: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return functional.all_gather_tensor_autograd(x, dim, group())


def plain_reduce_scatter(y: torch.Tensor, op: str = "sum") -> torch.Tensor:
    return functional.wait_tensor(
        torch.ops._c10d_functional.reduce_scatter_tensor(y, op, RANKS, group().group_name)
    )


def plain_all_gather(x: torch.Tensor) -> torch.Tensor:
    return functional.wait_tensor(
        torch.ops._c10d_functional.all_gather_into_tensor(x, RANKS, group().group_name)
    )


def all_to_all(
    x: torch.Tensor, receives: list[int] | None = None, sends: list[int] | None = None
) -> torch.Tensor:
    return functional.all_to_all_single(x, receives, sends, group())
