"""What is computed for a band of rows: a straight line of ATen calls, as data.

A chain's GEMMs and everything between them and the collective work row by row, so the same calls
on some rows of the operands give those rows of the result. The program travels as text inside
compiled artifacts, and each process turns it into code once (`programs.execution`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

ROWS = "rows"
"""An operand whose dimension 0 is the rows: a band takes its part of it."""
WHOLE = "whole"
"""An operand that every band takes as it is: a weight, a bias of columns, a scale."""
OFFSETS = "offsets"
"""Ends of the row ranges of a grouped GEMM: a band counts which of its rows lie before each."""
MODES = (ROWS, WHOLE, OFFSETS)


@dataclass(frozen=True)
class Ref:
    """A tensor of a program: one of its operands, or the value of an earlier step."""

    kind: str
    """"operand" or "value"."""
    index: int

    @property
    def is_operand(self) -> bool:
        """Whether it is no step's value."""
        return self.kind == "operand"


@dataclass(frozen=True)
class Step:
    """One call: the name of an ATen overload, and arguments that may hold ``Ref`` and dtypes."""

    op: str
    """Such as ``aten.mm.default``."""
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()
    """In the order of their names, however they are given."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "kwargs", tuple(sorted(self.kwargs, key=lambda item: item[0])))


@dataclass(frozen=True)
class Program:
    """Calls on operands. In a consumer, operand 0 is what the collective gave.

    ``sent`` is what a producer's collective takes. ``kept`` are returned beside it for all rows:
    what others read, and, in a consumer, every result.
    """

    modes: tuple[str, ...]
    """How a band takes each operand, one of ``MODES``."""
    steps: tuple[Step, ...]
    sent: Ref | None = None
    kept: tuple[Ref, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.modes) - set(MODES):
            raise ValueError(f"operands have unknown modes {sorted(unknown)}")

    def value(self) -> dict[str, Any]:
        """Return the JSON value that ``from_value`` reads."""
        return {
            "modes": list(self.modes),
            "steps": [
                [step.op, _encode(step.args), {k: _encode(v) for k, v in step.kwargs}]
                for step in self.steps
            ],
            "sent": _encode(self.sent),
            "kept": _encode(self.kept),
        }

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Program:
        """Read what ``value`` gave."""
        return cls(
            modes=tuple(value["modes"]),
            steps=tuple(
                Step(op, _decode(args), tuple((k, _decode(v)) for k, v in kwargs.items()))
                for op, args, kwargs in value["steps"]
            ),
            sent=_decode(value["sent"]),
            kept=_decode(value["kept"]),
        )

    @property
    def results(self) -> tuple[Ref, ...]:
        """What a run of the program gives: what is sent, if anything is, and what is kept."""
        return self.kept if self.sent is None else (self.sent, *self.kept)


def mapped(steps: Sequence[Step], place: Callable[[Ref], Ref]) -> tuple[Step, ...]:
    """Return steps in which other tensors stand in the places of their own."""

    def put(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(put(item) for item in value)
        return place(value) if isinstance(value, Ref) else value

    return tuple(
        Step(step.op, put(step.args), tuple((name, put(arg)) for name, arg in step.kwargs))
        for step in steps
    )


def refs(arg: Any) -> Iterator[Ref]:
    """What a step, or an argument of one, reads."""
    if isinstance(arg, Step):
        yield from refs((arg.args, [value for _, value in arg.kwargs]))
    elif isinstance(arg, Ref):
        yield arg
    elif isinstance(arg, Iterable) and not isinstance(arg, str):
        for item in arg:
            yield from refs(item)


def _encode(value: Any) -> Any:
    if isinstance(value, Ref):
        return {value.kind: value.index}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        return getattr(torch, content) if kind == "dtype" else Ref(kind, content)
    return value


def canonical(value: Any) -> str:
    """Return JSON text that is equal iff the values are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
