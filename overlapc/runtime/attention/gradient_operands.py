"""What the gradients of an attention are made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class GradientOperands:
    """Operands of ``attention_backward``, in the order of its schema, which says what they are."""

    slopes: torch.Tensor
    sums_slopes: torch.Tensor | None
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    out: torch.Tensor
    sums: torch.Tensor
    inputs: Sequence[torch.Tensor]
    lengths: torch.Tensor | None
    sinks: torch.Tensor | None
    wanted: Sequence[bool]

    def results(self, wanted: Sequence[bool]) -> list[torch.Tensor]:
        """Return new tensors for gradients, of those that ``wanted`` takes, in the op's order."""

        def each() -> Iterator[torch.Tensor]:
            for side, is_wanted in zip((self.query, self.key, self.value), wanted, strict=False):
                if is_wanted:
                    batch, heads, rows, dim = side.shape
                    yield side.new_empty((batch, rows, heads, dim)).transpose(1, 2)
            more = [*self.inputs, self.sinks]
            for given, is_wanted in zip(more, wanted[3:], strict=True):
                if is_wanted and given is not None:
                    yield given.new_empty(given.shape)

        return list(each())
