"""Run a chain's program group by group, and write what is kept to its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, repeat

import torch

from overlapc.runtime.cutting.units import Units
from overlapc.runtime.programs.execution import Function
from overlapc.runtime.programs.fusing import function, of_one_shape
from overlapc.runtime.programs.program import OFFSETS, ROWS, Program, Ref


@dataclass(frozen=True)
class Group:
    """How the program runs for some units."""

    units: Units
    run: Function
    direct: tuple[int, ...]
    """Which kept values the program writes to their place itself."""
    later: tuple[int, ...]
    """Which are put there when they have been computed."""


@dataclass(frozen=True)
class Computation:
    """A program for the groups of one call."""

    program: Program
    units: tuple[Units, ...]
    """Of each group, in the order in which they are computed."""
    out: Ref | None = None
    """A value that is written to a tensor that the caller gives."""
    settings: str = ""
    """Settings of Inductor, which compiles steps (`programs.settings`)."""

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """As many as ``units``."""
        return tuple(self._group(units) for units in self.units)

    def _group(self, units: Units) -> Group:
        written = [] if self.out is None else [self.out]
        direct = []
        for index, ref in enumerate(self.program.kept):
            # A value is written once; an operand is not written at all.
            if units.run is not None and not ref.is_operand and ref not in written:
                written.append(ref)
                direct.append(index)
        later = tuple(index for index in range(len(self.program.kept)) if index not in direct)
        run = of_one_shape(function(self.program, tuple(written), settings=self.settings))
        return Group(units, run, tuple(direct), later)

    def operands(self, tensors: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, ...]]:
        """Return each group's operands, taken when it is asked for.

        In a consumer operand 0 is left out: its groups are what has arrived.
        """
        skipped = len(self.program.modes) - len(tensors)
        modes = self.program.modes[skipped:]
        columns = [self._column(tensor, mode) for tensor, mode in zip(tensors, modes, strict=True)]
        return zip(*columns, strict=False) if columns else repeat(())

    def _column(self, tensor: torch.Tensor, mode: str) -> Iterable[torch.Tensor]:
        if mode == ROWS:
            return take_each(self.units, tensor, self.lengths)
        if mode == OFFSETS:
            return (units.offsets(tensor) for units in self.units)
        return repeat(tensor)

    @cached_property
    def lengths(self) -> list[int] | None:
        """As ``lengths`` of ``units``."""
        return lengths(self.units)

    def __call__(
        self,
        index: int,
        operands: Sequence[torch.Tensor],
        kept: Sequence[torch.Tensor],
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Compute group ``index`` from its operands; returns the program's results for it."""
        group = self.groups[index]
        places = [] if out is None else [out]
        if not kept:
            return group.run(operands, places)
        places += [group.units.take(kept[at]) for at in group.direct]
        results = group.run(operands, places)
        first = len(results) - len(kept)
        for at in group.later:
            if kept[at] is not results[first + at]:
                group.units.put(kept[at], results[first + at])
        return results


def lengths(parts: Sequence[Units]) -> list[int] | None:
    """Return the lengths of parts that cut a tensor from its start to its end, else None."""
    starts = (0, *accumulate(units.count for units in parts))
    total = parts[0].grid
    runs = [units.run for units in parts]
    in_order = all(run is not None and run[0] == at for run, at in zip(runs, starts, strict=False))
    if not in_order or starts[-1] != total[0] * total[1] * total[2]:
        return None
    return [units.count for units in parts]


def take_each(
    parts: Sequence[Units], tensor: torch.Tensor, lengths: list[int] | None
) -> Iterable[torch.Tensor]:
    """Return each part of a tensor: views made at once, or else copies made one by one."""
    if lengths is None:
        return (units.take(tensor) for units in parts)
    return (tensor,) if len(lengths) == 1 else tensor.split(lengths)
