"""Which attention is worth putting in the place of a spelled-out one."""

from __future__ import annotations

from dataclasses import replace

from overlapc.planning.attention.fused import by_torch
from overlapc.planning.attention.library_calls import as_called, why_mask_is_whole
from overlapc.planning.attention.own import OWN, by_own
from overlapc.planning.attention.problem import AttentionProblem, Verdict


def decide(problem: AttentionProblem, choice: str) -> Verdict:
    """Choose between an attention as it is spelled, torch's fused one, and a kernel of our own.

    ``choice`` is option ``softmax``: "auto", "sdpa" to take the fused one wherever it may be, or
    one of ``OWN`` to take a kernel of our own.
    """
    if choice not in OWN:
        verdict = as_called(problem, choice, by_torch(problem, choice))
        return _with_keys(problem, choice, _as_it_stands(problem, verdict))
    verdict = by_own(problem.own, choice)
    if verdict.code == "no_own_kernel" and problem.device == "cpu":
        verdict = replace(verdict, reason=f"{verdict.reason}{_what_auto_would(problem)}")
    return _with_keys(problem.own, choice, verdict)


def _as_it_stands(problem: AttentionProblem, verdict: Verdict) -> Verdict:
    """The verdict, and why a call of torch's attention is not fused as the graph has it."""
    if not problem.unfused or verdict.code == "no_fused_kernel":
        return verdict
    own = f"Torch has no fused kernel for the call as it stands: {problem.unfused}."
    return replace(verdict, reason=f"{own} {verdict.reason}")


def _with_keys(problem: AttentionProblem, choice: str, verdict: Verdict) -> Verdict:
    """The verdict, and why all keys of what looks like a cache are read."""
    why = problem.why_whole or why_mask_is_whole(problem, verdict)
    if not why or verdict.decision == "refused" or verdict.code == "valid_keys":
        return verdict
    if choice in OWN and verdict.policy and problem.mask == "given":
        how = f"Its mask tells which keys are left out, and not a length: {why}."
    else:
        how = f"All keys are read, however many a cache holds: {why}."
    return replace(verdict, reason=f"{verdict.reason} {how}")


def _what_auto_would(problem: AttentionProblem) -> str:
    """What is lost where a kernel of our own is asked for and there is none, as a sentence."""
    if decide(problem, "auto").decision != "rewritten":
        return ""
    return " Torch's attention is not put in where ours is asked for: softmax='auto' would take it."
