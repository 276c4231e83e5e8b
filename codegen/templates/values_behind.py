"""A walk over whole tiles of keys that multiplies values a tile behind keys.

Nothing is rescaled between two tiles relative to a peak that stays. So matrix units have work while
weights are made: nothing else of a warp waits for its exponentials. For sm_90, and for Triton's
interpreter.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportReturnType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl
from triton import knobs
from triton.language.extra.cuda import num_threads

from overlapc.codegen.templates.head_tiles import load_keys
from overlapc.codegen.templates.softmax import LOG2E, score_tile, unit_of
from overlapc.codegen.templates.tile_products import product_of, take_values

INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def visit_ahead(
    peak: tl.tensor, sums: tl.tensor, total: tl.tensor, begin: tl.tensor, stop: tl.tensor,
    queries: tl.tensor, k: tl.tuple, v: tl.tuple,
    STAGES: tl.constexpr, SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Take whole tiles of keys, whose scores are the scaled product, into (sums, total) of a peak
    that stays: of each tile the product with values is made after that of the next keys.
    """
    if begin < stop:
        TYPE: tl.constexpr = v[0].dtype.element_ty
        # As of near_relative_to; multiplied in the loop, it would be so at every turn.
        peak *= unit_of(None, SCALE) * LOG2E
        product = product_of(
            begin, None, queries, k, False, HEAD_DIM, PRECISION, BLOCK_N, BLOCK_D
        )  # fmt: skip
        bits = weight_bits(product, peak, SCALE, TYPE)
        for start in tl.range(begin + BLOCK_N, stop, BLOCK_N, num_stages=STAGES):
            product = product_of(
                start, None, queries, k, False, HEAD_DIM, PRECISION, BLOCK_N, BLOCK_D
            )  # fmt: skip
            values = load_keys(v, start - BLOCK_N, None, BLOCK_N, VALUE_DIM, BLOCK_V, False)
            weights = bits.to(TYPE, bitcast=True)
            sums, total = take_values(weights, values, sums, total, PRECISION)
            bits = weight_bits(product, peak, SCALE, TYPE)
        values = load_keys(v, stop - BLOCK_N, None, BLOCK_N, VALUE_DIM, BLOCK_V, False)
        sums, total = take_values(bits.to(TYPE, bitcast=True), values, sums, total, PRECISION)
    return sums, total


@triton.jit
def weight_bits(
    product: tl.tensor, peak: tl.tensor, SCALE: tl.constexpr, TYPE: tl.constexpr
) -> tl.tensor:  # fmt: skip
    """Weights of 16 bits as whole numbers: what a loop carries in the dtype of a product, Triton
    puts into shared memory for it. ``peak`` is in units of log 2."""
    score = score_tile(product, None, None, None, None, None, SCALE, None, None, False)
    weights = tl.exp2(score * (unit_of(None, SCALE) * LOG2E) - peak[:, None])
    return after_products(weights).to(TYPE).to(tl.int16, bitcast=True)


@triton.jit
def after_products(weights: tl.tensor) -> tl.tensor:
    """The same weights, float32, when the products under way are made: one of them reads the
    registers of the last ones, and PTX lets nobody write there before."""
    result = weights
    if not INTERPRETED:
        EACH: tl.constexpr = weights.numel // num_threads()
        result = tl.inline_asm_elementwise(
            "wgmma.wait_group.sync.aligned 0;", _unchanged(EACH), [weights], dtype=tl.float32,
            is_pure=False, pack=EACH,
        )  # fmt: skip
    return result


@triton.constexpr_function
def _unchanged(count: int) -> str:
    """What inline assembly is told of so many numbers that stay in their registers."""
    return ",".join(["=f"] * count + [str(number) for number in range(count)])
