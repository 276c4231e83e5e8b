"""Scores of a tile, φ of a row, and whether a sum of weights relative to φ can be trusted.

Scores, φ and maxima are in units of ``unit_of`` nats: what is known before they are subtracted from
one another is not multiplied first, for that would be rounded. ``exp2`` is what devices have.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.visible import is_seen

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LEAST = tl.constexpr(-3.4028234663852886e38)
"""Of float32."""


@triton.constexpr_function
def unit_of(scores: object, scale: object) -> float:
    """How many nats scores are in units of, above zero.

    Of the product alone they are products, and the scale comes with that of ``exp2``; one that is
    not above zero, or read on the device, is multiplied into them, in units of log 2.
    """
    if scores is not None:
        return 1.0
    is_known = isinstance(scale, int | float) and scale > 0
    return float(scale) if is_known else LN2.value


@triton.constexpr_function
def beyond_float32(number: float) -> float:
    """What is lost of a number of 53 bits that is rounded to 24: Veltkamp's splitting."""
    large = number * (2.0**29 + 1.0)
    return number - (large - (large - number))


@triton.jit
def score_tile(
    product: tl.tensor, tile: tl.tuple, first: tl.tensor, end: tl.tensor, inputs: tl.tuple,
    SCORES: tl.constexpr, SCALE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    IS_CUT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Scores ``[rows, keys]`` of a product of queries and keys, float32, in units of ``unit_of``.

    With IS_CUT they are minus infinity where ``tile`` (see ``score_inputs``) ends, and where a row
    does not see a key: it sees those from ``first`` to ``end``.
    """
    if SCORES is not None:
        score = SCORES(product * SCALE, tile, inputs)
    elif unit_of(SCORES, SCALE) == LN2:
        score = product * (SCALE * LOG2E)
    else:
        score = product
    if IS_CUT:
        seen = is_seen(tile[4], tile[5], first, end, BEFORE, AFTER)
        score = tl.where(seen, score, float("-inf"))
    return score


@triton.jit
def in_units(sink: tl.tensor, UNIT: tl.constexpr) -> tl.tensor:
    """A sink of nats in units, float32. One as low as a mask is still a number, which rows that see
    no key have: of minus infinity they would have nothing."""
    number = sink.to(tl.float32) * (1.0 / UNIT)
    return tl.where((number == float("-inf")) & (sink > float("-inf")), LEAST, number)


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
    of_keys: tl.tensor, sums: tl.tensor, sink: tl.tensor, LEAST: tl.constexpr, MOST: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """Whether rows whose keys have no weight are exact if they see none: where there is no sink, or
    it has kept its weight."""
    is_kept = (sums >= LEAST) & (sums <= MOST)
    return (of_keys == 0.0) & ((sink == float("-inf")) | is_kept)


@triton.jit
def fixed_weights(
    score: tl.tensor, base: tl.tensor, UNIT: tl.constexpr, IS_NEAR: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``relative_to`` in ``dtype``, ``[rows, keys]``, of a base of each row."""
    return relative_to(score, base[:, None], UNIT, IS_NEAR, dtype).to(dtype)


@triton.jit
def relative_to(
    score: tl.tensor, base: tl.tensor, UNIT: tl.constexpr, IS_NEAR: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Weights of scores relative to a base that is no running maximum, in float32, as exact as
    those in ``dtype`` are.

    IS_NEAR: the base is a φ that is near zero, or the weights will not be taken. Far from the
    scores, the roundings of the difference, and of its product, are the largest errors of float32:
    what they took is given back, as its exponential to first order.
    """
    if dtype != tl.float32:
        weights = near_relative_to(score, base, UNIT) if IS_NEAR else exp_apart(score, base, UNIT)
    else:
        FACTOR: tl.constexpr = UNIT * LOG2E
        apart = score - base
        power = apart * FACTOR
        taken = tl.fma(apart, FACTOR, -power) + apart * beyond_float32(FACTOR)
        taken += (score - (apart + base)) * FACTOR
        weights = tl.exp2(power)
        # Minus infinity took nothing, and is no number less itself.
        weights += tl.where(weights > 0.0, weights * (taken * LN2), 0.0)
    return weights


@triton.jit
def sink_relative_to(
    sink: tl.tensor, base: tl.tensor, UNIT: tl.constexpr, IS_NEAR: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """``relative_to`` of sinks, which no product has rounded: what the difference takes from a sink
    far above the base is given back as well."""
    weights = relative_to(sink, base, UNIT, IS_NEAR, dtype)
    if dtype == tl.float32:
        apart = sink - base
        own = apart - sink
        taken = (sink - (apart - own)) - (base + own)
        given = sink - (apart + base)
        weights += tl.where(weights > 0.0, weights * ((taken - given) * UNIT), 0.0)
    return weights


@triton.jit
def near_relative_to(score: tl.tensor, base: tl.tensor, UNIT: tl.constexpr) -> tl.tensor:
    """``exp_apart`` by one instruction, in which the product of a score is not rounded before that
    of the base, rounded, is taken off: so not where a rounding is many nats, as of masks."""
    return tl.exp2(score * (UNIT * LOG2E) - base * (UNIT * LOG2E))


@triton.jit
def beside_scores(
    score: tl.tensor, base: tl.tensor, UNIT: tl.constexpr, SCORES: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Weights of scores relative to a base that is one of them, or the logarithm of their sum: by
    one instruction where no mask is among them, and ``dtype`` is of 16 bits."""
    if SCORES is None and dtype != tl.float32:
        weights = near_relative_to(score, base, UNIT)
    else:
        weights = exp_apart(score, base, UNIT)
    return weights


@triton.jit
def exp_apart(score: tl.tensor, base: tl.tensor, UNIT: tl.constexpr) -> tl.tensor:
    """The exponential of how far a score, perhaps none, lies above a base."""
    return tl.exp2((score - base) * (UNIT * LOG2E))


@triton.jit
def logarithm_of(peak: tl.tensor, sums: tl.tensor, UNIT: tl.constexpr) -> tl.tensor:
    """The logarithm, in nats, of sums that are relative to a peak, in their dtype."""
    return or_zero(peak).to(sums.dtype) * UNIT + tl.log2(sums) * LN2


@triton.jit
def store_logarithms(
    places: tl.tensor, peak: tl.tensor, sums: tl.tensor, inside: tl.tensor, UNIT: tl.constexpr
) -> None:
    """Store them as what they are stored in is: in float64 no bit of a float32 sum is lost."""
    if places.dtype.element_ty == tl.float64:  # pyright: ignore[reportAttributeAccessIssue]
        sums = sums.to(tl.float64)
    tl.store(places, logarithm_of(peak, sums, UNIT), mask=inside)


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
