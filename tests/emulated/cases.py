"""Runs of kernels on an emulated device, perhaps with something changed in what was compiled.

They are called in a process of ``tests.interpreter.Interpreter`` that has such a device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.codegen import (
    attention_cases,
    attention_gradient_cases,
    decode_cases,
    gemm_cases,
    linear_cases,
)
from tests.emulated import launching

Change = tuple[str, str, int]
"""A regular expression, what is put in its place, and of how many matches, the first ones; 0: all.
"""


def decode(text: str, cache: str, **case: Any) -> None:
    decode_cases.run(text, cache, decode_cases.Case(**case))


RUNS: dict[str, Callable[..., Any]] = {
    "attention": attention_cases.run,
    "decode": decode,
    "gradients": attention_gradient_cases.run,
    "gemm": gemm_cases.run,
    "linear": linear_cases.run,
}


def run(on: str, kind: str, *given: Any, change: Change | None = None, **named: Any) -> list[str]:
    """Raise AssertionError unless kernels of a kind give what they must on an architecture, changed
    or not; the names of those that ran."""
    with launching.emulated(on) as launched, changed(change):
        RUNS[kind](*given, **named)
    return launched


@contextmanager
def changed(change: Change | None) -> Iterator[None]:
    """Let kernels be others than those that were compiled."""
    if change is None:
        yield
        return
    pattern, new, count = change
    text_of, found = launching.text_of, []

    def other(compiled: Any) -> str:
        text, times = re.subn(pattern, new, text_of(compiled), count=count)
        found.append(times)
        return text

    with patch.object(launching, "text_of", other):
        try:
            yield
        finally:
            if not any(found):
                raise LookupError("nothing was changed")
