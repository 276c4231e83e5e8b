"""Reads consumers: GEMMs that take what a collective gives."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.bands import (
    FEWER,
    Band,
    Builder,
    Dim,
    Refused,
    Size,
    Turn,
    is_static,
    lead_of,
    permutation,
    refuse,
    same,
    shape_of,
    size_of,
)
from overlapc.graphs.chain import Chain, Padding, Result
from overlapc.graphs.collectives import Collective, Refusal, is_ours
from overlapc.graphs.gemms import add_gemm, form_of, is_shared, left_of, read_gemm, rows_of
from overlapc.graphs.nodes import descendants, through, value_of
from overlapc.graphs.packing import SPLITS, Split, cut_piece, unpacked
from overlapc.graphs.walking import (
    Walk,
    between,
    check_groups,
    dead_and_kept,
    dims_or_refuse,
    ordered,
    passes_rows,
    row_splits,
)
from overlapc.runtime.program import OFFSETS, ROWS

aten = torch.ops.aten

KINDS = {"all_gather": "all_gather_gemm", "all_to_all": "all_to_all_gemm"}
"""Kinds of chain by collective."""


def read_consumer(collective: Collective, ranks: int) -> Chain | Refusal:
    """Read the GEMMs that take what the collective gives, or say why there is no chain."""
    try:
        return _consumer(collective, ranks)
    except Refused as ended:
        return ended.refusal


def _consumer(collective: Collective, ranks: int) -> Chain:
    split = unpacked(collective.wait, ranks)
    if split.unturned is not None and _readers(split.unturned).gemms:
        split = Split(collective.wait, 0)
    base = split.trim or split.whole
    readers = _readers(base, split.unturned)
    below, walk, gemms = readers.below, readers.walk, readers.gemms
    if not gemms:
        _refuse_consumer(base, readers.ends)
    is_batched = _is_batched(gemms[0])
    gemms = [node for node in gemms if _is_batched(node) == is_batched]
    builder = _consumer_builder(collective, split, base, ranks, gemms)
    axis = _consumer_axis(split, builder.bands[base], collective)
    gemms = [node for node in gemms if _is_free(node, below, walk)]
    if not gemms:
        refuse(base, "other_users", "Every GEMM needs another one's result beside what is sent.")
    gemms = _added(builder, gemms, walk, 2 if is_batched else 1)
    padding = _padding(split, axis, builder)
    graph = collective.start.graph
    sizes = {**builder.sizes(), **_asked(collective, ranks)}
    dead, kept = dead_and_kept(builder, set(builder.bands), set(sizes), graph, base)
    # What lies before the moved tensor is read by that alone, and goes with it.
    gone = {collective.start, collective.wait, base, *between(collective.wait, base)}
    gone |= {split.whole, *between(collective.wait, split.whole)}
    results = [Result(node, dims_or_refuse(node, builder.bands[node])) for node in kept]
    if split.unturned is not None:
        results.append(_turned_back(split, builder.bands[base]))
        kept.append(base)
    outer = (builder.bands[base].dims or ())[: split.dim] if axis == 0 else ()
    check_groups(builder, base, outer)
    by_rows = axis == 0 and not outer and not split.order
    receives, sends = row_splits(collective, collective.wait, builder.rows, by_rows=by_rows)
    program = builder.program(None, [builder.bands[node].ref for node in kept])
    return Chain(
        kind=KINDS[collective.name],
        collective=collective,
        gemms=tuple(read_gemm(node) for node in gemms),
        program=program,
        operands=tuple(builder.operands),
        results=tuple(results),
        axis=axis,
        outer=outer,
        receives=receives,
        sends=sends,
        dead=ordered(dead | gone | set(kept) | set(sizes), graph),
        sizes=sizes,
        padding=padding,
    )


@dataclass(frozen=True)
class _Readers:
    """What depends on a moved tensor."""

    below: set[fx.Node]
    """Everything, but for who asks for its sizes."""
    ends: list[fx.Node]
    """The GEMMs among it."""
    gemms: list[fx.Node]
    """Those whose left operand has its rows."""
    walk: Walk
    """From a GEMM's left operand up to it."""


