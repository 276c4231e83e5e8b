"""How our op calls torch's attention on processors: to a length, where rows keep keys, of values
that are padded; or products in its place."""

from __future__ import annotations

from dataclasses import replace

from overlapc.planning.attention.by_rows import by_rows
from overlapc.planning.attention.fused import MEASURED, pads_values
from overlapc.planning.attention.own import MOST_DIM, OWN_DIMS, policy_of
from overlapc.planning.attention.problem import AttentionProblem, Verdict

FAINT = -4096.0
"""Where every key of a row has no more added, torch's fused attention for processors has other
gradients: it makes weights again from the logarithm of a sum, of which that leaves three digits
behind the point, and none from 1e8 on. Chosen; our own kernels sum again beyond it."""

LEAST_CACHE_BYTES = 16 << 20
"""Of keys and values, from which a cache is read up to its length on processors. A fourth of them
took 0.5 ms ("sdpa llama decode 2048" in benchmarks/results/attention.md), so that the call of an op
is little beside them even where the cache is full; chosen, not measured."""

MOST_MASK_ROWS = 8
"""Of queries, up to which a mask that is given is looked through for the last key it keeps: one
boolean for each row and key, beside all columns of a key and a value; chosen, not measured."""


def as_called(problem: AttentionProblem, choice: str, verdict: Verdict) -> Verdict:
    """Return what becomes of torch's attention where our op calls it, and only in part."""
    if problem.dead and problem.is_trained and verdict.code == "fused":
        return _by_our_op(problem, verdict, "fused_if_kept", "but where a call leaves a row no key")
    if _reads_prefix(problem, choice, verdict):
        return _of_prefix(problem)
    if verdict.code == "fused" and problem.untold is not None:
        how = "and its result is rescaled by what a sink takes of each row's sum"
        return _by_our_op(problem, verdict, "fused_sinks", how)
    is_choice = choice == "auto" and verdict.decision != "refused"
    products = by_rows(problem) if is_choice or verdict.code == "fused" else None
    if products is not None:
        return products
    if verdict.code == "fused" and pads_values(problem):
        how = f"of values that are padded to {problem.head_dim} columns"
        return _by_our_op(problem, verdict, "fused_padded", how)
    return verdict


def _by_our_op(problem: AttentionProblem, verdict: Verdict, code: str, how: str) -> Verdict:
    policy = policy_of("unified", problem.dtype)
    return replace(verdict, code=code, reason=f"{verdict.reason[:-1]}, {how}.", policy=policy)


def _reads_prefix(problem: AttentionProblem, choice: str, verdict: Verdict) -> bool:
    """Whether torch's attention is to be told how many keys are valid: on processors, where that
    number is at hand, and where the fused one is called anyway."""
    if problem.device != "cpu" or problem.is_trained:
        return False
    if not problem.prefix and not _has_small_mask(problem):
        return False
    if problem.dtype not in OWN_DIMS or max(problem.head_dim, problem.value_dim) > MOST_DIM:
        return False
    is_left = verdict.code == "fused_already" or (
        problem.unfused != "" and verdict.code == "too_small"
    )
    is_called = verdict.decision == "rewritten" or is_left
    is_large = problem.cache_bytes >= LEAST_CACHE_BYTES
    is_worth = (problem.device, problem.dtype) in MEASURED and is_large
    return is_called and problem.head_dim == problem.value_dim and (choice != "auto" or is_worth)


def _has_small_mask(problem: AttentionProblem) -> bool:
    """Whether to look for the last key that a mask keeps costs little beside reading all keys."""
    is_few = problem.is_kept_by_mask and problem.rows <= MOST_MASK_ROWS
    return is_few and not problem.is_mask_trained and problem.cache_bytes >= LEAST_CACHE_BYTES


def why_mask_is_whole(problem: AttentionProblem, verdict: Verdict) -> str:
    """Why a mask that is given is not looked through for the last key it keeps, as a clause."""
    if problem.device != "cpu" or not problem.is_kept_by_mask or problem.prefix:
        return ""
    if problem.cache_bytes < LEAST_CACHE_BYTES:
        return ""  # all of them cost little
    if problem.is_trained or problem.is_mask_trained:
        return "gradients are wanted of what is read"
    if problem.rows > MOST_MASK_ROWS:
        return f"its mask is looked through for no more than {MOST_MASK_ROWS} rows"
    if not problem.is_fused and not problem.unfused and verdict.decision == "kept":
        return "its mask is looked through where torch's attention is called, and it is spelled out"
    return "torch's attention was not measured to gain by fewer of them here"


def _of_prefix(problem: AttentionProblem) -> Verdict:
    copies = f", and each head of them once, not {problem.groups} copies" * (problem.groups > 1)
    some = f"as many of {problem.keys} keys as the mask says are valid"
    if not problem.prefix:
        some = f"of {problem.keys} keys those up to the last that the mask keeps for any row"
    reason = f"Torch's fused attention reads {some}{copies}."
    policy = policy_of("unified", problem.dtype)
    return Verdict("rewritten", "valid_keys", reason, policy, rounds=problem.rounds)
