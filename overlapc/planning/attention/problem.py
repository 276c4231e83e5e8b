"""Which attention is worth putting in the place of a spelled-out one. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from overlapc.planning.attention.decode_splits import decode_in
from overlapc.planning.attention.policy import (
    BOUND,
    ONLINE,
    RUNNING,
    UNKNOWN,
    KnownScores,
    choose_source,
)
from overlapc.planning.attention.softmax import SiteScores
from overlapc.planning.problem import ITEM_BYTES
from overlapc.planning.tiles import why_not_served

KEEPS_ONE = "it is taken where the graph shows that each row keeps one (a constant mask, is_causal)"
OURS = "softmax='unified' by a kernel of our own"
TOLD = "on a processor with softmax='sdpa' if its mask is not trained and is all that is added"
"""What helps where rows may keep no key."""

FAINT = -4096.0
"""Where every key of a row has no more added, torch's fused attention for processors has other
gradients: it makes weights again from the logarithm of a sum, of which that leaves three digits
behind the point, and none from 1e8 on. Chosen; our own kernels sum again beyond it."""

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
0.90 to 1.09 of the time, as memory happened to lie. Same source."""


LEAST_CUT_ROWS, MOST_CUT_ROWS = 256, 1024
"""Of a causal attention on processors, between which torch's is called for some rows at a time: it
skips keys by 512, and what it computes above the diagonal then is more than several calls cost. By
the CPU time of one thread of a shared machine: of 256 rows 1.2 times as fast, of 512 1.3 times, of
1024 1.15 times, of 1536 1.05 times, of 2048 as fast, of 4096 0.87 times."""

LEAST_CACHE_BYTES = 16 << 20
"""Of keys and values, from which a cache is read up to its length on processors. A fourth of them
took 0.5 ms ("sdpa llama decode 2048" in benchmarks/results/attention.md), so that the call of an op
is little beside them even where the cache is full; chosen, not measured."""

MOST_MASK_ROWS = 8
"""Of queries, up to which a mask that is given is looked through for the last key it keeps: one
boolean for each row and key, beside all columns of a key and a value; chosen, not measured."""

