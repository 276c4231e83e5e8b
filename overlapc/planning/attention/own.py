"""A kernel of our own in the place of an attention: whether there is one, and of what softmax."""

from __future__ import annotations

from dataclasses import replace

from overlapc.planning.attention.decode_splits import decode_in
from overlapc.planning.attention.policy import BOUND, FIRST, ONLINE, RUNNING, UNKNOWN, choose_source
from overlapc.planning.attention.problem import AttentionProblem, Verdict
from overlapc.planning.attention.tile_names import PLANNED, TRIED, VALUES_BEHIND
from overlapc.planning.tiles import why_not_served

OWN = ("unified", ONLINE, RUNNING)
"""Choices of a kernel of our own."""
OWN_DIMS = {"float32": 128, "float16": 256, "bfloat16": 256}
"""The most columns of a head that stay in registers, by dtype; from the budgets of the tests."""
MOST_DIM = 576
"""Of heads that a call of our op may have, whoever computes it."""


def policy_of(choice: str, dtype: str) -> str:
    """Return where φ comes from where nothing is known of the scores."""
    return choose_source(UNKNOWN, dtype, choice).policy


def by_own(problem: AttentionProblem, choice: str) -> Verdict:
    why = why_not_own(problem)
    if why:
        return Verdict("kept", "no_own_kernel", why)
    source = choose_source(problem.scores, problem.dtype, choice)
    prompts = problem.prompts
    # What a graph proves is better than what prompts showed.
    may_be_told = choice != ONLINE and source.policy != BOUND
    told = prompts if prompts is not None and prompts.policy and may_be_told else None
    policy = told.policy if told is not None else source.policy
    if problem.tile == VALUES_BEHIND and policy in (ONLINE, FIRST):
        problem = replace(problem, tile=PLANNED)  # it is of a φ that is known beforehand
    rest = _decode(problem)
    is_trained = problem.is_trained or problem.is_mask_trained
    reads_narrow = bool(problem.narrow and problem.splits) and not is_trained
    if reads_narrow:
        rest += f", of keys and values in {problem.narrow} as a cache holds them"
    if problem.is_latent:
        rest += ", of keys that begin with their values, each read once"
    if is_trained:
        rest += "; its gradients are made by kernels of our own"
    if told is not None:
        reason = f"A kernel of our own makes its softmax {told.text()}{rest}."
        own = Verdict("rewritten", "calibrated", reason, policy, of_heads=told.phi)
    else:
        reason = f"A kernel of our own makes its softmax {source.how}{rest}."
        own = Verdict("rewritten", choice, reason, policy, source.phi)
    return replace(
        own, reads_narrow=reads_narrow, reads_latent=problem.is_latent, tile=problem.tile
    )


def _decode(problem: AttentionProblem) -> str:
    """What a reason says of few rows, and of a length."""
    if problem.tile != PLANNED:
        parts = [f"; {TRIED[problem.tile]}"]
    else:
        parts = [f"; {decode_in(problem.splits, problem.rows)}"] if problem.splits else []
    if problem.splits and problem.reads > 1 and problem.tile == PLANNED:
        parts.append(f"each key read {problem.reads} times")
    if problem.prefix:
        parts.append(f"{'' if parts else '; it '}reads to a length on the device")
    return ", ".join(parts)


def why_not_own(problem: AttentionProblem) -> str:
    """Return why no kernel of our own can compute an attention, as a sentence; empty if one can."""
    if problem.why_only_torch:
        return problem.why_only_torch
    why = _why_no_kernel(problem)
    return f"There is no kernel of our own for it: {why}." if why else ""


def most_columns(dtype: str, splits: int) -> int:
    """Return how wide a head kernels of our own take, which of few rows is read in splits; 0 of a
    dtype that none takes."""
    own = OWN_DIMS.get(dtype, 0)
    return MOST_DIM if own and splits and dtype != "float32" else own


def _why_no_kernel(problem: AttentionProblem) -> str:
    if why := why_not_served(problem.architecture):
        return f"none {why}"
    most = most_columns(problem.dtype, problem.splits)
    if not most:
        return f"none is generated for {problem.dtype}"
    wide = max(problem.head_dim, problem.value_dim)
    if wide > most:
        why = f"heads of {problem.dtype} have more than {most} columns"
        of_half = most_columns("bfloat16", problem.splits)
        return f"{why}; in 16 bits up to {of_half} are taken" if wide <= of_half else why
    if problem.why_no_gradient:
        return problem.why_no_gradient
    return "" if problem.runs_kernels else f"generated kernels do not run on {problem.device}"
