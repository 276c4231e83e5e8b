"""What a GEMM makes of its product before it stores it: ATen calls in a line, as canonical text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from overlapc.errors import KernelError

SHAPES = ("matrix", "column", "vector", "one", "scalar")
"""Shapes of an input beside C[m, n]: [m, n], [m, 1], [n], one element, one of no dimension."""

SIGILS = {"value": "%", "input": "@", "gemm": "$", "dtype": ":"}


@dataclass(frozen=True)
class Ref:
    """A tensor that a call takes."""

    kind: str
    """"value": of an earlier call; "input": of the epilogue; "gemm": A (0), B (1), more B."""
    index: int


@dataclass(frozen=True)
class Dtype:
    """A dtype that a call is given."""

    name: str
    """As torch spells it without ``torch.``."""


@dataclass(frozen=True)
class Input:
    """A tensor that the epilogue reads, element by element or spread over rows or columns."""

    shape: str
    """One of ``SHAPES``."""
    dtype: str
    """Name of its dtype."""

    def __str__(self) -> str:
        return f"{self.shape}:{self.dtype}"


@dataclass(frozen=True)
class Call:
    """One call of an ATen overload."""

    op: str
    """Such as ``aten.add.Tensor``."""
    arguments: tuple[Any, ...]
    """``Ref``, ``Dtype``, numbers, strings, None, and tuples of these."""
    named: tuple[tuple[str, Any], ...] = ()
    """In the order of their names."""


@dataclass(frozen=True)
class Epilogue:
    """GEMMs of one A and the pointwise calls after them; the value of the last call is C."""

    inputs: tuple[Input, ...]
    calls: tuple[Call, ...]
    """The first is a GEMM, on A and B; a second one is on A and another B."""

    def __str__(self) -> str:
        """Text without spaces that ``parse`` reads; equal iff the epilogues are."""
        value = {
            "inputs": [str(item) for item in self.inputs],
            "calls": [
                [call.op, _encode(call.arguments), {name: _encode(arg) for name, arg in call.named}]
                for call in self.calls
            ],
        }
        return json.dumps(value, separators=(",", ":"))

    @classmethod
    @lru_cache(maxsize=1024)
    def parse(cls, text: str) -> Epilogue:
        """Read what ``str`` printed; KernelError on any other text."""
        try:
            value = json.loads(text)
            inputs = tuple(Input(*item.split(":")) for item in value["inputs"])
            calls = tuple(
                Call(op, _decode(args), tuple((name, _decode(arg)) for name, arg in kwargs.items()))
                for op, args, kwargs in value["calls"]
            )
            found = cls(inputs, calls)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unreadable(text, str(error)) from error
        if str(found) != text or not calls:
            raise _unreadable(text, "it is not what an epilogue prints")
        return found


def _encode(value: Any) -> Any:
    match value:
        case Ref(kind, index):
            return f"{SIGILS[kind]}{index}"
        case Dtype(name):
            return f"{SIGILS['dtype']}{name}"
        case tuple():
            return [_encode(item) for item in value]
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, str):
        return value
    kinds = {sigil: kind for kind, sigil in SIGILS.items()}
    kind = kinds.get(value[:1])
    if kind is None:
        return value
    return Dtype(value[1:]) if kind == "dtype" else Ref(kind, int(value[1:]))


def _unreadable(text: str, why: str) -> KernelError:
    return KernelError(
        f"An epilogue cannot be read: {why}.",
        where=repr(text),
        remedy="give the text that str(Epilogue(...)) prints",
    )
