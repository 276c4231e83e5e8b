"""Torch's fused attention in the place of an attention: where it gives the same, and pays."""

from __future__ import annotations

from overlapc.planning.attention.own import MOST_DIM, OWN_DIMS
from overlapc.planning.attention.problem import AttentionProblem, Verdict

KEEPS_ONE = "it is taken where the graph shows that each row keeps one (a constant mask, is_causal)"
OURS = "softmax='unified' by a kernel of our own"
TOLD = "on a processor with softmax='sdpa' if its mask is not trained and is all that is added"
"""What helps where rows may keep no key."""

MEASURED = (("cpu", "float32"),)
"""Where ``python -m benchmarks.attention`` has compared the two, and fused won."""

LEAST_ROWS = 32
LEAST_SCORES = 32 * 1024
"""Rows, and rows by keys, from which fused surely won in benchmarks/results/attention.md. Below
neither won clearly, and of one row (decode) Inductor's own is up to twice as fast."""

LEAST_KEYS = 16
"""Float32 numbers of the widest vectors of processors. Over fewer keys without a mask that is
given, rows of NaN alone were seen to become zeros in torch 2.13."""

LEAST_MASKED_BYTES = 32 << 20
MOST_SHARED_ROWS = 128
"""With a mask that is given, which lets no keys be skipped, fused surely won where scores are so
large that no cache holds them, or where few rows share heads that eager repeats; between, it took
0.90 to 1.09 of the time, as memory happened to lie. Same source.

Beside sinks, in benchmarks/results/attention_sinks.md: 1.13 to 2.6 times as fast from 256 rows on
where keys are skipped (16 heads on 4), 1.13 to 1.5 with 16 MiB under a mask that is given, 3.4 with
64; 128 rows over 1024 keys 1.14 and 1.7, where another spelling was seen to be slower."""

LEAST_SUNK_ROWS = 512
"""Beside sinks, of queries whose heads eager does not copy keys for: 256 and 320 rows took
as long as Inductor's or longer, and 16 heads on 4 of keys gained there
(benchmarks/results/attention_unfused_calls.md)."""

LEAST_PADDED_ROWS = 1024
"""Of rows, and of keys, from which values narrower than keys are padded with zeros for torch's
kernel, which has one number of columns: of 128 and 192 columns that was surely faster than Inductor
there, beside sinks and without (benchmarks/results/attention_narrow_values.md)."""
PADDED_SHARE = 2 / 3
"""Of keys' columns, down to which values have them: what was measured."""

LEAST_COPIED_ROWS = 256
"""Of rows, and of keys, from which operands of a call of torch's attention were worth a copy where
their last dimension is strided (benchmarks/results/attention_unfused_calls.md)."""

MASKS = {
    "given": "a mask that is given",
    "made": "a mask that is made in the graph",
    "constant": "a constant mask that is not causal",
}
"""What a mask that is a tensor is called, by where it comes from."""


def by_torch(problem: AttentionProblem, choice: str) -> Verdict:
    if problem.unfused and (problem.why_only_torch or _why_unfused(problem)):
        return _no_kernel(problem)  # torch would compute what is put in as the call that is there
    if choice == "auto" and problem.device == "cpu" and problem.is_mask_trained:
        return _no_kernel(problem)  # whatever its rows keep
    if problem.untold is not None and not tells_sinks(problem):
        return Verdict("refused", *problem.untold)
    if problem.dead and problem.is_trained and not _tells_dead_rows(problem, choice):
        # The backward of torch's kernel takes the weights of such a row for other ones.
        hides = ", for what is trained of its mask may hide any" * problem.is_mask_trained
        reason = (
            f"A row may keep no key{hides}, and torch's fused attention has another gradient there"
        )
        told = f"{TOLD}, " * (choice == "auto")
        return Verdict(
            "refused", "dead_rows", f"{reason}: {KEEPS_ONE}, {told}or on a GPU under {OURS}."
        )
    if problem.dead and problem.device != "cpu":
        reason = "A row may keep no key, and what torch's kernels give it is known on processors"
        return Verdict("refused", "dead_rows", f"{reason}: {KEEPS_ONE}, or under {OURS}.")
    if problem.is_fused and not problem.undoes_repeats:
        return Verdict("kept", "fused_already", "It calls torch's fused attention as it stands.")
    if _loses_nan(problem):
        reason = (
            f"Torch's fused attention over fewer than {LEAST_KEYS} keys may lose a NaN of its "
            "queries on processors."
        )
        if not problem.unfused:
            reason = (
                f"Torch's attention over fewer than {LEAST_KEYS} keys may lose a NaN of its "
                "queries on processors: where a model calls it by itself, as "
                "F.scaled_dot_product_attention, it stays."
            )
        return Verdict("refused", "few_keys", reason)
    if choice != "auto":
        return _rewritten(problem)
    if problem.untold is not None and problem.is_trained:
        reason = "Its gradients beside a sink were not measured to be faster fused"
        return Verdict("kept", "not_measured", f"{reason}: softmax='sdpa' takes it all the same.")
    if _why_unfused(problem):
        return _no_kernel(problem)
    if (problem.device, problem.dtype) not in MEASURED:
        reason = f"In {problem.dtype} on {problem.device} it was not measured to be faster fused"
        return Verdict("kept", "not_measured", f"{reason}: softmax='sdpa' takes it all the same.")
    is_small = _is_small(problem) or (problem.untold is not None and _is_small_sunk(problem))
    if not problem.is_fused and is_small and not _may_grow(problem):
        reason = f"Fused it is not faster with {problem.rows} rows over {problem.keys} keys."
        return Verdict("kept", "too_small", reason + _of_first(problem))
    is_spelled = not problem.is_fused and not problem.unfused
    if is_spelled and problem.mask == "given" and not _gains_masked(problem):
        mib = problem.score_bytes / (1 << 20)
        mask = MASKS[problem.mask_comes]
        reason = f"With {mask}, {mib:.3g} MiB of scores cost no more than fused."
        return Verdict("kept", "too_small", reason + _of_first(problem))
    return _rewritten(problem)


