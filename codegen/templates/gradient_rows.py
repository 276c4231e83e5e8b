"""What the backward of an attention takes of each row, in the order in which rows lie."""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.head_tiles import load_tile, of_head
from overlapc.codegen.templates.softmax import LOG2E, unit_of


@triton.jit(do_not_specialize=["rows"])
def attention_gradient_rows(
    out: tl.tensor, slopes: tl.tensor, lse: tl.tensor, lse_gradient: tl.tensor, bases: tl.tensor,
    shares: tl.tensor, delta: tl.tensor, poison: tl.tensor, heads: tl.tensor, rows: tl.tensor,
    out_strides: tl.tuple, slopes_strides: tl.tuple, SCORES: tl.constexpr, SCALE: tl.constexpr,
    VALUE_DIM: tl.constexpr, DEAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr,
) -> None:  # fmt: skip
    """``delta``: the sum of ``out`` times its gradient ``slopes``, less the gradient of ``lse``.

    Weights are ``share * exp(score - base)``. ``bases`` are ``lse``, float32 or float64, in units
    of scores and of float32, and ``shares``, or None, what that rounding took: so weights of a row
    add up to one as they do in the forward. Bases of no weight are infinite where DEAD is ``zero``,
    so that they give none.

    One program for each block of rows of each query head of each batch. ``lse``, its gradient (or
    None), ``bases``, ``shares`` and ``delta`` are contiguous [batch, heads, rows].
    ``poison[batch, heads]``, zeroed before, becomes NaN where the weights of a row of the head are
    NaN, hidden ones among them: its logarithm is, or it has no weight and DEAD says that this is
    NaN.
    """
    blocks = tl.cdiv(rows, BLOCK_M)
    program = tl.program_id(0)
    corner = program % blocks * BLOCK_M
    head = program // blocks % heads
    batch = program // blocks // heads
    row = corner + tl.arange(0, BLOCK_M)
    inside = row < rows
    own = load_tile(
        of_head(out, out_strides, batch, head), corner, out_strides, inside, BLOCK_M, VALUE_DIM,
        BLOCK_V, True,
    )  # fmt: skip
    slope = load_tile(
        of_head(slopes, slopes_strides, batch, head), corner, slopes_strides, inside, BLOCK_M,
        VALUE_DIM, BLOCK_V, True,
    )  # fmt: skip
    place = batch.to(tl.int64) * heads + head
    total = tl.sum(own.to(tl.float32) * slope.to(tl.float32), 1)
    if lse_gradient is not None:
        total -= tl.load(lse_gradient + place * rows + row, mask=inside, other=0.0)
    tl.store(delta + place * rows + row, total, mask=inside)
    UNIT: tl.constexpr = unit_of(SCORES, SCALE)
    log = tl.load(lse + place * rows + row, mask=inside, other=0.0)
    base = (log * (1.0 / UNIT)).to(tl.float32)
    if shares is not None:
        taken = base.to(log.dtype) * UNIT - log
        # Infinity is no number less itself.
        taken = tl.where(taken == taken, taken, 0.0).to(tl.float32)
        tl.store(shares + place * rows + row, tl.exp2(taken * LOG2E), mask=inside)
    if DEAD == "zero":
        base = tl.where(base == float("-inf"), float("inf"), base)
    tl.store(bases + place * rows + row, base, mask=inside)
    is_lost = log != log
    if DEAD == "nan":
        is_lost = is_lost | (log == float("-inf"))
    if tl.max(is_lost.to(tl.int32), 0) > 0:
        tl.store(poison + place, float("nan"))  # whoever writes it writes the same
