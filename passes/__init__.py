"""The passes over Inductor's graphs, in the order in which they run.

Importable only as ``overlapc.passes``: a second copy under a bare name would split its state.
"""

from __future__ import annotations

if __name__ != "overlapc.passes":
    raise ImportError("import overlapc.passes, not passes: the bare name would load a second copy")

from overlapc.errors import OptionError
from overlapc.options import Options
from overlapc.passes.base import Pass
from overlapc.passes.dispatch_linears import DispatchLinears
from overlapc.passes.drop_lone_collectives import DropLoneCollectives
from overlapc.passes.hide_collectives import HideCollectives
from overlapc.passes.leave_unordered import LeaveUnordered
from overlapc.passes.merge_collectives import MergeCollectives
from overlapc.passes.order_collectives import OrderCollectives
from overlapc.passes.overlap_chains import OverlapChains
from overlapc.passes.rewrite_attention import RewriteAttention
from overlapc.passes.split_all_reduces import SplitAllReduces
from overlapc.passes.verify_sizes import VerifySizes

PIPELINE: tuple[Pass, ...] = (
    # Algebra first: what need not be sent need not be overlapped.
    DropLoneCollectives(),
    MergeCollectives(),
    # Order before chains: what independent work hides need not be cut.
    HideCollectives(),
    LeaveUnordered(),
    # Halves are collectives like others: the next pass overlaps them.
    SplitAllReduces(),
    # Before linear layers: one that feeds a collective belongs to its chain.
    OverlapChains(),
    # What no collective has taken.
    DispatchLinears(),
    # After all that decides which collectives stay.
    VerifySizes(),
    # Last: it ties down what the passes before it have put in.
    OrderCollectives(),
)


BEFORE_AUTOGRAD: tuple[Pass, ...] = (
    # Here attention is a few calls, and the gradient comes from what is put in.
    RewriteAttention(),
)
"""Run over what Dynamo gives; ``PIPELINE`` over what autograd and decompositions make of it."""


def check_disabled(options: Options) -> None:
    """Raise ``OptionError`` if the options disable a pass that does not exist."""
    known = ("all", *(one.name for one in (*BEFORE_AUTOGRAD, *PIPELINE)))
    for name in options.disable:
        if name not in known:
            raise OptionError(
                f"There is no pass {name!r} to disable.",
                where="option 'disable' or OVERLAPC_DISABLE",
                remedy=f"name one of {', '.join(known)}",
            )
