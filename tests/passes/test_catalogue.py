"""The catalogue: every spelling in inference, forward and backward, with fixed and varying rows."""

from __future__ import annotations

import re

import pytest
import torch

from tests.passes.catalogue import REWRITES
from tests.passes.refusals import REFUSALS
from tests.passes.spelling import Spelling
from tests.targets import SLOW_LINK

# Chains only: whether a collective is hidden by work beside it has tests of its own.
OPTIONS = {"target": SLOW_LINK, "disable": ("hide_collectives", "split_all_reduces")}

DYNAMIC = [name for name, one in REWRITES.items() if one.dynamic is not None]
TRAINED = [name for name, one in REWRITES.items() if one.backward is not None]


STANDS_IN_THE_WAY = {
    "batched_columns": ("!inner_dimension",),
    "inner_scatter": ("!inner_dimension",),
    "slices": ("!dynamic_parts",),
    "joined_slices": ("!dynamic_parts",),
    "joined_view": ("!dynamic_shape",),
    "dispatch_batches": ("!dynamic_shape",),
    "few_experts": ("!dynamic_shape", "gemm_all_to_all"),
    "grouped_batches": ("!dynamic_shape", "gemm_all_to_all"),
    "flat_experts": ("!dynamic_shape", "gemm_all_to_all"),
    "einsum_experts": ("!dynamic_columns", "!dynamic_columns"),
    "experts_read": ("!dynamic_shape",),
    "one_expert": ("!dynamic_shape",),
    "scatter_heads_first": ("!dynamic_shape",),
    "einsum_gathered": ("!dynamic_columns",),
    "scattered_after_a_turn": ("!dynamic_shape",),
    "gathered_before_a_turn": ("!not_rowwise",),
    "scattered_heads": ("!dynamic_shape",),
    "trimmed_residual": ("!trimmed",),
}
"""What is refused where columns vary as well as rows."""

FEW = (
    "slices",
    "padded_batch",
    "experts",
    "residual",
    "scatter_rows",
    "q_k_v",
    "gate_up",
    "pooled",
    "combine",
)
TWICE = {*DYNAMIC} & {*TRAINED} - {*FEW}
"""In a short run these are inferred with fixed rows and trained with rows that vary: each pair of
a spelling, its rows and its gradient occurs so."""


def said(sites):
    """What the catalogue would say of these sites."""
    return tuple(site.kind if site.decision == "rewritten" else f"!{site.code}" for site in sites)


def inputs_of(spelling: Spelling, *, dynamic: bool = False, trained: bool = False):
    torch.manual_seed(0)
    values = spelling.inputs()
    if trained:
        values = tuple(v.requires_grad_() if v.is_floating_point() else v for v in values)
    if dynamic:
        torch._dynamo.mark_dynamic(values[0], spelling.dynamic)
    return values


