"""What a reason says of an attention that is left as it is, beside ``SAID`` of the catalogue."""

from __future__ import annotations

import pytest
import torch

from tests.attention.catalogue import plain
from tests.attention.reasons import ADVISED, MASKS
from tests.attention.rewriting import rewrite


@pytest.mark.parametrize("name", ADVISED)
def test_what_a_reason_advises_helps(name):
    advised = ADVISED[name]
    assert rewrite(advised.function, *plain(), *advised.more()).codes == [advised.code]


@pytest.mark.parametrize("function", MASKS)
def test_where_a_mask_comes_from(function):
    """Mutants: every tensor is given; what is known while compiling is made in the graph."""
    rows = 256
    given = *torch.randn(3, 1, 2, rows, 16), torch.randn(rows, rows)
    (site,) = rewrite(function, *given, softmax="auto").sites
    assert (site.decision, site.code) == ("kept", "too_small")
    assert site.reason.startswith(MASKS[function])
