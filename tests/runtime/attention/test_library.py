"""A spec's attention by torch's fused one is the spec's, whatever masks and lengths it has."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.planning.attention.fills import FINITE_FILL
from overlapc.runtime.attention import library as attention_library
from overlapc.runtime.attention.library import attention_by_fused, why_not_fused
from overlapc.runtime.attention.library_masks import mask_of, told
from overlapc.runtime.attention.masks import Added, Filled, Input, program_of
from tests.codegen import attention_oracle, score_programs

SPEC = AttentionSpec("float32", 8, 8, groups=2, scale=0.3, lse=False)
LAST = {"after": 0, "align": "bottom_right"}
STRUCTURES = {
    "all": {},
    "causal": {"after": 0},
    "of the last rows": LAST,
    "a window": {**LAST, "before": 2},
    "about the row": {"before": 3, "after": 1},
}
LONG = pytest.mark.long
KEPT, BIAS = Input("matrix", "bool"), Input("vector", "float32")
PROGRAMS = {
    "": (),
    "kept": (Filled(KEPT, -math.inf, True),),
    "left out": (Filled(KEPT, -1e9, False),),
    "biased": (Added(BIAS, 0.5), Filled(KEPT, -math.inf, True)),
}
WEAK_BEFORE = program_of((*PROGRAMS["left out"], Added(BIAS)))
LENGTHS = (None, (7, 7), (3, 3), (1, 5), (0, 4), (8, 9), (12, 12))
"""Of 7 keys."""


def operands(rows, program):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, n, 8) for heads, n in ((4, rows), (2, 7), (2, 7)))
    inputs = [
        torch.randn(4, 1, 7) if part.tensor == BIAS else torch.rand(2, 1, rows, 7) < 0.7
        for part in PROGRAMS[program]
    ]
    return q, k, v, inputs


@pytest.mark.parametrize("dead", ["nan", "zero"])
@pytest.mark.parametrize(("batch", "rows", "keys"), [(0, 3, 7), (2, 0, 7), (2, 3, 0), (2, 3, 1)])
@pytest.mark.parametrize("program", ["", "biased"])
@pytest.mark.parametrize("has_lengths", [False, True])
def test_of_nothing_is_nothing_and_without_keys_zeros(
    batch, rows, keys, dead, program, has_lengths
):
    """As eager, in which a sum of nothing is zero whatever a row without a weight gives."""
    spec = replace(SPEC, lengths=has_lengths, dead=dead, program=program_of(PROGRAMS[program]))
    q = torch.randn(batch, 4, rows, 8)
    k, v = torch.randn(2, batch, 2, keys, 8)
    inputs = [torch.randn(4, 1, keys), torch.rand(batch, 1, rows, keys) < 0.9] if program else []
    lengths = torch.full((batch,), keys, dtype=torch.int32) if has_lengths else None
    found = attention_by_fused(spec, q, k, v, inputs, lengths)
    wanted = attention_oracle.attention(spec, q, k, v, inputs=inputs, lengths=lengths)[0]
    assert found.transpose(1, 2).is_contiguous()
    torch.testing.assert_close(found, wanted.float(), equal_nan=True)


def of_devices(spec, q, k, v, inputs, lengths):
    is_causal, mask = told(spec, q, k.shape[2], inputs, lengths)
    return attention_library._fused(
        spec, q, k, v, mask, is_causal=is_causal, takes_masked_groups=False
    )


@pytest.mark.parametrize("dead", ["nan", pytest.param("zero", marks=LONG)])
@pytest.mark.parametrize("rows", [1, 3, *(pytest.param(n, marks=LONG) for n in (7, 9))])
@pytest.mark.parametrize(
    "program", ["", "biased", *(pytest.param(name, marks=LONG) for name in ("kept", "left out"))]
)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_it_is_the_specs(structure, program, rows, dead):
    spec = replace(SPEC, **STRUCTURES[structure], program=program_of(PROGRAMS[program]), dead=dead)
    for ends in LENGTHS:
        q, k, v, inputs = operands(rows, program)
        own = replace(spec, lengths=ends is not None)
        lengths = None if ends is None else torch.tensor(ends, dtype=torch.int32)
        assert not why_not_fused(own, "cuda")
        wanted, _ = attention_oracle.attention(own, q, k, v, inputs=inputs, lengths=lengths)
        for found in (
            attention_by_fused(own, q, k, v, inputs, lengths),
            # As where lengths stay on the device, and no kernel takes shared heads under a mask.
            of_devices(own, q, k, v, inputs, lengths),
        ):
            torch.testing.assert_close(found, wanted.float(), equal_nan=True)
            assert found.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("rows", [1, 3, 100, 400])
@pytest.mark.parametrize("structure", ["all", "causal"])
def test_values_of_fewer_columns_than_keys(structure, rows):
    """On processors, of any number of rows at a time and beside sinks. Mutants: padding stays; it
    is no zeros."""
    torch.manual_seed(0)
    keys = max(rows, 7)
    sinks = torch.randn(4) if structure == "all" else None
    spec = replace(SPEC, **STRUCTURES[structure], value_dim=5, sinks=sinks is not None)
    q, k, v = (torch.randn(2, h, n, d) for h, n, d in ((4, rows, 8), (2, keys, 8), (2, keys, 5)))
    assert not why_not_fused(spec, "cpu")
    wanted, _ = attention_oracle.attention(spec, q, k, v, inputs=[], sinks=sinks)
    found = attention_by_fused(spec, q, k, v, [], None, sinks)
    torch.testing.assert_close(found, wanted.float())
    assert found.transpose(1, 2).is_contiguous()
    empty = attention_by_fused(spec, q, k[:, :, :0], v[:, :, :0], [], None, sinks)
    assert empty.shape == found.shape


def test_a_weak_fill_is_lowered_in_rows_of_no_other_weak_number():
    """Mutant: in none, if a row has another."""
    spec = replace(
        SPEC, program=program_of((Added(Input("matrix", "float32")), *PROGRAMS["left out"]))
    )
    bias = torch.tensor([[-2e9, 0.0, 0.0], [0.0, 0.0, 0.5]])
    filled = torch.tensor([[False, True, True], [True, True, False]])
    mask = mask_of(spec, torch.zeros(1, 4, 2, 8), 3, [bias[None, None], filled[None, None]], None)
    assert mask is not None
    torch.testing.assert_close(
        mask[0, 0], torch.tensor([[-2e9, -1e9, -1e9], [FINITE_FILL, FINITE_FILL, 0.5]])
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sinks": True}, "a sink"),
        ({"value_dim": 4}, "heads of 8 meet values of 4"),
        ({"program": score_programs.SOFT_CAP}, "changes its scores"),
        ({"program": WEAK_BEFORE}, "-1000000000.0 is put in for scores"),
    ],
    ids=str,
)
def test_what_it_cannot_say(change, why):
    assert why in why_not_fused(replace(SPEC, **change), "cuda")
