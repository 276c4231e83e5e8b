"""Attention on processors by products of the library for some rows at a time: where that pays."""

from __future__ import annotations

from overlapc.planning.attention.own import MOST_DIM, policy_of
from overlapc.planning.attention.problem import AttentionProblem, Verdict

ROWS_AT_A_TIME = 64
"""Of queries. Of 32 a product's operands are read more often; of 128 scores leave the cache, and
more of them is computed above a diagonal (``python -m benchmarks.by_rows``)."""

LEAST_ROWS = 384
MOST_CAUSAL_ROWS, MOST_SHARED_ROWS = 640, 1536
"""Of a causal attention in float32, between which products were faster than torch's fused one: 1.1
to 1.5 times of 384 and 512 rows, for it skips keys by 512 alone. The last is of queries that share
heads of keys. Same source, as all here."""

LEAST_DIM = 64
"""Columns of a head, below which weights cost more than products, and torch's is as fast but of
``MOST_CAUSAL_ROWS`` in float32 whose queries share heads."""

LEAST_BFLOAT16_ROWS = 768
"""From which causal products surely were faster than what Inductor makes of it, 1.09 to 5.1 times,
in bfloat16; of shared heads they were from ``LEAST_ROWS`` on. They are rounded as what is spelled,
and torch's fused one took 1.07 to 2 times as long."""

MOST_SEEN = 0.75
"""The share of all scores up to which products of those that a given mask shows were faster than
torch's fused attention, 1.1 to 1.7 times. Of all scores they took 1.09 to 1.42 times as long, but
in bfloat16 where queries share heads."""

LEAST_KEY_HEADS, LEAST_HEADS = 2, 12
"""Of keys and of queries: fewer do not pay for some ten calls of 64 rows. Products of 384 rows took
of torch's fused attention's own time 1.48 times with 2 heads, 1.28 with 4, 1.09 with 6 and 1.01
with 12 in float32; and of Inductor's, in bfloat16 where some share a head of keys, 1.35 times with
4, 1.05 to 1.09 with 8 and 0.38 to 0.75 with 12."""

THREADS = 1
"""Several wait for each other some fifty times in a call, where torch's fused attention does once:
of two on cores that other programs use as well each wait may take a turn of the scheduler, and
calls took 8 to 25 times as long as torch's."""

DTYPES = ("float32", "bfloat16")


def takes_products(
    dtype: str, dim: int, groups: int, rows: int, seen: float, *, is_causal: bool
) -> bool:  # fmt: skip
    """Whether products of a share of all scores are faster than torch's fused attention, of as many
    heads as ``has_heads`` asks for."""
    if dtype not in DTYPES or rows < LEAST_ROWS:
        return False
    if is_causal and dtype == "float32":
        return rows <= most_causal_rows(dim, groups)
    if is_causal or dim < LEAST_DIM:
        return dim >= LEAST_DIM
    return seen <= MOST_SEEN or (dtype != "float32" and groups > 1)


def has_heads(key_heads: int, groups: int, threads: int) -> bool:
    """Whether there are heads enough in a product of 64 rows of all, and one thread that computes
    them."""
    has_enough = key_heads >= LEAST_KEY_HEADS and key_heads * groups >= LEAST_HEADS
    return threads == THREADS and has_enough


def most_causal_rows(dim: int, groups: int) -> int:
    """Up to which products are faster in float32, of heads of so many columns."""
    if dim < LEAST_DIM:
        return MOST_CAUSAL_ROWS if groups > 1 else 0
    return MOST_SHARED_ROWS if groups > 1 else MOST_CAUSAL_ROWS


def by_rows(problem: AttentionProblem) -> Verdict | None:
    """Return that our op takes a causal attention's place, which computes products; None where
    nobody knows them to be faster than what is there and than torch's fused attention.

    Not where rows or keys vary: our op calls torch's attention of too few or too many of them, and
    20 to 200 rows took 1.16 to 1.8 times as long so as by Inductor's call of it, 700 1.06 times.

    Nor under a mask that is given: what it hides is known in a call alone, and where that is little
    looking for it was too dear (0.7 to 0.98 times as fast as torch's as Inductor calls it).
    """
    if not _can(problem) or not _gains(problem):
        return None
    how = f"Products of {ROWS_AT_A_TIME} rows at a time keep scores in the cache"
    reason = f"{how} and skip masked keys."
    policy = policy_of("unified", problem.dtype)
    return Verdict("rewritten", "by_rows", reason, policy, rounds=problem.rounds)


def _can(problem: AttentionProblem) -> bool:
    is_own = problem.device == "cpu" and problem.is_plain and problem.mask == "causal"
    is_read = not problem.is_trained and not problem.why_only_torch
    is_narrow = problem.value_dim <= problem.head_dim <= MOST_DIM
    # Products of 16 bits round scores to them, which torch's own attention does not, nor what is
    # spelled in float32 between 16 bits.
    is_as_exact = problem.dtype == "float32" or (problem.rounds and not problem.unfused)
    is_told = problem.untold is None and not problem.prefix
    is_fixed = not {"rows", "keys"} & {*problem.varying}
    is_shared = has_heads(problem.heads // problem.groups, problem.groups, problem.threads)
    return (
        is_own and is_read and is_narrow and is_as_exact and is_told and is_shared
        and is_fixed and problem.dtype in DTYPES and problem.rows >= LEAST_ROWS
    )  # fmt: skip


def _gains(problem: AttentionProblem) -> bool:
    if problem.dtype == "float32":
        return problem.rows <= most_causal_rows(problem.head_dim, problem.groups)
    shares = problem.groups > 1 or problem.rows >= LEAST_BFLOAT16_ROWS
    return shares and problem.head_dim >= LEAST_DIM
