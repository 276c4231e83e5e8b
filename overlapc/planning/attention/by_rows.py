"""Attention on processors by products of the library for some rows at a time: where that pays."""

from __future__ import annotations

from overlapc.planning.attention.fused import pads_values
from overlapc.planning.attention.own import MOST_DIM, policy_of
from overlapc.planning.attention.problem import AttentionProblem, Verdict

ROWS_AT_A_TIME = 64
"""Of queries. Of 32 a product's operands are read more often; of 128 scores leave the cache, and
more of them is computed above a diagonal (``python -m benchmarks.by_rows``)."""

LEAST_ROWS = 384
MOST_CAUSAL_ROWS, MOST_SHARED_ROWS = 640, 1536
"""Of a causal attention in float32, between which products were faster than torch's fused one: 1.1
to 1.4 times of 384 and 512 rows, for it skips keys by 512 alone. The last is of queries that share
heads of keys. Same source, as all here."""

LEAST_BFLOAT16_ROWS = 768
"""From which causal products surely were faster than what Inductor makes of it, 1.09 to 5.1 times,
in bfloat16; of shared heads they were from ``LEAST_ROWS`` on. They are rounded as what is spelled,
and torch's fused one took 1.07 to 2 times as long."""

LARGE_SCORES = 32 << 20
"""Bytes, from which Inductor was slower under a mask that is given, 1.5 to 2.8 times."""

MOST_SEEN = 0.75
"""The share of all scores up to which products of those that a given mask shows were faster than
torch's fused attention, 1.1 to 1.7 times. Of all scores they took 1.09 to 1.42 times as long, but
in bfloat16 where queries share heads."""

HEADS_A_THREAD = 2
"""Heads of keys for each thread, from which on products are taken: the library shares them among
threads, where torch's fused attention shares rows as well. Measured with two threads; chosen."""

DTYPES = ("float32", "bfloat16")


def takes_products(
    dtype: str, groups: int, rows: int, seen: float, heads_a_thread: float, *, is_causal: bool
) -> bool:
    """Whether products of a share of all scores are faster than torch's fused attention."""
    if dtype not in DTYPES or rows < LEAST_ROWS or heads_a_thread < HEADS_A_THREAD:
        return False
    if is_causal:
        return dtype != "float32" or rows <= most_causal_rows(groups)
    return seen <= MOST_SEEN or (dtype != "float32" and groups > 1)


def most_causal_rows(groups: int) -> int:
    """Up to which products are faster in float32."""
    return MOST_SHARED_ROWS if groups > 1 else MOST_CAUSAL_ROWS


def by_rows(problem: AttentionProblem) -> Verdict | None:
    """Return that our op takes an attention's place, which computes products where they are faster
    than torch's fused one; None where nobody knows either to be faster than what is there."""
    if not _can(problem) or not (_gains_causal(problem) or _gains_masked(problem)):
        return None
    hidden = {"causal": "masked keys", "given": "keys that its mask hides on either side"}
    how = f"Products of {ROWS_AT_A_TIME} rows at a time keep scores in the cache"
    few = ": torch's fused attention is called where those are few" * (problem.mask == "given")
    reason = f"{how} and skip {hidden[problem.mask]}{few}."
    return Verdict("rewritten", "by_rows", reason, policy_of("unified", problem.dtype))


def _can(problem: AttentionProblem) -> bool:
    is_own = problem.device == "cpu" and problem.is_plain and not problem.why_only_torch
    is_read = not problem.is_trained and not problem.is_mask_trained
    is_narrow = problem.value_dim <= problem.head_dim <= MOST_DIM
    # Torch's own attention rounds no score to 16 bits.
    is_as_exact = problem.dtype == "float32" or not problem.is_fused
    is_told = problem.untold is None and not problem.prefix
    is_shared = problem.heads // problem.groups >= HEADS_A_THREAD * problem.threads
    return (
        is_own and is_read and is_narrow and is_as_exact and is_told and is_shared
        and problem.dtype in DTYPES and problem.rows >= LEAST_ROWS
    )  # fmt: skip


def _gains_causal(problem: AttentionProblem) -> bool:
    if problem.mask != "causal":
        return False
    if problem.dtype != "float32":
        return problem.groups > 1 or problem.rows >= LEAST_BFLOAT16_ROWS
    return problem.rows <= most_causal_rows(problem.groups)


def _gains_masked(problem: AttentionProblem) -> bool:
    """Whether scores under a mask that is given are large, or heads are copied for them that
    products and torch's attention share."""
    is_even = problem.head_dim == problem.value_dim or pads_values(problem)
    if problem.mask != "given" or problem.is_fused or not is_even:
        return False
    copies = problem.groups > 1 and not problem.is_broadcast and problem.dtype == "float32"
    return copies or problem.score_bytes >= LARGE_SCORES
