"""What a mutant of a kernel has to fail by in the interpreter: its values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

FAILED_OTHERWISE = (
    "no single", "SyntaxError", "ImportError", "NameError", "StopIteration", "CompilationError",
)  # fmt: skip
"""What says that a mutant was not made, or did not run."""


@contextmanager
def wrong_values() -> Iterator[None]:
    """Raise AssertionError unless a call of ``interpreted`` in here finds values wrong."""
    with pytest.raises(AssertionError) as caught:
        yield
    assert not [word for word in FAILED_OTHERWISE if word in str(caught.value)]
