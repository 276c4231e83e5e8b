"""A walk over whole tiles of keys that multiplies values a tile behind keys.

Nothing is rescaled between two tiles relative to a peak that stays. So matrix units have work while
weights are made: nothing else of a warp waits for its exponentials.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.head_tiles import load_keys
from overlapc.codegen.templates.softmax import fixed_weights, score_tile
from overlapc.codegen.templates.tile_products import product_of, take_values


@triton.jit
def visit_ahead(
    peak: tl.tensor, sums: tl.tensor, total: tl.tensor, begin: tl.tensor, stop: tl.tensor,
    queries: tl.tensor, k: tl.tuple, v: tl.tuple,
    STAGES: tl.constexpr, SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Take whole tiles of keys, whose scores are the scaled product, into (sums, total) of a peak
    that stays: of each tile the product with values is made after that of the next keys.

    Two at a time: else weights would be written where the product of the last ones still reads.
    """
    if begin < stop:
        TYPE: tl.constexpr = v[0].dtype.element_ty
        product = product_of(
            begin, None, queries, k, False, HEAD_DIM, PRECISION, BLOCK_N, BLOCK_D
        )  # fmt: skip
        bits = weight_bits(product, peak, SCALE, TYPE)
        for start in tl.range(
            begin + BLOCK_N, stop, BLOCK_N, num_stages=STAGES, loop_unroll_factor=2
        ):  # fmt: skip
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
    puts into shared memory for it."""
    score = score_tile(product, None, None, None, None, None, SCALE, None, None, False)
    return fixed_weights(score, peak, TYPE).to(tl.int16, bitcast=True)
