"""Which block of which head a CTA is of: the longest blocks of a few heads, then their next ones.

So no long one begins last, and few heads are read at a time: see ``planning.launch_order``.
"""

# pyright: reportGeneralTypeIssues=false, reportArgumentType=false
# (Triton's builtins raise when Python calls them; pyright concludes that they never return.)
import triton
import triton.language as tl


@triton.jit
def dealt(
    program: tl.tensor, blocks: tl.tensor, units: tl.tensor, together: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """(turn, unit) of a CTA: of each ``together`` of the units, the last ones perhaps fewer, all
    have their turn 0 first; there are ``blocks`` turns of each."""
    first = program // (blocks * together) * together
    place = program - first * blocks
    own = tl.minimum(units - first, together)
    return place // own, first + place % own
