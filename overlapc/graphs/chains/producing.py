"""Reads producers: GEMMs whose result a collective takes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.chains.bands import RANDOM, Band, Builder, Permutation
from overlapc.graphs.chains.chain import Chain, Padding, Result
from overlapc.graphs.chains.gemms import form_of, read_gemm, rows_of
from overlapc.graphs.chains.packing import Split, packed, permutes_rows
from overlapc.graphs.chains.padding import (
    Padded,
    keeps_zeros,
    pads_what_varies,
    with_zeros,
    without_padding,
)
from overlapc.graphs.chains.walking import (
    FARTHEST,
    Walk,
    between,
    check_groups,
    dead_and_kept,
    dims_or_refuse,
    keeps_rows,
    ordered,
    row_splits,
)
from overlapc.graphs.collectives import Collective, Refusal, called_by, is_ordered, is_ours, op_of
from overlapc.graphs.edges import descendants, is_random, through
from overlapc.graphs.elementwise import is_view, permutation
from overlapc.graphs.memory import mutates
from overlapc.graphs.origins import where
from overlapc.graphs.refusals import Refused, refuse
from overlapc.graphs.sizes import FEWER, Dim, Sum, is_static, same, shape_of, size_of
from overlapc.graphs.values import value_of
from overlapc.runtime.programs.program import OFFSETS, Ref

aten = torch.ops.aten

KINDS = {
    "all_reduce": "gemm_all_reduce",
    "reduce_scatter": "gemm_reduce_scatter",
    "all_to_all": "gemm_all_to_all",
}
"""Kinds of chain by collective."""
WAIT = torch.ops._c10d_functional.wait_tensor.default
HIDES = (
    "Its GEMM at {} runs while another collective is sent, and hides it; to cut its own was not "
    "predicted to pay."
)


def read_producer(collective: Collective, ranks: int) -> Chain | Refusal:
    """Read the GEMMs whose result the collective takes, or say why there is no chain."""
    try:
        return _producer(collective, ranks)
    except Refused as ended:
        return replace(ended.refusal, kind=KINDS[collective.name])


def _producer(collective: Collective, ranks: int) -> Chain:
    is_reduced = collective.name == "all_reduce"
    laid = Split(collective.source, 0) if is_reduced else packed(collective.source, ranks)
    padded = Padded(laid, 0) if is_reduced else without_padding(laid)
    split = padded.split
    # An all-reduce is elementwise: what only moves elements before it may as well come after it.
    top, views = through(split.whole, _only_moves) if is_reduced else (split.whole, ())
    walk = Walk(lambda node: form_of(node) is not None)
    if not walk.leads(top):
        _refuse_producer(top, is_permuted=split.whole is not collective.source)
    first = walk.first_end(top)
    builder = Builder(rows_of(first))
    band = walk.build(builder, top)
    gemms = tuple(read_gemm(node) for node in builder.bands if form_of(node) is not None)
    if len({(gemm.m, gemm.dtype) for gemm in gemms}) > 1:
        refuse(top, "unlike_gemms", "The sum is of GEMMs with different rows or dtypes.")
    packing = between(split.whole, collective.start)
    sizes = {**builder.sizes(), **_asked(collective, builder)}
    ends = {collective.start, collective.wait, *sizes}
    mine = {*builder.bands, *views, *packing}
    dead, kept = dead_and_kept(builder, mine, ends, collective.start.graph)
    _check_acyclic(builder, kept, sizes, collective)
    _check_unmutated(builder, collective)
    axis, outer = _axis(split, band, collective)
    padding = _padding(padded, band, builder)
    if is_reduced:
        sent = band.ref
    elif padding and not keeps_zeros(builder):
        sent = with_zeros(builder, band, split.whole)
    elif split.dim > band.lead:
        sent = _brought_forward(builder, band, split, ranks)
    else:
        sent = _before_view(builder, band, axis, ranks)
    program = builder.program(sent, [builder.bands[node].ref for node in kept])
    results = [_result(collective, padded, band, ranks, views)]
    results += [Result(node, dims_or_refuse(node, builder.bands[node])) for node in kept]
    check_groups(builder, split.whole, outer)
    by_rows = axis == 0 and not outer
    moved_rows = builder.rows if not padded.rows else prod(shape_of(laid.whole)[: band.lead])
    receives, sends = row_splits(
        collective,
        collective.source,
        moved_rows,
        by_rows=by_rows,
        permutes_rows=permutes_rows(laid, collective.source, ranks),
    )
    return Chain(
        kind=KINDS[collective.name],
        collective=collective,
        gemms=gemms,
        program=program,
        operands=tuple(builder.operands),
        results=tuple(results),
        axis=axis,
        outer=outer,
        receives=receives,
        sends=sends,
        dead=ordered(dead | ends | set(kept), collective.start.graph),
        sizes=sizes,
        padding=padding,
    )


def _only_moves(node: fx.Node) -> bool:
    return is_view(node) or permutation(node) is not None or node.target is aten.clone.default


def _refuse_producer(top: fx.Node, *, is_permuted: bool) -> None:
    """``is_permuted``: ``top`` is rearranged for the collective."""
    if is_random(top):
        refuse(top, "random", RANDOM)
    if top.op == "placeholder":
        refuse(top, "no_gemm", "What is sent is an input of the graph, not the result of a GEMM.")
    ordered = _nearest(top, is_ordered)
    if ordered is not None and called_by(ordered).target is not WAIT:
        refuse(top, "hides_another", HIDES.format(where(ordered)))
    if top.target is aten.cat.default and not is_static(shape_of(top)):
        reason = f"Its parts are cut from a size that varies, and need not be even. {FEWER}"
        refuse(top, "dynamic_parts", reason)
    if top.target is operator.getitem and is_ours(top.all_input_nodes[0]):
        refuse(top, "taken", f"What is sent is what another chain gives, at {where(top)}.")
    if _nearest(top, lambda node: node.target is aten._int_mm.default) is not None:
        refuse(top, "dtype", "Integer GEMMs are not planned: torch runs it as it is.")
    if (culprit := _nearest(top, _mixes)) is not None:
        if pads_what_varies(culprit):
            reason = "How many rows are padded varies, and only a fixed number is rewritten."
            refuse(top, "padded", reason)
        if is_permuted and permutation(culprit) is not None:
            reason = (
                f"{op_of(culprit)} rearranges the GEMM's result, and what is scattered is "
                "rearranged again, of which one is read. Remedy: scatter the result along the "
                "dimension as the GEMM gives it, and permute each part."
            )
            refuse(top, "turned_twice", reason)
        refuse(
            top,
            "not_rowwise",
            f"{op_of(culprit)} stands between the GEMM and the collective, and does not keep rows "
            "apart.",
        )
    refuse(
        top,
        "no_gemm",
        f"What is sent is computed by {op_of(top)}, not the result of a GEMM.",
    )


def _asked(collective: Collective, builder: Builder) -> dict[fx.Node, Dim]:
    """What says a size of what is received, which is asked for before it has come."""
    band = builder.bands.get(collective.source)
    own = band.dims if band is not None else None
    said: dict[fx.Node, Dim] = {}
    for node in collective.asked:
        place = node.args[1]
        assert isinstance(place, int)
        dim = Sum(collective.receives) if place == 0 else own[place] if own is not None else None
        if dim is None or not statically_known_true(size_of(dim) == value_of(node)):
            reason = f"The graph asks for the size of what is received before it arrives. {FEWER}"
            refuse(collective.start, "dynamic_shape", reason)
        said[node] = dim
    return said


def _check_acyclic(
    builder: Builder, kept: list[fx.Node], sizes: Iterable[fx.Node], collective: Collective
) -> None:
    below = descendants(kept, without=sizes)
    for operand in builder.operands:
        if operand.node in below and operand.node not in builder.bands:
            refuse(
                operand.node,
                "other_users",
                f"The GEMM's result is also read by {op_of(operand.node)}, which the collective "
                "needs in turn.",
            )
    if any(isinstance(size, fx.Node) and size in below for size in collective.sends):
        refuse(collective.start, "other_users", "How much is sent depends on what is sent.")
    if any(operand.node in builder.bands for operand in builder.operands):
        refuse(
            collective.start, "other_users", "One GEMM of the chain reads what another one gives."
        )


def _check_unmutated(builder: Builder, collective: Collective) -> None:
    """A GEMM is computed where the collective starts: nothing may be written to until there."""
    waiting = set(builder.bands)
    for node in collective.start.graph.nodes:
        if node is collective.start:
            return
        if node in waiting:
            waiting.discard(node)
        elif len(waiting) < len(builder.bands) and mutates(node):
            refuse(node, "mutation", f"{node.target} writes between the GEMM and the collective.")


def _padding(padded: Padded, band: Band, builder: Builder) -> Padding | None:
    """What operands are padded with."""
    split = padded.split
    if not padded.rows:
        return None
    if split.dim >= band.lead:
        refuse(split.whole, "padded", "Columns are padded, and not rows.")
    if any(operand.mode == OFFSETS for operand in builder.operands):
        refuse(split.whole, "padded", "A grouped GEMM counts the rows that are padded.")
    if band.dims is None:
        refuse(split.whole, "dynamic_shape", f"Nothing says the sizes of what is padded. {FEWER}")
    return Padding(band.dims[split.dim], padded.rows, band.dims[split.dim + 1 : band.lead])


def _axis(split: Split, band: Band, collective: Collective) -> tuple[int, tuple[Dim, ...]]:
    """Along which dimension of the program's tensor parts lie, and in how many blocks."""
    if collective.name == "all_reduce":
        return 0, ()
    if split.dim >= band.lead:
        return 1, ()
    if split.dim and band.dims is None:
        refuse(split.whole, "dynamic_shape", f"Nothing says the sizes of what is sent. {FEWER}")
    return 0, tuple((band.dims or ())[: split.dim])


