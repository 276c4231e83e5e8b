"""Rows of zeros that even out the shards of a scatter: they may as well come before the GEMM.

A tensor whose rows the ranks do not divide is padded at its end, as a whole or its last parts.
The operands are padded instead. What follows from a row of zeros by GEMMs and most pointwise ops is
a row of zeros; where it is not, as where a bias is added, the program ends with a step that puts
zeros there. For who receives such rows may read them: no graph tells what other ranks do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.chains.bands import Band, Builder, Fill
from overlapc.graphs.chains.packing import Split, cat_dim, joined
from overlapc.graphs.edges import through
from overlapc.graphs.elementwise import is_view
from overlapc.graphs.refusals import refuse
from overlapc.graphs.sizes import FEWER, same, shape_of
from overlapc.runtime.programs.program import ROWS, WHOLE, Ref, Step

aten = torch.ops.aten

KEEP_ZEROS = frozenset(
    str(op)
    for op in (
        aten.mm.default,
        aten.reshape.default,
        aten.expand.default,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.div.Scalar,
        aten.neg.default,
        aten.relu.default,
        aten.tanh.default,
        aten.gelu.default,
        aten.sin.default,
        aten.abs.default,
        torch.ops.prims.convert_element_type.default,
    )
)
"""Ops that give zeros where one operand is zero."""

SUMS = frozenset(str(op) for op in (aten.add.Tensor, aten.sub.Tensor))
"""Ops that give zeros where all operands are."""


@dataclass(frozen=True)
class Padded:
    """``whole`` with ``rows`` of zeros at the end of dimension ``split.dim``."""

    split: Split
    rows: int


def without_padding(split: Split) -> Padded:
    """Return the parts of a tensor as those of what was there before it was padded."""
    whole = split.whole
    if found := _read_pad(whole, split.dim):
        return Padded(replace(split, whole=found.source), found.rows)
    if whole.target is aten.cat.default and cat_dim(whole) == split.dim:
        return _last_parts_padded(split) or Padded(split, 0)
    return Padded(split, 0)


def pads_what_varies(node: fx.Node) -> bool:
    """Return whether a node pads by an amount that is no number."""
    return node.target is aten.constant_pad_nd.default and any(
        not isinstance(size, int)
        for size in node.args[1]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
    )


def keeps_zeros(builder: Builder) -> bool:
    """Return whether rows of zeros in every operand by rows give rows of zeros."""
    return all(_keeps_zeros(step, builder) for step in builder.steps)


def with_zeros(builder: Builder, band: Band, node: fx.Node) -> Ref:
    """Add a step that puts zeros in the rows of padding of a node's band."""
    if band.dims is None:
        refuse(node, "dynamic_shape", f"Nothing says the sizes of what is padded. {FEWER}")
    # As any operand by rows it is padded with zeros, which are False.
    rows = Fill(True, band.dims[: band.lead])
    marks = builder.operand(node, ROWS, (-1, *(1 for _ in band.rest)), rows)
    zero = builder.operand(node, WHOLE, (), Fill(0))
    return builder.step(aten.where.self, (marks, band.ref, zero))


def _keeps_zeros(step: Step, builder: Builder) -> bool:
    if step.op in KEEP_ZEROS:
        return any(_is_rows(arg, builder) for arg in step.args)
    return step.op in SUMS and all(_is_rows(arg, builder) for arg in step.args)


def _is_rows(arg: object, builder: Builder) -> bool:
    if not isinstance(arg, Ref):
        return False
    return not arg.is_operand or builder.operands[arg.index].mode == ROWS


@dataclass(frozen=True)
class _Pad:
    source: fx.Node
    rows: int


def _read_pad(node: fx.Node, dim: int) -> _Pad | None:
    """What is padded with zeros at the end of ``dim`` alone, and by how much."""
    if node.target is not aten.constant_pad_nd.default:
        return None
    source, sizes, value = (*node.args, 0)[:3]
    assert isinstance(source, fx.Node)
    assert isinstance(sizes, list | tuple)
    place = 2 * (len(shape_of(node)) - 1 - dim) + 1
    others = [size for index, size in enumerate(sizes) if index != place]
    rows = sizes[place] if place < len(sizes) else 0
    if value != 0 or any(others) or not isinstance(rows, int) or rows < 1:
        return None
    return _Pad(source, rows)


def _last_parts_padded(split: Split) -> Padded | None:
    """``cat([part, .., pad(part), pad(nothing), ..])`` of all parts of one tensor, in order."""
    pieces, dim = split.whole.args[0], split.dim
    assert isinstance(pieces, list | tuple)
    cores = [_copied(piece) for piece in pieces]  # pyright: ignore[reportArgumentType]
    full = list(takewhile(lambda core: _read_pad(core, dim) is None, cores))
    pads = [_read_pad(core, dim) for core in cores[len(full) :]]
    if not pads or None in pads:
        return None
    padded = [pad.source for pad in pads if pad is not None]
    # Only the first of them may have rows of its own: else zeros would stand in between.
    if not all(statically_known_true(shape_of(part)[dim] == 0) for part in padded[1:]):
        return None
    last = [part for part in padded[:1] if not statically_known_true(shape_of(part)[dim] == 0)]
    found = joined([*full, *map(_copied, last)])
    if found is None or found.dim != dim:
        return None
    return Padded(
        replace(split, whole=found.whole), sum(pad.rows for pad in pads if pad is not None)
    )


def _copied(node: fx.Node) -> fx.Node:
    """What a node is a copy of, in the same shape; or the node itself."""
    return through(
        node, lambda n: is_view(n) and same(shape_of(n), shape_of(n.all_input_nodes[0]))
    )[0]
