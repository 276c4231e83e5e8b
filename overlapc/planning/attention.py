"""Whether torch's fused attention is worth putting in the place of a spelled-out one. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.planning.problem import ITEM_BYTES

MEASURED = (("cpu", "float32"),)
"""Where ``python -m benchmarks.attention`` has compared the two, and fused won."""

LEAST_ROWS = 32
LEAST_SCORES = 32 * 1024
"""Rows, and rows by keys, from which fused surely won in benchmarks/results/attention.md. Below
neither won clearly, and of one row (decode) Inductor's own is up to twice as fast."""


@dataclass(frozen=True)
class AttentionProblem:
    """One attention: sizes, where symbolic hints, and what torch's kernels ask for."""

    batch: int
    heads: int
    """Of queries."""
    groups: int
    """Heads of queries that share one of keys."""
    rows: int
    keys: int
    head_dim: int
    value_dim: int
    dtype: str
    device: str
    mask: str
    """"nothing", "causal", or "given": a tensor."""
    is_mask_trained: bool = False
    is_dense: bool = True
    """The last dimension of queries, keys and values has stride 1."""
    is_fused: bool = False
    """The graph calls torch's attention already."""

    @property
    def score_bytes(self) -> int:
        """Bytes of the scores, which a fused kernel does not store."""
        return self.batch * self.heads * self.rows * self.keys * ITEM_BYTES.get(self.dtype, 4)

    def text(self) -> str:
        """Return the sizes as a person reads them."""
        heads = f"{self.heads}/{self.heads // self.groups}" if self.groups > 1 else str(self.heads)
        dims = "" if self.value_dim == self.head_dim else f"/{self.value_dim}"
        sizes = f"{self.batch}x{heads}x{self.rows}x{self.keys}x{self.head_dim}{dims}"
        return f"{sizes} {self.dtype}"


@dataclass(frozen=True)
class Verdict:
    """What is to become of one attention, and why."""

    decision: str
    """"rewritten" or "kept"."""
    code: str
    reason: str


def decide(problem: AttentionProblem, choice: str) -> Verdict:
    """Choose between an attention as it is spelled and torch's fused one.

    ``choice`` is option ``softmax``: "auto", or "sdpa" to take the fused one wherever it may be.
    """
    if problem.is_fused and problem.groups == 1:
        return Verdict("kept", "fused_already", "It calls torch's fused attention as it stands.")
    if choice != "auto":
        return _rewritten(problem)
    why = _why_unfused(problem)
    if why:
        reason = f"Torch has no fused kernel for it: {why}."
        return Verdict("kept", "no_fused_kernel", reason)
    if (problem.device, problem.dtype) not in MEASURED:
        reason = f"In {problem.dtype} on {problem.device} it was not measured to be faster fused."
        return Verdict("kept", "not_measured", reason)
    if not problem.is_fused and _is_small(problem):
        reason = f"Fused it is not faster with {problem.rows} rows over {problem.keys} keys."
        return Verdict("kept", "too_small", reason)
    return _rewritten(problem)


def _is_small(problem: AttentionProblem) -> bool:
    return problem.rows < LEAST_ROWS or problem.rows * problem.keys < LEAST_SCORES


def _why_unfused(problem: AttentionProblem) -> str:
    if problem.is_mask_trained:
        return "a gradient is wanted of its mask"
    if problem.head_dim != problem.value_dim:
        return f"heads of {problem.head_dim} meet values of {problem.value_dim}"
    return "" if problem.is_dense else "an operand's last dimension is strided"


def _rewritten(problem: AttentionProblem) -> Verdict:
    if problem.is_fused:
        reason = (
            f"Torch's fused attention reads each head of keys once, not {problem.groups} copies."
        )
        return Verdict("rewritten", "fused_groups", reason)
    mib = problem.score_bytes / (1 << 20)
    mask = {"causal": " and skips masked keys", "nothing": "", "given": ""}[problem.mask]
    reason = f"Torch's fused attention stores none of {mib:.3g} MiB of scores{mask}."
    return Verdict("rewritten", "fused", reason)
