"""How a tile says that it is done, and how a stream waits for it: the memory order in one place."""

import triton
import triton.language as tl


@triton.jit
def cta_barrier(FLATTEN: tl.constexpr) -> tl.tensor | tl.tuple | int:
    """Wait for every thread of this CTA; 0, which with FLATTEN nobody knows before.

    No loop is pipelined around a barrier that Triton knows of, so with FLATTEN it is not told; this
    one is right even where its compiler, which does not know either, made two of it for threads
    that have branched.
    """
    if FLATTEN:
        return tl.inline_asm_elementwise(
            "barrier.sync 0;\n\tmov.u32 $0, 0;", "=r,~{memory}", [], tl.int32,
            is_pure=False, pack=1,
        )  # fmt: skip
    else:
        tl.debug_barrier()
        return 0


@triton.jit
def await_stores(IS_AMD: tl.constexpr, FLATTEN: tl.constexpr) -> tl.tensor | tl.tuple | int:
    """Let every store of this CTA happen before what one of its threads adds after this; 0, as of
    ``cta_barrier``.

    Only one thread adds, and its release orders only what happens before it: the barrier makes
    that every store of the CTA. A TMA store would escape both, so the caller must not use one.
    FLATTEN says that it stands in a loop that Triton is to pipeline.
    """
    if IS_AMD:
        # There a barrier orders what waves of one CTA see, and a release waits for the stores of
        # its own wave alone: each has to wait for its own. From gfx940 on each die has an L2 cache
        # of its own, which a release writes back; compilers before LLVM's change 178316 leave out
        # the wait for that where they know of no store under way, so each wave does it here.
        tl.inline_asm_elementwise(
            "s_waitcnt vmcnt(0)\n\t"
            ".if .amdgcn.gfx_generation_number == 9 && .amdgcn.gfx_generation_minor >= 4\n\t"
            "buffer_wbl2 sc1\n\ts_waitcnt vmcnt(0)\n\t.endif\n\tv_mov_b32 $0, 0",
            "=v,~{memory}", [], tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    return cta_barrier(FLATTEN)


@triton.jit
def publish(
    counters: tl.tensor, group: tl.tensor, COUNTER_STRIDE: tl.constexpr, IS_AMD: tl.constexpr,
    FLATTEN: tl.constexpr,
) -> None:  # fmt: skip
    """Add one to the counter of ``group``, after every store of this CTA, at device scope."""
    await_stores(IS_AMD, FLATTEN)
    announce(counters, group, COUNTER_STRIDE)


@triton.jit
def announce(counters: tl.tensor, group: tl.tensor, COUNTER_STRIDE: tl.constexpr) -> None:
    """Add one to the counter of ``group``, after the stores that this CTA has awaited."""
    tl.atomic_add(counters + group * COUNTER_STRIDE, 1, sem="release", scope="gpu")


LATE_STEPS = tl.constexpr(2)
"""Of a product, before the tile stored before it is announced; chosen: on sm_90 the matrix units
work on a step of the widest tile for 1024 cycles."""


@triton.jit
def announce_late(
    counters: tl.tensor, group: tl.tensor, start: tl.tensor, K: tl.tensor,
    BLOCK_K: tl.constexpr, COUNTER_STRIDE: tl.constexpr,
) -> None:  # fmt: skip
    """In one step of the product over K, that which begins at ``start``, announce the tile before.

    A release waits until every store before it has reached the L2 cache, and the CTA's next barrier
    for the thread that waits. Some steps later they have, and that step's product is under way. Of
    no group (below 0) nothing is announced.
    """
    due = tl.minimum(LATE_STEPS, tl.cdiv(K, BLOCK_K) - 1) * BLOCK_K
    if (start == due) & (group >= 0):
        announce(counters, group, COUNTER_STRIDE)


@triton.jit(do_not_specialize=["group", "target", "max_polls"])
def wait_for_group(
    counters: tl.tensor,
    failed: tl.tensor,
    group: tl.tensor,
    target: tl.tensor,
    max_polls: tl.tensor,
    COUNTER_STRIDE: tl.constexpr,
) -> None:
    """Return once the counter of ``group`` has reached ``target``; launched as one program.

    With ``max_polls`` above zero it gives up after that many reads (a read is a round trip to the
    L2 cache, near a microsecond) and stores ``group + 1`` to ``failed``.
    """
    counter = counters + group * COUNTER_STRIDE
    polls = tl.full((), 1, tl.int64)
    seen = tl.load(counter, volatile=True)
    while (seen < target) & (polls != max_polls):
        seen = tl.load(counter, volatile=True)
        polls += 1
    # The reads above are relaxed, so that polling does not disturb the adders; this one acquires.
    seen = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    if seen < target:
        tl.store(failed, group + 1)