def _readers(base: fx.Node, unturned: fx.Node | None = None) -> _Readers:
    roots = [base] if unturned is None else [base, unturned]
    asked = [u for node in roots for u in node.users if u.target is torch.ops.aten.sym_size.int]
    below = descendants(roots, without=asked)
    ends = [node for node in base.graph.nodes if node in below and form_of(node)]
    walk = Walk(lambda node: node is base, takes_all=True)
    return _Readers(below, ends, [node for node in ends if walk.leads(left_of(node))], walk)


def _turned_back(split: Split, band: Band) -> Result:
    """What has come as it came, for who reads it so."""
    assert split.unturned is not None
    if split.trim is not None:
        refuse(split.trim, "trimmed", "What is received is read both whole and trimmed.")
    order = split.order
    if not order:
        others = range(1, len(band.shape))
        order = (*others[: split.dim], 0, *others[split.dim :])
    back = tuple(sorted(range(len(order)), key=order.__getitem__))
    return Result(split.unturned, turn=Turn(dims_or_refuse(split.whole, band), back))


def _asked(collective: Collective, ranks: int) -> dict[fx.Node, Dim]:
    """What says a size that the collective was asked for: what is sent, on all ranks alike."""
    places = {node: node.args[1] for node in collective.asked}
    source, first = collective.source, ranks if collective.name == "all_gather" else 1
    said: dict[fx.Node, Dim] = {
        node: Size(source, place, 1 if place else first)
        for node, place in places.items()
        if isinstance(place, int)
    }
    for node, size in said.items():
        if not statically_known_true(size_of(size) == value_of(node)):
            refuse(node, "dynamic_shape", f"Nothing says how much comes before it does. {FEWER}")
    return said


def _added(builder: Builder, gemms: list[fx.Node], walk: Walk, inner: int) -> list[fx.Node]:
    """Add every GEMM that can be; the others stay in the graph. Refused where none can.

    ``inner``: dimensions of a left operand that are no rows.
    """
    added, refusals = [], []
    for node in gemms:
        before = builder.saved()
        try:
            band = walk.build(builder, left_of(node))
            if len(band.shape) - band.lead != inner:
                refuse(node, "not_rowwise", "The GEMM's rows are not those that are gathered.")
            add_gemm(builder, node, band)
            added.append(node)
        except Refused as ended:
            refusals.append(ended)
            builder.restore(before)
    if not added:
        raise refusals[0]
    return added


def _is_batched(gemm: fx.Node) -> bool:
    form = form_of(gemm)
    return form is not None and form.batched and not is_shared(gemm)


def _is_free(gemm: fx.Node, below: set[fx.Node], walk: Walk) -> bool:
    """Whether a GEMM needs nothing else of what follows the collective: else it comes later."""
    left = left_of(gemm)
    if sum(arg is left for arg in gemm.args) > 1:
        return False
    if any(node in below for node in gemm.all_input_nodes if node is not left):
        return False
    nodes, waiting = {gemm}, [gemm]
    while waiting:
        node = waiting.pop()
        for source in node.all_input_nodes:
            if source in below and source not in nodes:
                if not walk.leads(source):
                    return False
                nodes.add(source)
                if not walk.is_end(source):
                    waiting.append(source)
    return True


def _refuse_consumer(base: fx.Node, ends: list[fx.Node]) -> None:
    for gemm in ends:
        right = [n for n in gemm.all_input_nodes if n is not left_of(gemm)]
        if any(_reaches(node, base) for node in right):
            refuse(
                gemm,
                "gathered_weight",
                "What is gathered is the GEMM's right operand, whose rows are no rows of the "
                "result.",
            )
        if _reaches(left_of(gemm), base):
            if not _reaches(left_of(gemm), base, keeps_columns=True):
                refuse(
                    gemm,
                    "contraction",
                    "What is gathered is contracted by the GEMM: every element of the result needs "
                    "all of it.",
                )
            refuse(
                gemm,
                "not_rowwise",
                "What is received is rearranged before the GEMM, which does not keep the rows of "
                "one rank together.",
            )
    if all(cut_piece(user) for user in base.users) and not is_static(shape_of(base)):
        reason = f"Parts are cut from what varies, and need not be even. {FEWER}"
        refuse(base, "dynamic_parts", reason)
    if any(_reaches(left_of(gemm), base, by_parts=True) for gemm in ends):
        reason = "GEMMs take parts of what is received, as of experts one by one, not all its rows."
        refuse(base, "parts", reason)
    if any(is_ours(user) for user in base.users):
        reason = "What is received is read by another chain, whose GEMM has its own collective."
        refuse(base, "taken", reason)
    readers = ", ".join(sorted({str(user.target) for user in base.users})) or "nothing"
    refuse(base, "no_gemm", f"What is received is read by {readers}, not by a GEMM.")


