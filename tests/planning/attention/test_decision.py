"""Which attention is fused: by what was measured, and by what torch has kernels for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.planning.attention.by_rows import has_heads, takes_products
from overlapc.planning.attention.decision import decide
from overlapc.planning.attention.problem import AttentionProblem

PREFILL = AttentionProblem(
    batch=1,
    heads=32,
    groups=1,
    rows=512,
    keys=512,
    head_dim=64,
    value_dim=64,
    dtype="float32",
    device="cpu",
    mask="given",
)

KEPT = {
    "trained mask": ({"is_mask_trained": True}, "no_fused_kernel"),
    "other dim of values": ({"value_dim": 32}, "no_fused_kernel"),
    "strided": ({"is_dense": False}, "no_fused_kernel"),
    "device": ({"device": "cuda"}, "not_measured"),
    "dtype": ({"dtype": "bfloat16"}, "not_measured"),
    "decode": ({"rows": 1, "keys": 1 << 20}, "too_small"),
    "few scores": ({"rows": 128, "keys": 128, "mask": "causal"}, "too_small"),
    "a mask over scores that caches hold": ({"heads": 31}, "too_small"),
    "heads that many rows share": ({"heads": 16, "groups": 4}, "too_small"),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_unless_asked_for(name):
    changes, code = KEPT[name]
    problem = replace(PREFILL, **changes)
    verdict = decide(problem, "auto")
    assert (verdict.decision, verdict.code) == ("kept", code)
    assert decide(problem, "sdpa").decision == "rewritten"
    assert ("softmax='sdpa' takes it" in verdict.reason) == (code == "not_measured")


def test_a_prefill_is_fused():
    assert decide(PREFILL, "auto").code == "fused"
    assert "skips masked keys" in decide(replace(PREFILL, mask="causal"), "auto").reason


CAUSAL = replace(PREFILL, mask="causal", is_plain=True, rounds=True)
OTHERS = [
    {"rows": 383}, {"rows": 641}, {"threads": 2}, {"heads": 11}, {"head_dim": 63, "value_dim": 63},
    {"head_dim": 63, "value_dim": 63, "groups": 4, "rows": 641},
    {"head_dim": 63, "value_dim": 63, "groups": 4, "dtype": "bfloat16"},
    {"groups": 4, "rows": 1537},
    {"is_trained": True}, {"is_plain": False}, {"prefix": True}, {"mask": "nothing"},
    {"value_dim": 65},
    {"dtype": "float16", "rows": 768}, {"dtype": "bfloat16", "rows": 767},
    {"dtype": "bfloat16", "rows": 768, "rounds": False}, {"device": "cuda"},
    {"why_only_torch": "It is."}, {"mask": "given"}, {"varying": ("rows",)}, {"varying": ("keys",)},
]  # fmt: skip


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_products_take_no_other_place(change):
    """Mutants of ``by_rows``: without each of its conditions."""
    assert decide(replace(CAUSAL, **change), "auto").code != "by_rows"
    assert decide(replace(CAUSAL, **change), "sdpa").code != "by_rows"


@pytest.mark.parametrize(
    "change",
    [
        {}, {"rounds": False}, {"rows": 384}, {"rows": 640}, {"groups": 4, "rows": 1536},
        {"is_fused": True}, {"value_dim": 24}, {"heads": 12},
        {"head_dim": 32, "value_dim": 32, "groups": 4}, {"dtype": "bfloat16", "rows": 768},
        {"varying": ("batch",)}, {"dtype": "bfloat16", "groups": 4, "rows": 384},
    ],
    ids=str,
)  # fmt: skip
def test_products_of_some_rows_at_a_time_take_an_attentions_place(change):
    verdict = decide(replace(CAUSAL, **change), "auto")
    assert (verdict.decision, verdict.code) == ("rewritten", "by_rows")
    assert verdict.policy
    assert verdict.reason.endswith("skip masked keys.")


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True), ({"dim": 63}, False), ({"dim": 63, "groups": 2}, True),
        ({"dim": 63, "groups": 2, "dtype": "bfloat16"}, False),
        ({"dim": 63, "seen": 0.1, "is_causal": False}, False),
        ({"rows": 383}, False),
        ({"rows": 641}, False), ({"rows": 641, "groups": 2}, True),
        ({"rows": 1537, "groups": 2}, False),
        ({"rows": 4096, "dtype": "bfloat16"}, True), ({"dtype": "float16"}, False),
        ({"is_causal": False, "seen": 0.75}, True), ({"is_causal": False, "seen": 0.76}, False),
        ({"is_causal": False, "dtype": "bfloat16"}, False),
        ({"is_causal": False, "dtype": "bfloat16", "groups": 2}, True),
    ],
    ids=str,
)  # fmt: skip
def test_of_a_call_products_are_taken_by_what_is_seen(change, taken):
    call = {
        "dtype": "float32", "dim": 64, "groups": 1, "rows": 512, "seen": 1.0,
        "is_causal": True, **change,
    }  # fmt: skip
    assert takes_products(**call) == taken


@pytest.mark.parametrize(
    ("key_heads", "groups", "threads", "wanted"),
    [
        (12, 1, 1, True), (12, 1, 2, False), (11, 1, 1, False),
        (3, 4, 1, True), (2, 6, 1, True), (2, 5, 1, False), (1, 32, 1, False),
    ],
)  # fmt: skip
def test_products_are_of_as_many_heads_as_were_measured(key_heads, groups, threads, wanted):
    """Mutants: without each of the three conditions of ``has_heads``."""
    assert has_heads(key_heads, groups, threads) == wanted


def test_what_gains_little_is_fused_where_keys_are_skipped_or_heads_shared_by_few_rows():
    small = replace(PREFILL, heads=16, groups=4)
    assert decide(replace(small, mask="causal"), "auto").code == "fused"
    assert decide(replace(small, mask="nothing"), "auto").code == "fused"
    assert decide(replace(small, rows=128), "auto").code == "fused"


def test_repeated_heads_are_taken_once_in_decode_too():
    repeated = replace(PREFILL, is_fused=True, groups=4, rows=1, undoes_repeats=True)
    assert decide(repeated, "auto").code == "fused_groups"


def test_what_is_fused_stays_unless_heads_are_repeated():
    assert decide(replace(PREFILL, is_fused=True), "sdpa").code == "fused_already"
    grouped = replace(PREFILL, is_fused=True, groups=4)
    assert decide(grouped, "sdpa").code == "fused_already"
    assert decide(replace(grouped, undoes_repeats=True), "sdpa").code == "fused_groups"


CACHE = replace(PREFILL, rows=1, keys=16384, groups=4, is_fused=True, prefix=True)
WHOLE = {
    "small": {"keys": 256},
    "spelled out": {"is_fused": False},
    "dtype": {"dtype": "bfloat16"},
    "trained": {"is_trained": True},
    "no prefix": {"prefix": False},
    "other dim of values": {"value_dim": 32},
    "device": {"device": "cuda"},
}


def test_a_cache_is_read_up_to_its_length_where_torchs_attention_is_called():
    for change in ({}, {"undoes_repeats": True}, {"groups": 1}):
        assert decide(replace(CACHE, **change), "auto").code == "valid_keys"
    assert "16384 keys" in decide(CACHE, "auto").reason
    assert "4 copies" in decide(CACHE, "auto").reason
    assert "copies" not in decide(replace(CACHE, groups=1), "auto").reason


def test_a_given_mask_of_few_rows_is_looked_through_beside_a_large_cache():
    given = replace(CACHE, prefix=False, is_kept_by_mask=True, mask="given")
    assert decide(given, "auto").code == "valid_keys"
    assert "the last that the mask keeps" in decide(given, "auto").reason
    # As an input it is no length, and that is no reason to read all keys. Mutant: it is said to be.
    an_input = replace(given, why_whole="its mask is an input")
    assert decide(an_input, "auto") == decide(given, "auto")
    assert decide(replace(given, is_fused=False), "sdpa").code == "valid_keys"
    for change in ({"rows": 9}, {"keys": 256}, {"is_mask_trained": True}, {"device": "cuda"}):
        assert decide(replace(given, **change), "sdpa").code != "valid_keys"


WHOLE_MASKS = {
    "its mask is looked through for no more than 8 rows.": {"rows": 9},
    "gradients are wanted of what is read.": {"is_mask_trained": True},
    "torch's attention is called, and it is spelled out.": {"is_fused": False},
    "was not measured to gain by fewer of them here.": {"dtype": "bfloat16"},
    "": {"keys": 256},
}


@pytest.mark.parametrize("why", WHOLE_MASKS)
def test_why_a_given_mask_is_read_whole_is_said(why):
    given = replace(CACHE, prefix=False, is_kept_by_mask=True, mask="given")
    reason = decide(replace(given, **WHOLE_MASKS[why]), "auto").reason
    assert reason.endswith(why) if why else "All keys" not in reason


@pytest.mark.parametrize("name", WHOLE)
def test_else_it_is_read_whole(name):
    assert decide(replace(CACHE, **WHOLE[name]), "auto").code != "valid_keys"


def test_why_a_cache_is_read_whole_is_said():
    whole = replace(CACHE, prefix=False, why_whole="of padding", runs_kernels=True)
    assert decide(whole, "auto").reason.endswith(
        "All keys are read, however many a cache holds: of padding."
    )


def test_a_kernel_of_ours_is_said_to_skip_what_a_mask_hides():
    """Mutant: all keys are said to be read whatever reads them."""
    given = replace(CACHE, prefix=False, mask="given", why_whole="an input", runs_kernels=True)
    assert decide(given, "unified").reason.endswith(
        "Its mask tells which keys are left out, and not a length: an input."
    )


@pytest.mark.parametrize("name", ["small", "spelled out", "dtype"])
def test_unless_asked_for(name):
    assert decide(replace(CACHE, **WHOLE[name]), "sdpa").code == "valid_keys"


def test_a_kernel_of_our_own_says_how_it_reads_keys():
    own = replace(CACHE, device="cuda", runs_kernels=True, splits=16)
    assert decide(own, "unified").reason.endswith(
        "; decode, 16 splits, reads to a length on the device."
    )
    assert decide(replace(own, splits=0), "unified").reason.endswith(
        "; it reads to a length on the device."
    )
    assert decide(replace(own, prefix=False), "unified").reason.endswith("; decode, 16 splits.")
    twice = replace(own, prefix=False, reads=2)
    assert decide(twice, "unified").reason.endswith("; decode, 16 splits, each key read 2 times.")
    short = replace(own, prefix=False, rows=4)
    assert decide(short, "unified").reason.endswith("; few rows, 16 splits.")
    assert decide(replace(own, why_only_torch="No."), "unified").reason == "No."


@pytest.mark.parametrize(("splits", "dim", "up_to"), [(16, 576, 576), (0, 192, 256), (0, 576, 0)])
def test_heads_too_wide_for_float32_are_told_what_16_bits_take(splits, dim, up_to):
    """As latent attention has them. Mutant: what a decode takes is promised to many rows."""
    wide = replace(CACHE, device="cuda", runs_kernels=True, dtype="float32", splits=splits)
    verdict = decide(replace(wide, head_dim=dim), "unified")
    assert verdict.code == "no_own_kernel"
    remedy = f"; in 16 bits up to {up_to} are taken" if up_to else ""
    assert f"have more than 128 columns{remedy}." in verdict.reason


@pytest.mark.parametrize(("dtype", "splits", "may"), [("bfloat16", 4, True), ("bfloat16", 0, False),
                                                      ("float32", 4, False)])  # fmt: skip
def test_heads_of_latent_attention_have_a_kernel_for_few_rows(dtype, splits, may):
    latent = replace(PREFILL, head_dim=576, value_dim=512, splits=splits, dtype=dtype)
    verdict = decide(replace(latent, runs_kernels=True), "unified")
    assert (verdict.decision == "rewritten") == may


def test_sizes_as_a_person_reads_them():
    assert PREFILL.text() == "1x32x512x512x64 float32"
    assert replace(PREFILL, groups=4, value_dim=32).text() == "1x32/8x512x512x64/32 float32"
    varying = replace(PREFILL, groups=4, varying=("batch", "keys"))
    assert varying.text() == "~1x32/8x512x~512x64 float32"
    assert PREFILL.score_bytes == 4 * 32 * 512 * 512


def test_few_keys_on_processors_may_lose_a_nan():
    few = replace(PREFILL, rows=4096, keys=15, mask="nothing")
    assert decide(few, "sdpa").code == decide(few, "auto").code == "few_keys"
    assert decide(replace(few, keys=16), "sdpa").code == "fused"
    assert decide(replace(few, mask="given"), "sdpa").code == "fused"
    assert decide(replace(few, device="cuda"), "sdpa").code == "fused"


def test_where_ours_is_asked_for_and_there_is_none_what_auto_would_do_is_said():
    """Mutants: it is not said; it is said where nothing would be fused, or on a GPU."""
    said = "softmax='auto' would take it"
    assert said in decide(PREFILL, "unified").reason
    assert said not in decide(replace(PREFILL, rows=1), "unified").reason
    on_gpu = replace(PREFILL, device="cuda", why_only_torch="It is torch's.")
    assert said not in decide(on_gpu, "unified").reason


OF_SINKS = ("sinks", "A column takes part.")
SUNK = replace(PREFILL, rows=1024, keys=1024, untold=OF_SINKS, is_plain=True)
NOT_SUNK = {
    "gpu": {"device": "cuda"},
    "float64": {"dtype": "float64"},
    "values": {"value_dim": 32},
    "too wide": {"head_dim": 640, "value_dim": 640},
    "trained mask": {"is_mask_trained": True},
    "no gradient": {"why_no_gradient": "it has none"},
    "more than sinks": {"untold": ("score_function", "It is capped.")},
}


NARROW = replace(PREFILL, rows=1024, keys=1024, head_dim=192, value_dim=128, is_plain=True)


def test_values_narrower_than_keys_are_padded_where_that_was_faster():
    """Mutants of ``pads_values``: without each of its conditions."""
    for mask in ("given", "causal"):
        verdict = decide(replace(NARROW, mask=mask), "auto")
        assert (verdict.code, bool(verdict.policy)) == ("fused_padded", True)
        assert verdict.reason.endswith(", of values that are padded to 192 columns.")
    sunk = replace(NARROW, untold=OF_SINKS)
    assert decide(sunk, "auto").code == decide(sunk, "sdpa").code == "fused_sinks"
    others: list[dict[str, object]] = [
        {"rows": 1023}, {"keys": 1023}, {"value_dim": 120}, {"value_dim": 200}, {"prefix": True},
        {"is_plain": False}, {"is_trained": True}, {"dtype": "float64"}, {"device": "cuda"},
        {"head_dim": 600, "value_dim": 590},
        {"is_fused": True, "undoes_repeats": True},
    ]  # fmt: skip
    for change in others:
        problem = replace(NARROW, **change)
        assert decide(problem, "sdpa").code in ("fused", "fused_groups", "valid_keys"), change
        assert decide(problem, "auto").code in ("no_fused_kernel", "not_measured"), change
    assert decide(replace(sunk, rows=1023), "auto").code == "sinks"


def test_torchs_attention_is_told_of_sinks_by_our_op():
    verdict = decide(SUNK, "auto")
    assert (verdict.decision, verdict.code, bool(verdict.policy)) == (
        "rewritten",
        "fused_sinks",
        True,
    )
    assert verdict.reason.endswith("rescaled by what a sink takes of each row's sum.")
    trained = replace(SUNK, is_trained=True)
    assert decide(trained, "auto").code == "not_measured"
    assert decide(trained, "sdpa").code == "fused_sinks"
    assert decide(replace(SUNK, rows=1), "auto").code == "too_small"
    few = replace(SUNK, rows=256, keys=256, mask="causal")
    shares = replace(few, groups=4)
    assert decide(shares, "auto").code == "fused_sinks"
    assert decide(replace(shares, mask="given"), "auto").code == "too_small"
    # Mutants of ``_is_small_sunk``: without each of its conditions.
    for kept in (few, replace(few, rows=511), replace(shares, is_broadcast=True)):
        assert decide(kept, "auto").code == "too_small"
        assert decide(kept, "sdpa").code == "fused_sinks"
        assert decide(replace(kept, untold=None), "auto").code in ("fused", "by_rows")
    assert decide(replace(few, rows=512), "auto").code == "fused_sinks"
    shared = replace(SUNK, rows=128, heads=16, groups=4, mask="given")
    assert decide(shared, "auto").code == "too_small"
    assert decide(replace(shared, untold=None), "auto").code == "fused"
    assert decide(replace(SUNK, prefix=True), "sdpa").code == "valid_keys"


@pytest.mark.parametrize("name", NOT_SUNK)
def test_of_what_sinks_torchs_attention_is_not_told(name):
    """Mutants: any of the conditions of ``tells_sinks``."""
    verdict = decide(replace(SUNK, **NOT_SUNK[name]), "sdpa")
    assert (verdict.decision, verdict.code) == (
        "refused",
        NOT_SUNK[name].get("untold", OF_SINKS)[0],
    )


TRAINED = replace(PREFILL, is_trained=True, mask="given", dead="mean", is_plain=True)
NOT_TOLD = {
    "auto": ({}, "auto"),
    "gpu": ({"device": "cuda"}, "sdpa"),
    "zeros": ({"dead": "zero"}, "sdpa"),
    "trained mask": ({"is_mask_trained": True}, "sdpa"),
    "functions": ({"is_plain": False}, "sdpa"),
    "values": ({"value_dim": 32}, "sdpa"),
    "float64": ({"dtype": "float64"}, "sdpa"),
    "length": ({"prefix": True}, "sdpa"),
    "no gradient": ({"why_no_gradient": "it has none"}, "sdpa"),
}


def test_gradients_of_rows_that_keep_no_key():
    verdict = decide(TRAINED, "sdpa")
    assert (verdict.decision, verdict.code, verdict.policy) == (
        "rewritten",
        "fused_if_kept",
        "zero",
    )


def test_of_a_trained_mask_it_is_said_that_torch_has_no_kernel():
    """Where rows keep one it has none either, so that is no remedy. Mutant: not asked first."""
    for change in ({}, {"untold": OF_SINKS}):
        trained = replace(TRAINED, is_mask_trained=True, **change)
        assert decide(trained, "auto").code == "no_fused_kernel"


@pytest.mark.parametrize("name", NOT_TOLD)
def test_torchs_gradients_of_rows_that_keep_no_key_are_not_eagers(name):
    """Mutants: any of the conditions under which our op tells them."""
    change, choice = NOT_TOLD[name]
    verdict = decide(replace(TRAINED, **change), choice)
    assert (verdict.decision, verdict.code) == ("refused", "dead_rows")
    assert "softmax='unified'" in verdict.reason
    says = "what is trained of its mask may hide any" in verdict.reason
    assert says == change.get("is_mask_trained", False)


def test_where_rows_and_keys_vary_a_short_prompt_does_not_decide_for_long_ones():
    """Mutants: it does; under a mask that is given, or of rows or keys alone, it does not."""
    short = replace(PREFILL, rows=33, keys=33, mask="causal", varying=("rows", "keys"))
    verdict = decide(short, "auto")
    assert (verdict.decision, verdict.code) == ("rewritten", "fused")
    assert "may be many" in verdict.reason
    first = "These sizes, the first ones, decide for all that the graph serves."
    shared = {"mask": "given", "heads": 16, "groups": 4}
    for change in ({"mask": "given"}, shared, {"varying": ("keys",)}, {"varying": ("rows",)}):
        verdict = decide(replace(short, **change), "auto")
        assert (verdict.decision, verdict.code) == ("kept", "too_small")
        assert verdict.reason.endswith(first)
    assert first not in decide(replace(short, varying=()), "auto").reason
    assert "may be" not in decide(replace(short, rows=512, keys=512), "auto").reason