def with_few(names, few=FEW):
    """The names as parameters, most of them of the long tests."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.long) for name in names]


@pytest.mark.parametrize("name", REWRITES)
def test_inference(name, explained, golden):
    spelling = REWRITES[name]
    with torch.no_grad():
        result = explained(spelling.function, *inputs_of(spelling), **OPTIONS)
    assert said(result.report.sites) == spelling.sites
    golden(result.text())


@pytest.mark.parametrize("name", with_few(DYNAMIC, {*DYNAMIC} - TWICE))
def test_varying_rows(name, explained, golden):
    spelling = REWRITES[name]
    values = inputs_of(spelling, dynamic=True)
    with torch.no_grad():
        result = explained(spelling.function, *values, **OPTIONS)
    assert said(result.report.sites) == spelling.sites
    assert all(site.shape.startswith("~") for site in result.report.sites)
    golden(result.text())


@pytest.mark.parametrize("name", with_few(REWRITES))
def test_every_size_varies(name, explained):
    """Of tensors that are no parameters ``dynamic=True`` lets columns vary, too."""
    spelling = REWRITES[name]
    with torch.no_grad():
        result = explained(spelling.function, *inputs_of(spelling), **OPTIONS, dynamic=True)
    assert said(result.report.sites) == STANDS_IN_THE_WAY.get(name, spelling.sites)
    if name in STANDS_IN_THE_WAY:
        refused = [site for site in result.report.sites if site.decision == "refused"]
        assert all("torch._dynamo.mark_dynamic" in site.reason for site in refused)
    lines = [line for _, after in result.graphs.values() for line in after.splitlines()]
    # A size is a node: a symbol by itself is no name in code.
    assert not [line for line in lines if re.search(r"\bs\d+\b", line.partition("  #")[0])]


@pytest.mark.parametrize("name", with_few(REWRITES))
def test_meta_tensors(name, explained):
    spelling = REWRITES[name]
    trained = spelling.backward is not None
    values = [value.to("meta") for value in spelling.inputs()]
    if trained:
        values = [v.requires_grad_() if v.is_floating_point() else v for v in values]
    with torch.set_grad_enabled(trained):
        sites = explained(spelling.function, *values, **OPTIONS).report.sites
    assert said(s for s in sites if s.graph != "backward") == spelling.sites
    assert said(s for s in sites if s.graph == "backward") == (spelling.backward or ())


@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        pytest.param(
            name,
            dynamic,
            id=f"{name}-{'varying' if dynamic else 'fixed'}",
            marks=[pytest.mark.long] if name in TWICE and not dynamic else [],
        )
        for name in TRAINED
        for dynamic in ((False, True) if name in DYNAMIC else (False,))
    ],
)
def test_training(name, dynamic, explained, golden):
    spelling = REWRITES[name]
    values = inputs_of(spelling, dynamic=dynamic, trained=True)
    result = explained(spelling.function, *values, **OPTIONS)
    golden(result.text())
    sites = result.report.sites
    assert said(s for s in sites if s.graph == "forward") == spelling.sites
    assert said(s for s in sites if s.graph == "backward") == spelling.backward


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "varying"])
@pytest.mark.parametrize("name", REFUSALS)
def test_refused(name, dynamic, explained):
    spelling = REFUSALS[name]
    if dynamic and spelling.dynamic is None:
        pytest.skip("its rows are fixed by what it does")
    values = inputs_of(spelling, dynamic=dynamic)
    with torch.no_grad():
        result = explained(spelling.function, *values, **OPTIONS)
    assert said(result.report.sites) == spelling.sites
    assert all(len(site.reason) > 20 for site in result.report.sites)
    for before, after in result.graphs.values():
        assert before == after


def test_a_refusal_blames_what_rearranges_rows_and_not_the_sum_after_it(explained):
    spelling = REFUSALS["turned_residual"]
    (site,) = explained(spelling.function, *inputs_of(spelling), **OPTIONS).report.sites
    assert site.reason.startswith("aten.permute.default stands between the GEMM and")


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("heads_from_ranks", "all_to_all_gemm", "contracts"),
        ("combined_tokens", "gemm_all_to_all", "does not keep rows apart"),
        ("padded_by_what_varies", "gemm_reduce_scatter", "padded varies"),
        ("whole_numbers_gemm", "gemm_all_reduce", "Integer GEMMs"),
    ],
)
def test_a_refusal_says_which_side_of_a_collective_and_why(name, kind, says, explained):
    spelling = REFUSALS[name]
    with torch.no_grad():
        (site,) = explained(spelling.function, *inputs_of(spelling), **OPTIONS).report.sites
    assert site.kind == kind
    assert says in site.reason


def test_a_contraction_over_nothing_has_rows_all_the_same(explained):
    values = torch.randn(8, 0), torch.randn(40, 0)
    (site,) = explained(REWRITES["gather_rows"].function, *values, **OPTIONS).report.sites
    assert site.shape.startswith("16x40x0 ")


@pytest.mark.parametrize("capacity", [2, 1 << 17])
def test_a_capacity_that_varies_is_tried_and_not_hinted(capacity, explained):
    """For a rank's hint may be of another call than its peers'."""
    spelling = REWRITES["few_experts"]
    tokens, *weights = (value.to("meta") for value in inputs_of(spelling))
    tokens = tokens.new_empty(*tokens.shape[:2], capacity, tokens.shape[3])
    torch._dynamo.mark_dynamic(tokens, 2)
    with torch.no_grad():
        sites = explained(spelling.function, tokens, *weights, **OPTIONS).report.sites
    assert said(sites) == spelling.sites


def test_as_many_refusals_as_rewrites_of_a_collective():
    codes = {code for one in REFUSALS.values() for code in one.sites}
    assert len(REFUSALS) >= len(REWRITES) // 2
    assert len(codes) >= 15