OWN = ("unified", ONLINE, RUNNING)
"""Choices of a kernel of our own."""
OWN_DIMS = {"float32": 128, "float16": 256, "bfloat16": 256}
"""The most columns of a head that stay in registers, by dtype; from the budgets of the tests."""
MOST_DIM = 576
"""Of heads that a call of our op may have, whoever computes it."""


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
    undoes_repeats: bool = False
    """It does so on repeated heads, which torch's kernel would take once."""
    why_only_torch: str = ""
    """Why no other attention can take the place of torch's, as a sentence; empty if one can."""
    prefix: bool = False
    """Its mask says which keys of a cache are valid: a number on the device."""
    is_kept_by_mask: bool = False
    """Its mask is a tensor that is not known while compiling, of booleans that leave keys out or of
    numbers that are added, and nothing else is done to its scores."""
    why_whole: str = ""
    """Why it does not, where it looks like it."""
    dead: str = ""
    """What eager gives a row that keeps no key, as ``masks.Mask`` says it; empty: there is none."""
    is_trained: bool = False
    """A gradient is wanted of queries, keys or values."""
    is_plain: bool = False
    """Nothing but a scale and a mask is between its products."""
    untold: tuple[str, str] | None = None
    """Code and reason where torch's attention cannot be told the same."""
    why_no_gradient: str = ""
    """Why kernels of our own cannot give the gradients that are wanted; empty: they can."""
    runs_kernels: bool = False
    """Generated kernels run on devices of its type."""
    architecture: str = ""
    """Of the device, as targets name it; empty of processors."""
    scores: KnownScores = UNKNOWN
    """What is known of them."""
    varying: tuple[str, ...] = ()
    """Names of the sizes that vary: "rows", "keys"."""
    multiprocessors: int = 1
    """Of the device."""
    prompts: SiteScores | None = None
    """What a user's prompts said of its scores, where that is known."""
    narrow: str = ""
    """The dtype of a cache of keys and values that the graph widens; empty: it widens none."""
    is_latent: bool = False
    """Its keys begin with their values, and each is read once; ``head_dim`` is of whole keys."""
    latent: AttentionProblem | None = None
    """The same as such a one, whether the graph has keys whole or as two products that are added;
    None where a kernel of our own would not read it so."""
    is_broadcast: bool = False
    """Queries that share a head of keys do by broadcasting it: eager copies none."""
    splits: int = 0
    """CTAs among which a kernel of our own shares the keys; 0: rows are too many for it to."""
    reads: int = 1
    """How often such a kernel reads each key: for each block of the rows that share it."""

    @property
    def own(self) -> AttentionProblem:
        """What a kernel of our own is given: with gradients no latent cache is read as one."""
        latent = self.latent
        if latent is None or self.is_trained or latent.is_trained or latent.is_mask_trained:
            return self
        return replace(latent, prompts=self.prompts)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, each head once."""
        elements = self.batch * self.heads // self.groups * self.keys
        columns = self.head_dim if self.is_latent else self.head_dim + self.value_dim
        return elements * columns * ITEM_BYTES.get(self.dtype, 4)

    @property
    def score_bytes(self) -> int:
        """Bytes of the scores, which a fused kernel does not store."""
        return self.batch * self.heads * self.rows * self.keys * ITEM_BYTES.get(self.dtype, 4)

    @property
    def is_static(self) -> bool:
        """No size varies."""
        return not self.varying

    def text(self) -> str:
        """Return the sizes as a person reads them, those that vary marked."""
        heads = f"{self.heads}/{self.heads // self.groups}" if self.groups > 1 else str(self.heads)
        dims = "" if self.value_dim == self.head_dim else f"/{self.value_dim}"
        sizes = {
            "batch": self.batch,
            "heads": heads,
            "rows": self.rows,
            "keys": self.keys,
            "head_dim": f"{self.head_dim}{dims}",
        }
        texts = (f"{'~' if name in self.varying else ''}{size}" for name, size in sizes.items())
        return f"{'x'.join(texts)} {self.dtype}"


@dataclass(frozen=True)
class Verdict:
    """What is to become of one attention, and why."""

    decision: str
    """"rewritten", "kept" or "refused"."""
    code: str
    reason: str
    policy: str = ""
    """Where φ comes from in a kernel of our own, as `codegen.attention.policies` names it, wherever
    our op finds that one runs; empty: torch's attention is put in."""
    phi: float = 0.0
    """φ, where the policy takes a number of the spec."""
    of_heads: tuple[float, ...] = ()
    """φ of each head, where it takes those."""
    reads_narrow: bool = False
    """A kernel of our own reads keys and values as they were before the graph widened them."""
    reads_latent: bool = False
    """It reads values as the beginnings of keys."""


def decide(problem: AttentionProblem, choice: str) -> Verdict:
    """Choose between an attention as it is spelled, torch's fused one, and a kernel of our own.

    ``choice`` is option ``softmax``: "auto", "sdpa" to take the fused one wherever it may be, or
    one of ``OWN`` to take a kernel of our own.
    """
    given = problem
    if choice in OWN:
        problem = problem.own
    verdict = _own(problem, choice) if choice in OWN else _by_torch(problem, choice)
    if problem.dead and problem.is_trained and verdict.code == "fused":
        reason = f"{verdict.reason[:-1]}, but where a call leaves a row no key."
        policy = policy_of("unified", problem.dtype)
        verdict = replace(verdict, code="fused_if_kept", reason=reason, policy=policy)
    if choice not in OWN and _reads_prefix(problem, choice, verdict):
        verdict = _of_prefix(problem)
    if choice not in OWN and _is_cut_by_rows(problem, verdict):
        reason = f"{verdict.reason[:-1]}, for some rows at a time."
        policy = policy_of("unified", problem.dtype)
        verdict = replace(verdict, code="fused_rows", reason=reason, policy=policy)
    if verdict.code == "no_own_kernel" and given.device == "cpu":
        verdict = replace(verdict, reason=f"{verdict.reason}{_what_auto_would(given)}")
    why = problem.why_whole or _why_mask_is_whole(problem, verdict)
    if not why or verdict.decision == "refused" or verdict.code == "valid_keys":
        return verdict
    if choice in OWN and verdict.policy and problem.mask == "given":
        how = f"Its mask tells which keys are left out, and not a length: {why}."
    else:
        how = f"All keys are read, however many a cache holds: {why}."
    return replace(verdict, reason=f"{verdict.reason} {how}")


