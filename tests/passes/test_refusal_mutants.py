"""Refusals with their guard taken out: what is then rewritten wrongly, the catalogue sees."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from types import ModuleType
from typing import Any

import pytest
from torch._dynamo.exc import BackendCompilerFailed

from overlapc.graphs.chains import consuming, gemms
from overlapc.graphs.chains.chain import Padding
from overlapc.graphs.sizes import shape_of
from tests.passes import test_catalogue


def any_trim(split, axis, builder):
    """Rows may be trimmed of batches, too."""
    return None if split.trim is None else Padding(split.trim.args[3], 0)


def always_free(gemm, below, walk):
    """A GEMM may read what was gathered as its right operand too."""
    return True


def rows_of_all_batches(node):
    """A batched GEMM has the rows of its batches together, as a plain one has."""
    return prod(shape_of(node)[:-1])


MUTANTS: dict[str, tuple[ModuleType, str, Callable[..., Any], type[Exception], str]] = {
    "trimmed_batches": (consuming, "trimmed_padding", any_trim, AssertionError, "all_gather_gemm"),
    "squared": (consuming, "_is_free", always_free, BackendCompilerFailed, "erase Node wait"),
    "unlike_batches": (gemms, "rows_of", rows_of_all_batches, AssertionError, "!unlike_gemms"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_refusal_that_is_not_made_shows(name, explained, monkeypatch):
    module, guard, mutant, error, says = MUTANTS[name]
    monkeypatch.setattr(module, guard, mutant)
    with pytest.raises(error, match=says):
        test_catalogue.test_refused(name, False, explained)