def _tells_dead_rows(problem: AttentionProblem, choice: str) -> bool:
    """Whether our op calls torch's attention where each row keeps a key, and else computes what is
    spelled: that tells gradients of rows that keep none. Nothing was measured, so if told to."""
    is_own = problem.device == "cpu" and problem.is_plain
    is_seen = problem.dead in ("nan", "mean") and not problem.prefix
    is_narrow = problem.head_dim == problem.value_dim <= OWN_DIMS.get(problem.dtype, 0)
    is_told = not problem.is_mask_trained and not problem.why_no_gradient
    return choice != "auto" and is_own and is_seen and is_narrow and is_told


def tells_sinks(problem: AttentionProblem) -> bool:
    """Whether sinks are all that torch's attention cannot be told, and our op tells it of them by
    the logarithms of its sums, which it leaves on processors."""
    is_alone = problem.untold is not None and problem.untold[0] == "sinks"
    is_own = problem.device == "cpu" and problem.dtype in OWN_DIMS
    is_narrow = problem.head_dim <= MOST_DIM
    is_fitting = problem.head_dim == problem.value_dim or pads_values(problem)
    is_told = not problem.is_mask_trained and not problem.why_no_gradient
    return is_alone and is_own and is_narrow and is_fitting and is_told


def pads_values(problem: AttentionProblem) -> bool:
    """Whether values are narrower than keys, and our op is to pad them for torch's kernel."""
    is_own = problem.device == "cpu" and problem.dtype in OWN_DIMS and problem.is_plain
    is_taken = is_own and not problem.is_trained and not problem.prefix and not problem.is_fused
    is_near = PADDED_SHARE * problem.head_dim <= problem.value_dim < problem.head_dim <= MOST_DIM
    return is_taken and is_near and min(problem.rows, problem.keys) >= LEAST_PADDED_ROWS


def copies_strided(problem: AttentionProblem) -> bool:
    """Whether operands whose last dimension is strided are copied for torch's kernel."""
    is_many = min(problem.rows, problem.keys) >= LEAST_COPIED_ROWS
    return bool(problem.unfused) and not problem.prefix and is_many


def _loses_nan(problem: AttentionProblem) -> bool:
    is_alone = problem.device == "cpu" and not problem.is_fused and problem.mask != "given"
    return is_alone and problem.keys < LEAST_KEYS


def _is_small(problem: AttentionProblem) -> bool:
    return problem.rows < LEAST_ROWS or problem.rows * problem.keys < LEAST_SCORES


def _is_small_sunk(problem: AttentionProblem) -> bool:
    return problem.rows < LEAST_SUNK_ROWS and not _copies_heads(problem)


def _copies_heads(problem: AttentionProblem) -> bool:
    """Whether eager repeats heads of keys that queries share."""
    return problem.groups > 1 and not problem.is_broadcast


def _may_grow(problem: AttentionProblem) -> bool:
    """Whether rows and keys vary, so that one graph serves long prompts after a short one: of few
    rows fused took 0.96 to 1.04 times as long, of many a third."""
    return {"rows", "keys"} <= {*problem.varying} and problem.mask != "given"


def _of_first(problem: AttentionProblem) -> str:
    """What else a reason says where sizes vary."""
    if not {"rows", "keys"} & {*problem.varying}:
        return ""
    return " These sizes, the first ones, decide for all that the graph serves."


def _gains_masked(problem: AttentionProblem) -> bool:
    shares = _copies_heads(problem) and problem.rows <= MOST_SHARED_ROWS and problem.untold is None
    return shares or problem.score_bytes >= LEAST_MASKED_BYTES


def _no_kernel(problem: AttentionProblem) -> Verdict:
    reason = f"Torch has no fused kernel for it: {problem.unfused or _why_unfused(problem)}."
    if problem.unfused and problem.why_only_torch:
        reason += f" {problem.why_only_torch}"
    return Verdict("kept", "no_fused_kernel", reason)


def _why_unfused(problem: AttentionProblem) -> str:
    """Why torch would have no fused kernel for what is put in, as a clause."""
    if problem.is_mask_trained:
        return "a gradient is wanted of its mask"
    if problem.head_dim != problem.value_dim and not pads_values(problem):
        return f"heads of {problem.head_dim} meet values of {problem.value_dim}"
    is_copied = problem.head_dim == problem.value_dim and copies_strided(problem)
    return "" if problem.is_dense or is_copied else "an operand's last dimension is strided"


def _rewritten(problem: AttentionProblem) -> Verdict:
    if problem.is_fused:
        reason = (
            f"Torch's fused attention reads each head of keys once, not {problem.groups} copies."
        )
        return Verdict("rewritten", "fused_groups", reason)
    mib = problem.score_bytes / (1 << 20)
    scores = f"of {mib:.3g} MiB of scores"
    if _is_small(problem) and _may_grow(problem):
        scores = "of the scores, which are few here and may be many"
    mask = {"causal": " and skips masked keys", "nothing": "", "given": ""}[problem.mask]
    reason = f"Torch's fused attention stores none {scores}{mask}."
    return Verdict("rewritten", "fused", reason)
