"""The spec of a linear layer's kernel that fits given operands and a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from overlapc.codegen.kernel import name_of
from overlapc.codegen.linear.spec import MOST_RESULTS, LinearSpec
from overlapc.codegen.tiles import layout
from overlapc.errors import KernelError
from overlapc.planning.linear.tiles import rows_of_tile, splits_for, tile_for

if TYPE_CHECKING:
    from torch import Tensor

    from overlapc.codegen.lowering import Lowered


def linear_spec_for(
    way: str, m: int, x: Tensor, weights: Sequence[Tensor], lowered: Lowered, *,
    architecture: str, sms: int, scales: Sequence[Tensor] = (), group: int = 0,
    zeros: Sequence[Tensor] = (), eps: float | None = None, gain: Tensor | None = None,
    shift: float = 0.0,
) -> LinearSpec:  # fmt: skip
    """The kernel that computes a lowered chain of x[m, k] and each weight[k, n] in this way.

    With ``eps`` rows are normed. More weights than the chain has are those of further results.
    Tensors without content do.
    KernelError where none is generated for such operands.
    """
    dtype, held, laid = name_of(x), name_of(weights[0]), layout(weights[0])
    rows = rows_of_tile(way, m)
    of_one = 1 + len(lowered.others)
    results = len(weights) // of_one
    pair = of_one > 1
    tile = tile_for(way, architecture, dtype, laid, rows=rows or 0, pair=pair, held=held)
    alike = all(layout(w) == laid and name_of(w) == held for w in weights)
    alike = alike and all(len({name_of(one) for one in its}) < 2 for its in (scales, zeros))
    if tile is None or rows is None or not alike or results > MOST_RESULTS:
        by = f"{len(weights)} {laid} weights" if len(weights) > 1 else f"a {laid} weight"
        raise KernelError(
            f"No {way} of {m} rows is generated for {dtype} by {by} of {held} on "
            f"{architecture or 'this device'}.",
            where="the choice of a kernel for a linear layer",
            remedy="none is needed: the library computes it",
        )
    k = len(weights[0])
    n = sum(weight.shape[1] for weight in weights[::of_one])
    return LinearSpec(
        way, dtype, lowered.dtype, rows, tile.block_n, tile.block_k, tile.warps, tile.stages,
        splits_for(tile, n, k, sms),
        held="" if held == dtype else held,
        weight=laid,
        even_k=k % tile.block_k == 0,
        epilogue=str(lowered.epilogue),
        results=results,
        scales=name_of(scales[0]) if scales else "",
        group=group,
        zeros=name_of(zeros[0]) if zeros else "",
        norm=eps is not None,
        eps=eps or 0.0,
        gain="" if gain is None else name_of(gain),
        shift=shift,
    )  # fmt: skip
