"""Which attention is worth putting in the place of a spelled-out one. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.planning.problem import ITEM_BYTES

MEASURED = (("cpu", "float32"),)
"""Where ``python -m benchmarks.attention`` has compared the two, and fused won."""

LEAST_ROWS = 32
LEAST_SCORES = 32 * 1024
"""Rows, and rows by keys, from which fused surely won in benchmarks/results/attention.md. Below
neither won clearly, and of one row (decode) Inductor's own is up to twice as fast."""


OWN = ("unified", "online")
"""Choices of a kernel of our own."""
OWN_DIMS = {"float32": 128, "float16": 256, "bfloat16": 256}
"""The most columns of a head that stay in registers, by dtype; from the budgets of the tests."""


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
    dead: str = ""
    """What eager gives a row that keeps no key, as ``masks.Mask`` says it; empty: there is none."""
    is_trained: bool = False
    """A gradient is wanted of queries, keys or values."""
    untold: tuple[str, str] | None = None
    """Code and reason where torch's attention cannot be told the same."""
    runs_kernels: bool = False
    """Generated kernels run on the device."""

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
    """"rewritten", "kept" or "refused"."""
    code: str
    reason: str
    policy: str = ""
    """Where φ comes from in a kernel of our own, as `codegen.attention.policies` names it; empty:
    torch's attention is put in."""


def decide(problem: AttentionProblem, choice: str) -> Verdict:
    """Choose between an attention as it is spelled, torch's fused one, and a kernel of our own.

    ``choice`` is option ``softmax``: "auto", "sdpa" to take the fused one wherever it may be, or
    "unified" or "online" to take a kernel of our own.
    """
    if choice in OWN:
        return _own(problem, choice)
    if problem.untold is not None:
        return Verdict("refused", *problem.untold)
    if problem.dead and problem.device != "cpu":
        reason = "A row may keep no key, and what torch's kernels give it is known on processors."
        return Verdict("refused", "dead_rows", reason)
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


def policy_of(choice: str, dtype: str) -> str:
    """Return where φ comes from: weights of float16 hold too few powers of two for a fixed one."""
    if choice == "online":
        return choice
    return "first_tile" if dtype == "float16" else "zero"


def _own(problem: AttentionProblem, choice: str) -> Verdict:
    why = _why_not_own(problem)
    if why:
        return Verdict("kept", "no_own_kernel", f"There is no kernel of our own for it: {why}.")
    policy = policy_of(choice, problem.dtype)
    how = {
        "online": "with a running maximum",
        "zero": "relative to φ = 0, and rows of too large or small a sum are computed twice",
        "first_tile": "relative to the maximum of each row's first keys, and rows of too large or"
        " small a sum are computed twice",
    }[policy]
    return Verdict("rewritten", choice, f"A kernel of our own makes its softmax {how}.", policy)


def _why_not_own(problem: AttentionProblem) -> str:
    if problem.is_fused:
        return "it is read where it is spelled out, and here torch's attention is called"
    most = OWN_DIMS.get(problem.dtype, 0)
    if max(problem.head_dim, problem.value_dim) > most:
        return f"heads of {problem.dtype} have more than {most} columns"
    if problem.is_trained or problem.is_mask_trained:
        return "a gradient is wanted, and it has no backward"
    return "" if problem.runs_kernels else f"generated kernels do not run on {problem.device}"