def _tells_dead_rows(problem: AttentionProblem, choice: str) -> bool:
    """Whether our op calls torch's attention where each row keeps a key, and else computes what is
    spelled: that tells gradients of rows that keep none. Nothing was measured, so if told to."""
    is_own = problem.device == "cpu" and problem.is_plain
    is_seen = problem.dead in ("nan", "mean") and not problem.prefix
    is_narrow = problem.head_dim == problem.value_dim <= OWN_DIMS.get(problem.dtype, 0)
    is_told = not problem.is_mask_trained and not problem.why_no_gradient
    return choice != "auto" and is_own and is_seen and is_narrow and is_told


def _what_auto_would(problem: AttentionProblem) -> str:
    """What is lost where a kernel of our own is asked for and there is none, as a sentence."""
    if decide(problem, "auto").decision != "rewritten":
        return ""
    return " Torch's attention is not put in where ours is asked for: softmax='auto' would take it."


def _by_torch(problem: AttentionProblem, choice: str) -> Verdict:
    if problem.dead and problem.is_trained and not _tells_dead_rows(problem, choice):
        # The backward of torch's kernel takes the weights of such a row for other ones.
        reason = "A row may keep no key, and torch's fused attention has another gradient there"
        return Verdict(
            "refused", "dead_rows", f"{reason}: {KEEPS_ONE}, {TOLD}, or on a GPU under {OURS}."
        )
    if problem.untold is not None:
        return Verdict("refused", *problem.untold)
    if problem.dead and problem.device != "cpu":
        reason = "A row may keep no key, and what torch's kernels give it is known on processors"
        return Verdict("refused", "dead_rows", f"{reason}: {KEEPS_ONE}, or under {OURS}.")
    if problem.is_fused and not problem.undoes_repeats:
        return Verdict("kept", "fused_already", "It calls torch's fused attention as it stands.")
    if _loses_nan(problem):
        reason = (
            f"Torch's attention over fewer than {LEAST_KEYS} keys may lose a NaN of its queries."
        )
        return Verdict("refused", "few_keys", reason)
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
    if not problem.is_fused and problem.mask == "given" and not _gains_masked(problem):
        mib = problem.score_bytes / (1 << 20)
        reason = f"With a mask that is given, {mib:.3g} MiB of scores cost no more than fused."
        return Verdict("kept", "too_small", reason)
    return _rewritten(problem)


def _reads_prefix(problem: AttentionProblem, choice: str, verdict: Verdict) -> bool:
    """Whether torch's attention is to be told how many keys are valid: on processors, where that
    number is at hand, and where the fused one is called anyway."""
    if problem.device != "cpu" or problem.is_trained:
        return False
    if not problem.prefix and not _has_small_mask(problem):
        return False
    if problem.dtype not in OWN_DIMS or max(problem.head_dim, problem.value_dim) > MOST_DIM:
        return False
    is_called = verdict.decision == "rewritten" or verdict.code == "fused_already"
    is_large = problem.cache_bytes >= LEAST_CACHE_BYTES
    is_worth = (problem.device, problem.dtype) in MEASURED and is_large
    return is_called and problem.head_dim == problem.value_dim and (choice != "auto" or is_worth)


def _is_cut_by_rows(problem: AttentionProblem, verdict: Verdict) -> bool:
    """Whether torch's causal attention is called for some rows at a time, by our op."""
    if verdict.code != "fused" or (problem.device, problem.dtype) not in MEASURED:
        return False
    is_own = problem.is_plain and problem.head_dim == problem.value_dim <= MOST_DIM
    is_causal = problem.mask == "causal" and not problem.prefix
    is_gaining = LEAST_CUT_ROWS <= problem.rows <= MOST_CUT_ROWS and not problem.is_trained
    return is_own and is_causal and is_gaining


