"""Reads consumers: GEMMs that take what a collective gives."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.chains.bands import Builder
from overlapc.graphs.chains.chain import Chain, Result
from overlapc.graphs.chains.gathered import (
    consumer_axis,
    consumer_builder,
    permuted_back,
    trimmed_padding,
)
from overlapc.graphs.chains.gemms import add_gemm, form_of, is_batched, left_of, read_gemm
from overlapc.graphs.chains.packing import SPLITS, Split, cut_piece, permutes_rows, unpacked
from overlapc.graphs.chains.walking import (
    Walk,
    between,
    check_groups,
    dead_and_kept,
    dims_or_refuse,
    ordered,
    passes_rows,
    row_splits,
)
from overlapc.graphs.collectives import Collective, Refusal, is_ours, op_of
from overlapc.graphs.edges import descendants, through
from overlapc.graphs.elementwise import permutation
from overlapc.graphs.refusals import Refused, refuse
from overlapc.graphs.sizes import FEWER, Dim, Size, is_static, shape_of, size_of
from overlapc.graphs.values import value_of

aten = torch.ops.aten

KINDS = {"all_gather": "all_gather_gemm", "all_to_all": "all_to_all_gemm"}
"""Kinds of chain by collective."""


def read_consumer(collective: Collective, ranks: int) -> Chain | Refusal:
    """Read the GEMMs that take what the collective gives, or say why there is no chain."""
    try:
        return _consumer(collective, ranks)
    except Refused as ended:
        return replace(ended.refusal, kind=KINDS[collective.name])


def _consumer(collective: Collective, ranks: int) -> Chain:
    split = unpacked(collective.wait, ranks)
    if split.unpermuted is not None and _readers(split.unpermuted).gemms:
        split = Split(collective.wait, 0)
    base = split.trim or split.whole
    readers = _readers(base, split.unpermuted)
    below, walk, gemms = readers.below, readers.walk, readers.gemms
    if not gemms:
        _refuse_consumer(base, readers.ends)
    are_batched = is_batched(gemms[0])
    gemms = [node for node in gemms if is_batched(node) == are_batched]
    builder = consumer_builder(collective, split, base, ranks, gemms)
    axis = consumer_axis(split, builder.bands[base], collective)
    gemms = [node for node in gemms if _is_free(node, below, walk)]
    if not gemms:
        refuse(
            base,
            "other_users",
            "Every GEMM needs another GEMM's result, not only what is received.",
        )
    gemms = _added(builder, gemms, walk, 2 if are_batched else 1)
    padding = trimmed_padding(split, axis, builder)
    graph = collective.start.graph
    sizes = {**builder.sizes(), **_asked(collective, ranks)}
    dead, kept = dead_and_kept(builder, set(builder.bands), set(sizes), graph, base)
    # What lies before the moved tensor is read by that alone, and goes with it.
    gone = {collective.start, collective.wait, base, *between(collective.wait, base)}
    gone |= {split.whole, *between(collective.wait, split.whole)}
    results = [Result(node, dims_or_refuse(node, builder.bands[node])) for node in kept]
    if split.unpermuted is not None:
        results.append(permuted_back(split, builder.bands[base]))
        kept.append(base)
    outer = (builder.bands[base].dims or ())[: split.dim] if axis == 0 else ()
    check_groups(builder, base, outer)
    by_rows = axis == 0 and not outer
    receives, sends = row_splits(
        collective,
        collective.wait,
        builder.rows,
        by_rows=by_rows,
        permutes_rows=permutes_rows(split, collective.wait, ranks),
    )
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
    """The GEMMs of ``ends`` whose left operand has the moved tensor's rows."""
    walk: Walk
    """From a GEMM's left operand up to it."""


def _readers(base: fx.Node, unpermuted: fx.Node | None = None) -> _Readers:
    roots = [base] if unpermuted is None else [base, unpermuted]
    asked = [u for node in roots for u in node.users if u.target is torch.ops.aten.sym_size.int]
    below = descendants(roots, without=asked)
    ends = [node for node in base.graph.nodes if node in below and form_of(node)]
    walk = Walk(lambda node: node is base, takes_all=True)
    return _Readers(below, ends, [node for node in ends if walk.leads(left_of(node))], walk)


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
            refuse(
                node,
                "dynamic_shape",
                f"How much is received is not known before it arrives. {FEWER}",
            )
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
            fewer = "" if is_static(shape_of(base)) else f" {FEWER}"
            refuse(
                gemm,
                "not_rowwise",
                "What is received is rearranged before the GEMM, which does not keep the rows of "
                f"one rank together.{fewer}",
            )
    if all(cut_piece(user) for user in base.users) and not is_static(shape_of(base)):
        reason = f"Parts are cut from a size that varies, and need not be even. {FEWER}"
        refuse(base, "dynamic_parts", reason)
    if any(_reaches(left_of(gemm), base, by_parts=True) for gemm in ends):
        reason = "GEMMs take parts of what is received, as of experts one by one, not all its rows."
        refuse(base, "parts", reason)
    if any(is_ours(user) for user in base.users):
        reason = "What is received is read by another chain, whose GEMM has its own collective."
        refuse(base, "taken", reason)
    readers = ", ".join(sorted({op_of(user) for user in base.users})) or "nothing"
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
            return not keeps_columns or _permutes_rows_only(node)
        return passes_rows(node) or (by_parts and node.target in PARTS)

    return through(node, is_passed)[0] is base


def _permutes_rows_only(permute: fx.Node) -> bool:
    order = permutation(permute)
    return order is not None and order[-1] == len(order) - 1
