"""Scores of a tile, φ of a row, and whether a sum of weights relative to φ can be trusted.

Scores, φ and maxima are in units of log 2 here: ``exp2`` is what devices have.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.visible import is_seen

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def score_tile(
    product: tl.tensor, tile: tl.tuple, first: tl.tensor, end: tl.tensor, inputs: tl.tuple,
    SCORES: tl.constexpr, SCALE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    IS_CUT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores ``[rows, keys]`` of a product of queries and keys, float32.

    With IS_CUT they are minus infinity where ``tile`` (see ``score_inputs``) ends, and where a row
    does not see a key: it sees those from ``first`` to ``end``.
    """
    if SCORES is None:
        score = product * (SCALE * LOG2E)
    else:
        score = SCORES(product * SCALE, tile, inputs) * LOG2E
    if IS_CUT:
        seen = is_seen(tile[4], tile[5], first, end, BEFORE, AFTER)
        score = tl.where(seen, score, float("-inf"))
    return score


@triton.jit
def or_zero(peak: tl.tensor) -> tl.tensor:
    """A maximum to subtract: zero where there is no score, for infinity minus itself is NaN."""
    return tl.where(peak == float("-inf"), 0.0, peak)


@triton.jit
def is_exact(
    of_keys: tl.tensor, sums: tl.tensor, sink: tl.tensor, peak: tl.tensor, seen: tl.tensor,
    LEAST: tl.constexpr, LEAST_EACH: tl.constexpr, MOST: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Whether rows are as exact relative to φ, ``peak``, as relative to their maxima;
    ``policies.SafeSums``.

    ``sums`` are those of keys and the ``sink``; ``seen`` is how many keys each row sees. Nothing is
    lost beside a sink that is not below φ but what is lost beside the row's maximum; from one that
    is, the sum of keys alone tells whether they are lost. A sum that is NaN is not exact.
    """
    is_kept = (sink >= peak) | (seen == 0)
    least = LEAST
    if LEAST_EACH > 0:
        counted = tl.where(is_kept, 0, seen)
        least = tl.maximum(counted.to(tl.float32) * LEAST_EACH, LEAST)
    return (tl.where(is_kept, sums, of_keys) >= least) & (sums <= MOST)


@triton.jit
def is_without_keys(
    of_keys: tl.tensor, sums: tl.tensor, sink: tl.tensor, LEAST: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """Whether rows whose keys have no weight are exact if they see none: where there is no sink, or
    it has kept its weight."""
    return (of_keys == 0.0) & ((sink == float("-inf")) | (sums >= LEAST))


@triton.jit
def fixed_weights(score: tl.tensor, base: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """``exp2(score - base)`` in ``dtype``, ``[rows, keys]``, of a base that is no running maximum.

    Far from the scores, the rounding of that difference is the largest error of float32: what it
    took is given back, as ``exp2`` of it to first order.
    """
    return relative_to(score, base[:, None], dtype).to(dtype)


@triton.jit
def relative_to(score: tl.tensor, base: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """``exp2(score - base)`` in float32, as exact as weights in ``dtype`` are."""
    apart = score - base
    weights = tl.exp2(apart)
    if dtype == tl.float32:
        taken = score - (apart + base)
        # Minus infinity took nothing, and is no number less itself.
        weights += tl.where(weights > 0.0, weights * (taken * LN2), 0.0)
    return weights


@triton.jit
def spread_sums(sums: tl.tensor, ONES: tl.constexpr, BLOCK_M: tl.constexpr) -> tl.tensor:
    """Sums of rows as a loop carries them: with ONES, in so many equal columns."""
    if ONES > 0:
        sums = sums[:, None] + tl.zeros((BLOCK_M, ONES), tl.float32)
    return sums


@triton.jit
def gathered_sums(sums: tl.tensor) -> tl.tensor:
    """The sums of ``spread_sums``, ``[rows]``."""
    return tl.max(sums, 1) if len(sums.shape) == 2 else sums


@triton.jit
def all_finite(total: tl.tensor) -> tl.tensor:
    """Whether each row of sums is finite, ``[rows]``."""
    return tl.sum(total * 0.0, 1) == 0.0


@triton.jit
def divided(total: tl.tensor, sums: tl.tensor, DEAD: tl.constexpr) -> tl.tensor:
    """Weighted means of values; a row of no weight gives NaN, or zeros where DEAD is ``zero``."""
    if DEAD == "zero":
        sums = tl.where(sums == 0.0, 1.0, sums)
    return total / sums[:, None]