def _brought_forward(builder: Builder, band: Band, split: Split, ranks: int) -> Ref:
    """What is sent, where an inner dimension is dealt out: its ranks come first behind the rows."""
    rest, inner = band.shape[band.lead :], split.dim - band.lead
    if not is_static(rest) or rest[inner] % ranks:
        reason = "It is scattered along an inner dimension, of columns that vary or are uneven."
        refuse(split.whole, "inner_dimension", f"{reason} {FEWER}")
    sizes = (-1, *rest[:inner], ranks, rest[inner] // ranks, *rest[inner + 1 :])
    place = 1 + inner
    order = (0, place, *(index for index in range(1, len(sizes)) if index != place))
    apart = builder.step(aten.reshape.default, (band.ref, sizes))
    return builder.step(aten.permute.default, (apart, order))


def _before_view(builder: Builder, band: Band, axis: int, ranks: int) -> Ref:
    """What is sent, without a last view: parts are contiguous, and their shape does not matter."""
    if band.ref.kind == "operand" or band.ref.index != len(builder.steps) - 1:
        return band.ref
    step = builder.steps[-1]
    if step.op not in ("aten.reshape.default", "aten.unflatten.int"):
        return band.ref
    source = step.args[0]
    columns = [b.rest[0] for b in builder.bands.values() if b.ref == source and b.rest]
    if axis == 1 and not (columns and statically_known_true(columns[0] % ranks == 0)):
        return band.ref
    builder.steps.pop()
    return source


def _result(
    collective: Collective, padded: Padded, band: Band, ranks: int, views: tuple[fx.Node, ...]
) -> Result:
    """What the op gives in place of the collective's result, and how that is laid out."""
    split, wait = padded.split, collective.wait
    if not split.order:
        return Result(wait, _sent_dims(collective, split, band), views=views)
    if band.dims is None:
        refuse(wait, "dynamic_shape", f"Nothing says the sizes of what is received. {FEWER}")
    part, dims, order = [*band.shape], [*band.dims], split.order
    part[split.dim] = (part[split.dim] + padded.rows) // ranks
    dims[split.dim] = size if isinstance(size := part[split.dim], int) else -1
    if collective.name == "all_to_all":  # one part from each rank
        part, dims = [ranks, *part], [ranks, *dims]
        order = (0, *(index + 1 for index in order))
    permuted = Permutation(tuple(dims), order)
    if same([part[index] for index in order], shape_of(wait)):
        return Result(wait, permuted=permuted)
    return Result(wait, _sent_dims(collective, split, band), permuted=permuted)


def _sent_dims(collective: Collective, split: Split, band: Band) -> tuple[Dim, ...] | None:
    """What the collective's result is reshaped to."""
    if collective.name == "all_reduce":
        return dims_or_refuse(split.whole, band)
    shape = shape_of(collective.wait)
    varying = [index for index, size in enumerate(shape) if not isinstance(size, int)]
    if len(varying) <= 1:
        return tuple(size if isinstance(size, int) else -1 for size in shape)
    if band.dims is not None and len(band.dims) == len(shape):
        pairs = [(index, shape[index], band.shape[index]) for index in varying]
        changed = [index for index, now, was in pairs if not statically_known_true(now == was)]
        if len(changed) <= 1:
            dims = zip(band.dims, shape, strict=True)
            return tuple(
                -1 if index in changed else size if isinstance(size, int) else dim
                for index, (dim, size) in enumerate(dims)
            )
    reason = f"Nothing says the sizes of what is received. {FEWER}"
    return refuse(collective.wait, "dynamic_shape", reason)


def _nearest(top: fx.Node, is_sought: Callable[[fx.Node], bool]) -> fx.Node | None:
    """The nearest of those sought, from ``top`` on up through what keeps rows apart."""
    seen, waiting = {top}, [top]
    while waiting and len(seen) < FARTHEST:
        node = waiting.pop(0)
        if is_sought(node):
            return node
        if keeps_rows(node):
            waiting += [source for source in node.all_input_nodes if source not in seen]
            seen.update(waiting)
    return None


def _mixes(node: fx.Node) -> bool:
    """Whether from a node on the rows of a GEMM above are not kept apart."""
    return not keeps_rows(node) and _gemm_above(node)


def _gemm_above(node: fx.Node) -> bool:
    """Whether a GEMM is among the nearest of what ``node`` depends on."""
    seen, waiting = {node}, [node]
    while waiting and len(seen) < FARTHEST:
        for source in waiting.pop(0).all_input_nodes:
            if form_of(source) is not None:
                return True
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return False
