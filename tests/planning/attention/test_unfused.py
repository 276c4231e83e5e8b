"""Calls of torch's attention that it has no fused kernel for: taken as spelled ones, and said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.planning.attention.decision import decide
from tests.planning.attention.test_decision import CACHE, CAUSAL, NARROW, PREFILL

MERGED = "its operands have 3 dimensions, and no batch and heads"
CALL = replace(PREFILL, is_plain=True, unfused=MERGED)


@pytest.mark.parametrize("mask", ["nothing", "causal", "given"])
def test_it_is_fused_and_why_it_was_not_is_said(mask):
    """Under a mask from fewer scores on than one that is spelled. Mutants: it is taken as fused;
    the bound of spelled masks holds; its reason does not say why."""
    few = replace(CALL, heads=8, rows=256, keys=256, mask=mask)
    for choice in ("auto", "sdpa"):
        verdict = decide(few, choice)
        assert (verdict.decision, verdict.code) == ("rewritten", "fused")
        assert verdict.reason.startswith(
            f"Torch has no fused kernel for the call as it stands: {MERGED}. Torch's fused"
        )
    small = decide(replace(few, rows=64), "auto")
    assert (small.decision, small.code) == ("kept", "too_small")
    assert MERGED in small.reason


def test_values_narrower_than_keys_are_padded_where_they_are_of_one_that_is_spelled():
    why = "heads of 192 meet values of 128"
    call = replace(NARROW, unfused=why)
    assert decide(call, "auto").code == decide(call, "sdpa").code == "fused_padded"
    for change in ({"rows": 1023}, {"is_trained": True}, {"value_dim": 120}):
        for choice in ("auto", "sdpa"):  # what would be put in is what is there
            verdict = decide(replace(call, **change), choice)
            assert (verdict.decision, verdict.code) == ("kept", "no_fused_kernel"), change
            assert verdict.reason == f"Torch has no fused kernel for it: {why}."
    assert decide(replace(call, dtype="bfloat16"), "auto").code == "not_measured"


def test_strided_operands_are_copied_where_that_pays():
    """Mutants of ``copies_strided``: without each of its conditions."""
    strided = replace(CALL, is_dense=False, unfused="an operand's last dimension is strided")
    assert decide(replace(strided, rows=256, keys=256), "auto").code == "fused"
    cases = (
        {"rows": 255}, {"keys": 255}, {"prefix": True},
        {"value_dim": 32},
    )  # fmt: skip
    for change in cases:
        assert decide(replace(strided, **change), "auto").code == "no_fused_kernel", change
    assert decide(replace(strided, unfused=""), "auto").code == "no_fused_kernel"
    padded = replace(NARROW, is_dense=False, unfused=strided.unfused)  # our op copies none
    assert decide(padded, "auto").code == "no_fused_kernel"


def test_products_round_scores_that_torchs_attention_does_not():
    """Mutant: it is as one that is spelled in 16 bits too."""
    call = replace(CAUSAL, unfused=MERGED)
    assert decide(call, "auto").code == "by_rows"
    assert decide(replace(call, dtype="bfloat16", rows=768), "auto").code == "not_measured"


def test_what_cannot_be_read_stays_and_says_both():
    """Mutant: why nothing else can be put in is not asked."""
    call = replace(CALL, mask="given", why_only_torch="Its heads broadcast.")
    for choice in ("auto", "sdpa"):
        verdict = decide(call, choice)
        assert (verdict.decision, verdict.code) == ("kept", "no_fused_kernel")
        assert verdict.reason == f"Torch has no fused kernel for it: {MERGED}. Its heads broadcast."


def test_a_cache_is_read_up_to_its_length_all_the_same():
    """Mutants: only calls that are fused already are; it is said to be spelled out."""
    call = replace(CACHE, is_fused=False, unfused=MERGED)
    verdict = decide(call, "auto")
    assert verdict.code == "valid_keys"
    assert MERGED in verdict.reason
    given = replace(call, prefix=False, is_kept_by_mask=True, mask="given", rows=9)
    assert "spelled out" not in decide(replace(given, dtype="bfloat16", rows=1), "auto").reason


def test_few_keys_may_lose_a_nan():
    """What a spelled one is advised is what is there. Mutant: it is said all the same."""
    verdict = decide(replace(CALL, keys=8, mask="nothing"), "auto")
    assert verdict.code == "few_keys"
    assert "where a model calls it" not in verdict.reason
