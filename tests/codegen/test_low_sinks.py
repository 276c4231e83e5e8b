"""Sinks as low as a mask: over the scale of scores they would be infinite, and no sinks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.codegen.attention_specs import CAUSAL
from tests.codegen.test_decode import check, first

LOW = -3.4e38


@pytest.mark.parametrize("softmax", first("sink", "first_tile", "zero", "online"))
def test_a_row_that_sees_no_key_is_one_of_its_sink(interpreted, softmax):
    """Mutant: its sink is multiplied like others, and the row is NaN."""
    spec = replace(CAUSAL, softmax=softmax, sinks=True, lengths=True)
    check(interpreted, spec, sinks=LOW, rows=2, lengths=(100, 0), wants_lse=False)
