"""What a consumer's program is given: a rank's own part of what comes, and how that is laid out."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.chains.bands import Band, Builder, Permutation
from overlapc.graphs.chains.chain import Padding, Result
from overlapc.graphs.chains.gemms import is_batched, left_of, rows_of
from overlapc.graphs.chains.packing import Split
from overlapc.graphs.chains.walking import dims_or_refuse
from overlapc.graphs.collectives import Collective
from overlapc.graphs.refusals import refuse
from overlapc.graphs.sizes import FEWER, Dim, Size, lead_of, same, shape_of, size_of
from overlapc.runtime.programs.program import OFFSETS, ROWS

aten = torch.ops.aten


def consumer_builder(
    collective: Collective, split: Split, base: fx.Node, ranks: int, gemms: Sequence[fx.Node]
) -> Builder:
    """A builder that knows the moved tensor: operand 0, of which this rank has a part."""
    are_batched, shape = is_batched(gemms[0]), shape_of(base)
    lead = 1 if are_batched else _lead(shape, gemms)
    if split.dim >= lead and not are_batched:
        refuse(
            base,
            "contraction",
            "It is gathered along the columns, which the GEMM contracts: every element of the "
            "result needs all of them.",
        )
    rows = 1
    for size in shape[:lead]:
        rows = rows * size
    builder = Builder(rows)
    axis = 1 if split.dim == lead else 0
    rest = shape[lead:]
    if axis == 1:
        part = shape_of(split.whole)[split.dim]
        if (
            statically_known_true(shape[lead] == ranks)
            and split.whole.target is not aten.cat.default
        ):
            rest = (ranks * shape[lead + 1], *shape[lead + 2 :])
            part = rest[0]
        operand = (part // ranks, *rest[1:])
    else:
        operand = rest
    units = rows * (ranks if collective.name == "all_to_all" else 1) if axis == 1 else -1
    said = _said_by(collective.source, operand, units)
    ref = builder.operand(
        collective.source, ROWS, said, permuted=_permutation_of_sent(collective, split, ranks)
    )
    if axis == 1 and not same(rest, shape[lead:]):
        ref = builder.regroup(base, ref, rest, shape[lead:])
    dims = _gathered_dims(collective, split, base, ranks)
    builder.bands[base] = Band(ref, lead, shape, dims)
    return builder


def _lead(shape: Sequence[Any], gemms: Sequence[fx.Node]) -> int:
    """How many dimensions of a moved tensor are rows: all but the last, or as many as GEMMs say.

    Where heads are joined before a GEMM, several are columns.
    """
    most = len(shape) - 1
    rows = [rows_of(gemm) for gemm in gemms]
    if any(statically_known_true(prod(shape[:most]) == one) for one in rows):
        return most
    for gemm, one in zip(gemms, rows, strict=True):
        lead, columns = lead_of(shape, one), shape_of(left_of(gemm))[-1]
        if lead and statically_known_true(prod(shape[lead:]) == columns):
            return lead
    return most


def _permutation_of_sent(collective: Collective, split: Split, ranks: int) -> Permutation | None:
    """How what is sent comes to lie as the parts of what is gathered do."""
    if not split.order:
        return None
    whole, source = shape_of(split.whole), collective.source
    part = [size // ranks if dim == split.dim else size for dim, size in enumerate(whole)]
    shape = [size for _, size in sorted(zip(split.order, part, strict=True), key=lambda x: x[0])]
    order = split.order
    if collective.name == "all_to_all":  # one part for each rank
        shape, order = [ranks, *shape], (0, *(index + 1 for index in order))
    if same(shape, shape_of(source)):
        return Permutation(None, order)
    dims = tuple(size if isinstance(size, int) else -1 for size in shape)
    if dims.count(-1) > 1:
        refuse(source, "dynamic_shape", f"Nothing says the sizes of what is sent. {FEWER}")
    return Permutation(dims, order)


def _said_by(node: fx.Node, sizes: Sequence[Any], units: int | torch.SymInt) -> tuple[Dim, ...]:
    """``units`` and their sizes as arguments. Each that varies is one of ``node``'s, but for one.

    That is whatever is left: the units, or another one where their number is known.
    """
    known = [(Size(node, index), size) for index, size in enumerate(shape_of(node))]
    said = [
        next((dim for dim, own in reversed(known) if statically_known_true(own == size)), -1)
        if not isinstance(size, int)
        else size
        for size in sizes
    ]
    if said.count(-1) == 1 and isinstance(units, int) and units != -1:
        return (units, *said)
    if -1 in said:
        reason = f"The number of columns varies, and what is sent does not give it. {FEWER}"
        refuse(node, "dynamic_columns", reason)
    return (-1, *said)


def _gathered_dims(
    collective: Collective, split: Split, base: fx.Node, ranks: int
) -> tuple[Dim, ...] | None:
    """Sizes of the moved tensor, from the sizes of what this rank sends."""
    shape, source = shape_of(base), shape_of(collective.source)
    dims: list[Dim] = []
    for index, size in enumerate(shape):
        is_moved = index == split.dim and collective.name == "all_gather"
        place = split.order[index] if split.order else index
        if isinstance(size, int):
            dims.append(size)
        elif index == split.dim and split.trim is not None and (end := _end(split)) is not None:
            dims.append(end)
        elif len(source) == len(shape):
            dims.append(Size(collective.source, place, ranks if is_moved else 1))
    is_known = same([size_of(dim) for dim in dims], shape)
    return tuple(dims) if is_known else None


def _end(split: Split) -> int | fx.Node | None:
    """Where what is gathered is cut off, as an argument."""
    assert split.trim is not None
    end = shape_of(split.trim)[split.dim]
    if not isinstance(end, int) and split.trim.target is aten.slice.Tensor:
        end = split.trim.args[3] if len(split.trim.args) > 3 else None
    return end if isinstance(end, int | fx.Node) else None


def consumer_axis(split: Split, band: Band, collective: Collective) -> int:
    if split.dim > band.lead:
        refuse(split.whole, "inner_dimension", "It is gathered along an inner dimension.")
    if 0 < split.dim < band.lead and band.dims is None:
        refuse(split.whole, "dynamic_shape", f"Nothing says the sizes of what arrives. {FEWER}")
    return 1 if split.dim == band.lead else 0


def trimmed_padding(split: Split, axis: int, builder: Builder) -> Padding | None:
    """What is trimmed of each block of what is gathered, and so of the results."""
    trim = split.trim
    if trim is None:
        return None
    if axis == 1:
        refuse(trim, "trimmed", "Rows are trimmed inside the batches of a batched GEMM.")
    end = _end(split)
    if end is None:
        refuse(trim, "trimmed", f"Nothing says how much is trimmed. {FEWER}")
    whole, band = shape_of(split.whole)[split.dim], builder.bands[trim]
    added = whole - end if isinstance(whole, int) and isinstance(end, int) else 0
    modes = {operand.mode for operand in builder.operands[1:]}
    if OFFSETS in modes:
        refuse(trim, "trimmed", "A grouped GEMM counts the rows that are trimmed.")
    if ROWS in modes and not added:
        reason = f"Another operand lacks the rows that are trimmed, whose number varies. {FEWER}"
        refuse(trim, "trimmed", reason)
    if split.dim + 1 < band.lead and band.dims is None:
        refuse(trim, "dynamic_shape", f"Nothing says the sizes of what is trimmed. {FEWER}")
    inner = (band.dims or ())[split.dim + 1 : band.lead]
    return Padding(end, added, inner)


def permuted_back(split: Split, band: Band) -> Result:
    """What has come as it came, for who reads it so."""
    assert split.unpermuted is not None
    if split.trim is not None:
        refuse(split.trim, "trimmed", "What is received is read both whole and trimmed.")
    order = split.order
    if not order:
        others = range(1, len(band.shape))
        order = (*others[: split.dim], 0, *others[split.dim :])
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return Result(split.unpermuted, permuted=Permutation(dims_or_refuse(split.whole, band), back))
