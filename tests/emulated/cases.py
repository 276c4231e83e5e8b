"""Runs of kernels on an emulated device, with something changed in what was compiled.

They are called in a process of ``tests.interpreter.Interpreter`` that has such a device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.codegen import attention_cases, attention_gradient_cases, decode_cases
from tests.emulated import launching

Change = tuple[str, str, int]
"""A regular expression, what is put in its place, and of how many of the first matches."""


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
        yield
    assert any(found), "nothing was changed"


def attention(text: str, change: Change | None = None, **named: Any) -> float:
    """``attention_cases.run``."""
    with changed(change):
        return attention_cases.run(text, **named)


def decode(text: str, cache: str, change: Change | None = None, **case: Any) -> None:
    """``decode_cases.run``."""
    with changed(change):
        decode_cases.run(text, cache, decode_cases.Case(**case))


def gradients(text: str, change: Change | None = None, **named: Any) -> float:
    """``attention_gradient_cases.run``."""
    with changed(change):
        return attention_gradient_cases.run(text, **named)
