"""A kernel that is launched again on operands that lie as they lay before: only addresses differ.

Triton finds out at every launch what an argument is compiled for, and checks follow ours of what a
kernel promises: a host would do both again for every GEMM of microseconds. Hooks that were added to
the kernel (Triton's ``add_pre_run_hook``; ours have none) run at its first launch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Arguments = tuple[Any, ...]
ALIGNED_BYTES = 16
"""Triton compiles for whether an address is a multiple of so many."""
MOST_KNOWN = 64
"""Launches that are remembered of one kernel; chosen: a cache that grows is new at each step, and
then known to as many layers as share the kernel."""


class Known(dict[Hashable, Callable[[Sequence[Any]], Any]]):
    """Launches of one kernel by what they depend on, the first of which are forgotten."""

    def keep(self, key: Hashable, launch: Callable[[Sequence[Any]], Any]) -> None:
        """Remember one more."""
        if len(self) >= MOST_KNOWN:
            self.clear()
        self[key] = launch


def lies(tensors: Sequence[Any]) -> Hashable:
    """What checks, and a launch, may depend on of tensors, or None: all but where they are and what
    they hold."""
    return tuple([
        one if one is None
        else (one.shape, one.stride(), one.dtype, one.device, one.data_ptr() % ALIGNED_BYTES)
        for one in tensors
    ])  # fmt: skip


class Place(int):
    """Which one of what a launch is given stands there."""


@dataclass(frozen=True)
class Launched:
    """What a launch was: enough to do it again."""

    run: Callable[..., Any]
    """Takes all arguments by position."""
    arguments: Arguments
    """Of the kernel, in tuples as it takes them, but for the constants."""
    constants: Arguments

    def again(self, order: Sequence[int]) -> Callable[[Sequence[Any]], Any]:
        """Return a launch of other tensors, which lie as these do.

        It is given a list; ``order`` says which one of that is each tensor of the arguments.
        """
        places = iter(order)
        template = _placed(self.arguments, places)
        assert next(places, None) is None, "more places than tensors"
        run, constants = self.run, self.constants
        return lambda given: run(*_filled(template, given), *constants)


def _placed(tree: Arguments, order: Iterator[int]) -> Arguments:
    return tuple(
        _placed(part, order) if isinstance(part, tuple)
        else Place(next(order)) if hasattr(part, "data_ptr") else part
        for part in tree
    )  # fmt: skip


def _filled(template: Arguments, given: Sequence[Any]) -> Arguments:
    return tuple([
        given[part] if type(part) is Place else _filled(part, given) if type(part) is tuple
        else part
        for part in template
    ])  # fmt: skip
