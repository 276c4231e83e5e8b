"""A φ of each head of queries that one launch leaves to the next: the mean logarithm of its sums.

The loop over keys knows no maximum, but after it each row's logarithm of sums costs nothing, and it
is what φ should have been. CTAs add up, in int64[2, heads] that is zero before a launch and after
it, by how many whole nats rows would move φ, and in one number how many CTAs are done and, from bit
32 on, how many rows with a sum they had. Rows of a CTA that had none to compute again would move
nothing: φ stays as long as it serves.

All of a launch read the same φ: it is moved by the CTA that arrives last, when nobody will read it
any more. Whole numbers add up to the same in any order, so that equal histories give equal bits.
Where two streams run one site at once φ may change below a launch: each CTA keeps to what it has
read, and its check of each row stands.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl

from overlapc.codegen.templates.softmax import logarithm_of

FURTHEST = tl.constexpr(2.0**20)
"""A row moves φ by no more nats: sums of them stay within int64, and φ a whole number."""
ONE_ROW = tl.constexpr(1 << 32)


@triton.jit
def moves_of(
    peak: tl.tensor, sums: tl.tensor, base: tl.tensor, inside: tl.tensor, UNIT: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """How many whole nats above φ the logarithm of each row's sum lies, and which rows have one.

    ``sums`` are relative to ``peak``; ``base`` is φ, in nats. Rows of no weight, and of a sum that
    is infinite or NaN, say nothing.
    """
    apart = logarithm_of(peak, sums, UNIT) - base
    has_sum = inside & (apart * 0.0 == 0.0)
    apart = tl.where(has_sum, apart, 0.0)
    apart = tl.minimum(tl.maximum(apart, -FURTHEST), FURTHEST)
    return tl.floor(apart + 0.5).to(tl.int64), has_sum


@triton.jit
def settle(
    phi: tl.tensor, moves: tl.tensor, every: tl.tensor, first: tl.tensor, alive: tl.tensor,
    ctas: tl.tensor, HEADS: tl.constexpr,
) -> None:  # fmt: skip
    """Count this CTA, of ``alive`` rows with a sum; the last of ``ctas`` moves φ of HEADS heads.

    They are those from ``first`` on, of ``every``. The CTA's moves are added before, and its
    threads have met since: the release orders what happened before it.
    """
    own = alive.to(tl.int64) * ONE_ROW + 1
    done = moves + every + first
    before = tl.atomic_add(done, own, sem="acq_rel", scope="gpu")
    if before % ONE_ROW == ctas - 1:
        tl.debug_barrier()
        rows = ((before + own) // ONE_ROW).to(tl.float32) / HEADS
        head = first + tl.arange(0, triton.next_power_of_2(HEADS))
        inside = head < first + HEADS
        # Past the L1 cache, which knows nothing of other multiprocessors.
        moved = tl.load(moves + head, mask=inside, other=0, cache_modifier=".cg").to(tl.float32)
        old = tl.load(phi + head, mask=inside, other=0.0, cache_modifier=".cg")
        new = old + tl.floor(moved / tl.maximum(rows, 1.0) + 0.5)
        tl.store(phi + head, new, mask=inside)
        tl.store(moves + head, tl.zeros_like(head).to(tl.int64), mask=inside)
        tl.store(done, tl.zeros_like(before))