PARTS = {aten.select.int, aten.slice.Tensor, aten.unbind.int, *SPLITS, operator.getitem}
"""Ops that give a part of what they are given, or several."""


def _reaches(
    node: fx.Node, base: fx.Node, *, keeps_columns: bool = False, by_parts: bool = False
) -> bool:
    """Whether ``node`` is ``base`` in another arrangement of its elements, or of its rows alone.

    Or it is a part of that.
    """

    def is_passed(node: fx.Node) -> bool:
        if node is base:
            return False
        if node.target is aten.permute.default:
            return not keeps_columns or _turns_rows_only(node)
        return passes_rows(node) or (by_parts and node.target in PARTS)

    return through(node, is_passed)[0] is base


def _turns_rows_only(permute: fx.Node) -> bool:
    order = permutation(permute)
    return order is not None and order[-1] == len(order) - 1


def _consumer_builder(
    collective: Collective, split: Split, base: fx.Node, ranks: int, gemms: Sequence[fx.Node]
) -> Builder:
    """A builder that knows the moved tensor: operand 0, of which this rank has a part."""
    is_batched = _is_batched(gemms[0])
    shape = shape_of(base)
    lead = 1 if is_batched else _lead(shape, gemms)
    if split.dim >= lead and not is_batched:
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
            and split.whole.target is not torch.ops.aten.cat.default
        ):
            rest = (ranks * shape[lead + 1], *shape[lead + 2 :])
            part = rest[0]
        operand = (part // ranks, *rest[1:])
    else:
        operand = rest
    units = rows * (ranks if collective.name == "all_to_all" else 1) if axis == 1 else -1
    said = _said_by(collective.source, operand, units)
    ref = builder.operand(collective.source, ROWS, said, turn=_turn(collective, split, ranks))
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
    return next((lead for lead in (lead_of(shape, one) for one in rows) if lead), most)


def _turn(collective: Collective, split: Split, ranks: int) -> Turn | None:
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
        return Turn(None, order)
    dims = tuple(size if isinstance(size, int) else -1 for size in shape)
    if dims.count(-1) > 1:
        refuse(source, "dynamic_shape", f"Nothing says the sizes of what is sent. {FEWER}")
    return Turn(dims, order)


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
        reason = f"What is sent does not say its number of columns, which varies. {FEWER}"
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
    if not isinstance(end, int) and split.trim.target is torch.ops.aten.slice.Tensor:
        end = split.trim.args[3] if len(split.trim.args) > 3 else None
    return end if isinstance(end, int | fx.Node) else None


def _consumer_axis(split: Split, band: Band, collective: Collective) -> int:
    if split.dim > band.lead:
        refuse(split.whole, "inner_dimension", "It is gathered along an inner dimension.")
    if 0 < split.dim < band.lead and band.dims is None:
        refuse(split.whole, "dynamic_shape", f"Nothing says the sizes of what comes. {FEWER}")
    return 1 if split.dim == band.lead else 0


def _padding(split: Split, axis: int, builder: Builder) -> Padding | None:
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
        refuse(trim, "trimmed", "Rows are trimmed that a grouped GEMM counts.")
    if ROWS in modes and not added:
        reason = f"Rows are trimmed that another operand does not have, how many varies. {FEWER}"
        refuse(trim, "trimmed", reason)
    if split.dim + 1 < band.lead and band.dims is None:
        refuse(trim, "dynamic_shape", f"Nothing says the sizes of what is trimmed. {FEWER}")
    inner = (band.dims or ())[split.dim + 1 : band.lead]
    return Padding(end, added, inner)