def _has_small_mask(problem: AttentionProblem) -> bool:
    """Whether to look for the last key that a mask keeps costs little beside reading all keys."""
    is_few = problem.is_kept_by_mask and problem.rows <= MOST_MASK_ROWS
    return is_few and not problem.is_mask_trained and problem.cache_bytes >= LEAST_CACHE_BYTES


def _why_mask_is_whole(problem: AttentionProblem, verdict: Verdict) -> str:
    """Why a mask that is given is not looked through for the last key it keeps, as a clause."""
    if problem.device != "cpu" or not problem.is_kept_by_mask or problem.prefix:
        return ""
    if problem.cache_bytes < LEAST_CACHE_BYTES:
        return ""  # all of them cost little
    if problem.is_trained or problem.is_mask_trained:
        return "gradients are wanted of what is read"
    if problem.rows > MOST_MASK_ROWS:
        return f"its mask is looked through for no more than {MOST_MASK_ROWS} rows"
    if not problem.is_fused and verdict.decision == "kept":
        return "its mask is looked through where torch's attention is called, and it is spelled out"
    return "torch's attention was not measured to gain by fewer of them here"


def _of_prefix(problem: AttentionProblem) -> Verdict:
    copies = f", and each head of them once, not {problem.groups} copies" * (problem.groups > 1)
    some = f"as many of {problem.keys} keys as the mask says are valid"
    if not problem.prefix:
        some = f"of {problem.keys} keys those up to the last that the mask keeps for any row"
    reason = f"Torch's fused attention reads {some}{copies}."
    return Verdict("rewritten", "valid_keys", reason, policy_of("unified", problem.dtype))


def _loses_nan(problem: AttentionProblem) -> bool:
    is_alone = problem.device == "cpu" and not problem.is_fused and problem.mask != "given"
    return is_alone and problem.keys < LEAST_KEYS


def _is_small(problem: AttentionProblem) -> bool:
    return problem.rows < LEAST_ROWS or problem.rows * problem.keys < LEAST_SCORES


def _gains_masked(problem: AttentionProblem) -> bool:
    copies = problem.groups > 1 and not problem.is_broadcast
    shares = copies and problem.rows <= MOST_SHARED_ROWS
    return shares or problem.score_bytes >= LEAST_MASKED_BYTES


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
    """Return where φ comes from where nothing is known of the scores."""
    return choose_source(UNKNOWN, dtype, choice).policy


def _own(problem: AttentionProblem, choice: str) -> Verdict:
    why = why_not_own(problem)
    if why:
        return Verdict("kept", "no_own_kernel", why)
    source = choose_source(problem.scores, problem.dtype, choice)
    rest = _decode(problem)
    is_trained = problem.is_trained or problem.is_mask_trained
    reads_narrow = bool(problem.narrow and problem.splits) and not is_trained
    if reads_narrow:
        rest += f", of keys and values in {problem.narrow} as a cache holds them"
    if problem.is_latent:
        rest += ", of keys that begin with their values, each read once"
    if is_trained:
        rest += "; its gradients are made by kernels of our own"
    prompts = problem.prompts
    # What a graph proves is better than what prompts showed.
    may_be_told = choice != ONLINE and source.policy != BOUND
    if prompts is not None and prompts.policy and may_be_told:
        reason = f"A kernel of our own makes its softmax {prompts.text()}{rest}."
        own = Verdict("rewritten", "calibrated", reason, prompts.policy, of_heads=prompts.phi)
    else:
        reason = f"A kernel of our own makes its softmax {source.how}{rest}."
        own = Verdict("rewritten", choice, reason, source.policy, source.phi)
    return replace(own, reads_narrow=reads_narrow, reads_latent=problem.is_latent)


def _decode(problem: AttentionProblem) -> str:
    """What a reason says of few rows, and of a length."""
    parts = [f"; {decode_in(problem.splits)}"] if problem.splits else []
    if problem.splits and problem.reads > 1:
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
    if max(problem.head_dim, problem.value_dim) > most:
        return f"heads of {problem.dtype} have more than {most} columns"
    if problem.why_no_gradient:
        return problem.why_no_gradient
    return "" if problem.runs_kernels else f"generated kernels do not run on {problem.device}"
