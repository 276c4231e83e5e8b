"""Weights of a tile, made again from the logarithms of sums, and the gradient of its scores."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.softmax import beside_scores, score_tile, unit_of
from overlapc.codegen.templates.visible import is_seen


@triton.jit
def load_rows(
    bases: tl.tensor, delta: tl.tensor, shares: tl.tensor, row: tl.tensor, inside: tl.tensor
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """What the rows of a head are known by: (base, delta, share), float32 each.

    They are those of ``attention_gradient_rows``, but where ``attention_gradient_shares`` wrote
    others. Rows that are not inside have no weight.
    """
    base = tl.load(bases + row, mask=inside, other=float("inf"))
    row_delta = tl.load(delta + row, mask=inside, other=0.0)
    share = row_delta
    if shares is not None:
        share = tl.load(shares + row, mask=inside, other=0.0)
    return base, row_delta, share


@triton.jit
def gradient_tile(
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, slopes: tl.tensor, base: tl.tensor,
    delta: tl.tensor, share: tl.tensor, tile: tl.tuple, first: tl.tensor, end: tl.tensor,
    inputs: tl.tuple, SCORES: tl.constexpr, DERIVATIVE: tl.constexpr, SCALE: tl.constexpr,
    BEFORE: tl.constexpr, AFTER: tl.constexpr, HAS_SHARES: tl.constexpr, IS_CUT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Weights ``[rows, keys]``, and what DERIVATIVE makes of the gradient of scores, float32 both.

    ``slopes`` are the rows of the result's gradient, ``delta`` its product with the result. With
    IS_CUT both are zero outside ``tile`` and where a row does not see a key.
    """
    product = tl.dot(queries, keys.T, input_precision=PRECISION)
    score = score_tile(product, tile, first, end, inputs, SCORES, SCALE, BEFORE, AFTER, IS_CUT)
    UNIT: tl.constexpr = unit_of(SCORES, SCALE)
    weights = beside_scores(score, base[:, None], UNIT, SCORES, slopes.dtype)
    if HAS_SHARES:
        weights = weights * share[:, None]
    gradient = weights * (tl.dot(slopes, values.T, input_precision=PRECISION) - delta[:, None])
    if DERIVATIVE is not None:
        gradient = DERIVATIVE(product * SCALE, gradient, tile, inputs)
    if IS_CUT:
        # What scores outside are made of are zeros, of which functions may be infinite.
        seen = is_seen(tile[4], tile[5], first, end, BEFORE, AFTER) & tile[3][:, None]
        weights = tl.where(seen, weights, 0.0)
        gradient = tl.where(seen, gradient, 0.0)
    return weights, gradient
