"""Reads linear layers: a GEMM by a weight, and the pointwise work after it that one op may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.bodies import placeholders
from overlapc.graphs.chains.bands import Builder, Operand
from overlapc.graphs.chains.chain import Result, meta_operand, operand_shape
from overlapc.graphs.chains.gemms import (
    Gemm,
    add_gemm,
    form_of,
    is_shared,
    left_of,
    read_gemm,
    rows_of,
    shared_weight,
)
from overlapc.graphs.chains.walking import Walk, dims_or_refuse, ordered
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.edges import through
from overlapc.graphs.elementwise import is_pointwise, is_view, permutation
from overlapc.graphs.linear.given_casts import cast_within
from overlapc.graphs.linear.held_weights import TURNS, Held, held_as
from overlapc.graphs.memory import mutates
from overlapc.graphs.refusals import Refused, refuse
from overlapc.graphs.sizes import is_static, shape_of
from overlapc.graphs.values import value_of
from overlapc.runtime.linear.norming import GEMMS as ROWS_OF
from overlapc.runtime.linear.norming import unnormed
from overlapc.runtime.linear.parts import parts_of
from overlapc.runtime.linear.widening import Loaded, loaded, widened
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step, mapped

aten = torch.ops.aten

GEMMS = (aten.mm.default, aten.addmm.default)

APART = (
    "The rows of its batches do not lie one after another: one GEMM of them all would need a copy "
    "of them, which the batched GEMM does not."
)

Takes = Callable[["Linear"], bool | None]
"""Whether an op may take a layer with as much behind it; None where it may with more behind."""


@dataclass(frozen=True)
class Linear:
    """What one op takes the place of."""

    gemms: tuple[Gemm, ...]
    """Of the same rows: one, two of one result, or one for each of several results."""
    program: Program
    operands: tuple[Operand, ...]
    results: tuple[Result, ...]
    """In the order in which the program keeps them."""
    dead: tuple[fx.Node, ...] = field(default=(), repr=False)
    """What goes once each result has taken its node's place, in program order."""

    @property
    def meta_operands(self) -> list[torch.Tensor]:
        """Tensors without content like what the op is given; sizes and strides are hints."""
        device = self.gemms[0].device
        return [
            meta_operand(one, operand_shape(one), value_of(one.node).dtype, device)
            for one in self.operands
        ]

    @property
    def left(self) -> int:
        """Which operand its GEMMs take rows from."""
        step = next(step for step in self._first.program.steps if step.op in ROWS_OF)
        return step.args[ROWS_OF[step.op]].index

    @property
    def before(self) -> str:
        """What is done to the rows before the product; empty where nothing is."""
        return "rms_norm" if unnormed(parts_of(self.program)[0])[1] else ""

    @property
    def _first(self) -> Loaded:
        """What a kernel computes of its first result."""
        return loaded(unnormed(parts_of(self.program)[0])[0])

    @property
    def is_static(self) -> bool:
        """Whether all its sizes are numbers."""
        return all(gemm.static for gemm in self.gemms)

    @property
    def feeds_products(self) -> bool:
        """Whether its results are read by GEMMs alone, which need them in memory."""
        return all(_feeds_products(result.node) for result in self.results)

    @property
    def after(self) -> tuple[str, ...]:
        """The ops after a result's GEMMs by their names, without views; of all results alike."""
        names = [step.op.split(".")[1] for step in self._first.program.steps]
        return tuple(name for name in names if name not in ("mm", "addmm", "reshape"))

    @property
    def layout(self) -> str:
        """How its weights lie as [k, n]: "row", "col", or "strided"."""
        found = {_held(gemm.node).layout for gemm in self.gemms}
        return found.pop() if len(found) == 1 else "strided"

    @property
    def held(self) -> str:
        """The dtype of its weights in memory; empty where GEMMs read them as they are."""
        return _held(self.gemms[0].node).dtype

    @property
    def scaled(self) -> str:
        """How its weights are scaled before the product: by columns, or groups of so many k, and
        whether zero points are subtracted first.

        Empty where they are not; KernelError where no kernel scales them so.
        """
        its = self._first
        weight = its.held[0].operand if its.held else 0
        scales = its.scales(self.meta_operands, weight)
        if scales is None:
            return ""
        groups, k = len(scales), self.gemms[0].k
        said = "columns" if groups == 1 else f"groups of {k // groups}"
        zeros = its.zeros(self.meta_operands, weight)
        if zeros is None:
            return said
        of = f"{str(zeros.dtype).removeprefix('torch.')} " if zeros.is_floating_point() else ""
        return f"{said} from {of}zero points"


def linear_gemms(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield every GEMM by a matrix that the graph is given and does not compute, in order.

    None that gives gradients of weights: what it is given is an activation, and it contracts rows.
    """
    is_backward = any(str(node.target).startswith("tangents") for node in placeholders(graph))
    for node in graph.nodes:
        if is_linear(node) and not (is_backward and _contracts_rows(node)):
            yield node


def is_linear(node: fx.Node) -> bool:
    """Return whether a node is a GEMM by a matrix that the graph is given."""
    is_gemm = node.target in GEMMS or is_shared(node)
    return is_gemm and held_as(weight_of(node)) is not None


def _feeds_products(node: fx.Node) -> bool:
    users = list(node.users)
    return bool(users) and all(
        _feeds_products(user) if is_view(user) else form_of(user) is not None for user in users
    )


def _contracts_rows(gemm: fx.Node) -> bool:
    """Whether the left operand was turned, so that what are rows elsewhere are its columns."""
    node, _ = through(left_of(gemm), is_view)
    order = permutation(node)
    return node.target in TURNS and (order is None or order[-1] != len(order) - 1)


def weight_of(gemm: fx.Node) -> fx.Node:
    """Return the right operand of a GEMM, of a batched one that of all batches: [.., k, n]."""
    form = form_of(gemm)
    assert form is not None
    weight = shared_weight(gemm) if is_shared(gemm) else gemm.args[form.b]
    assert isinstance(weight, fx.Node)
    return weight


def _held(gemm: fx.Node) -> Held:
    its = held_as(weight_of(gemm))
    assert its is not None, "the weight is given"
    return its


def read_linear(gemm: fx.Node, takes: Takes) -> Linear | Refusal:
    """Read the longest layer from a GEMM on that ``takes`` accepts, at least the GEMM alone.

    A value that anything else reads ends it; views at its end stay in the graph.
    """
    try:
        return _Reader(gemm, takes).read()
    except Refused as ended:
        return ended.refusal


class _Reader:
    def __init__(self, gemm: fx.Node, takes: Takes) -> None:
        if not is_static(value_of(weight_of(gemm)).shape):
            refuse(gemm, "dynamic_columns", "The sizes of its weight vary.")
        if not value_of(weight_of(gemm)).numel():
            refuse(gemm, "empty", "Its weight has no element.")
        if is_shared(gemm) and not _is_matrix(left_of(gemm)):
            refuse(gemm, "rows_apart", APART)
        if _held(gemm).is_cut:
            refuse(gemm, "weight", "Its weight is cut or put in a batch after it was widened.")
        self.gemm, self.takes = gemm, takes
        self.builder = Builder(rows_of(gemm))
        add_gemm(self.builder, gemm)

    def read(self) -> Linear:
        best = self._linear(self.gemm)
        if self._is_crossed(self.gemm, best.dead):
            reason = "Something is written between where its weight is widened and the product."
            refuse(self.gemm, "written", reason)
        while readers := self._readers():
            node = min(readers)
            if not self._adds(node):
                break
            # A view at the end stays, and so does all where others read what comes before the end.
            if is_view(node) or self._is_read_inside(node):
                continue
            try:
                longer = self._linear(node)
            except Refused:
                break
            takes = self.takes(longer)
            if self._is_crossed(node, longer.dead) or takes is False:
                break
            if takes:
                best = longer
        return best

    def _readers(self) -> set[fx.Node]:
        bands = self.builder.bands
        return {user for node in bands for user in node.users if user not in bands}

    def _is_read_inside(self, last: fx.Node) -> bool:
        """Whether anything but what is known reads a value before the last."""
        bands = self.builder.bands
        return any(user not in bands for node in bands if node is not last for user in node.users)

    def _adds(self, node: fx.Node) -> bool:
        """Add a node below what is known, and what leads to it from another GEMM of the rows."""
        if not (is_view(node) or is_pointwise(node)):
            return False
        try:
            for source in node.all_input_nodes:
                if source not in self.builder.bands:
                    self._absorb(source, node)
            if is_view(node):
                (source,) = node.all_input_nodes[:1]
                self.builder.view(node, self.builder.bands[source])
            else:
                self.builder.pointwise(node)
        except Refused:
            return False
        return True

    def _absorb(self, source: fx.Node, reader: fx.Node) -> None:
        """Add what leads from another GEMM of the rows to a value, if only ``reader`` reads it."""
        walk = Walk(self._is_sibling, takes_all=True)
        if not walk.leads(source):
            return
        saved = self.builder.saved()
        try:
            walk.build(self.builder, source)
        except Refused:
            self.builder.restore(saved)
            return
        mine = {reader, *self.builder.bands}
        new = [node for node in self.builder.bands if node not in saved.bands]
        if any(user not in mine for node in new for user in node.users):
            self.builder.restore(saved)

    def _is_sibling(self, node: fx.Node) -> bool:
        if not is_linear(node):
            return False
        ours, other = value_of(weight_of(self.gemm)), value_of(weight_of(node))
        return rows_key(left_of(node)) == rows_key(left_of(self.gemm)) and (
            ours.shape[-2:] == other.shape[-2:]
        )

    def _is_crossed(self, last: fx.Node, dead: Sequence[fx.Node]) -> bool:
        """Whether anything is written to between what is first read and where the op will stand."""
        held = [_held(node) for node in self.builder.bands if form_of(node) is not None]
        read = {*self.builder.bands, *dead, *(node for one in held for node in one.calls)}
        waiting = set(read)
        for node in last.graph.nodes:
            if node is last:
                return False
            if node in waiting:
                waiting.discard(node)
            elif len(waiting) < len(read) and mutates(node):
                return True
        return True

    def _linear(self, last: fx.Node) -> Linear:
        builder, band = self.builder, self.builder.bands[last]
        dims = dims_or_refuse(last, band)
        gemms = [node for node in builder.bands if form_of(node) is not None]
        program, operands, casts = cast_within(
            *merged(builder.program(None, [band.ref]), builder.operands), builder.bands
        )
        calls, between = dict[int, list[Step]](), set[fx.Node]()
        for gemm in gemms:
            its, weight = _held(gemm), Operand(weight_of(gemm), WHOLE)
            if its.widening and weight in operands:
                at = operands.index(weight)
                operands[at] = Operand(its.node, WHOLE)
                calls[at] = its.steps(lambda node: _whole(operands, node))
                between |= its.calls
        mine = {*builder.bands, *casts}
        # Who else reads a widened weight goes on to read it.
        for node in reversed(ordered(between, last.graph)):
            if all(user in mine for user in node.users):
                mine.add(node)
        return Linear(
            tuple(read_gemm(node) for node in gemms),
            widened(program, calls, len(operands)) if calls else program,
            tuple(operands),
            (Result(last, dims),),
            ordered(mine, last.graph),
        )


def _is_matrix(rows: fx.Node) -> bool:
    """Whether [batch, rows, k] is read as [batch * rows, k] without a copy."""
    (batches, rows_of_one, _), (far, near, _) = shape_of(rows), value_of(rows).stride()
    facts = (batches == 1, rows_of_one == 1, far == rows_of_one * near)
    return any(statically_known_true(fact) for fact in facts)


def _whole(operands: list[Operand], node: fx.Node) -> Ref:
    """The operand that is a node's tensor whole; it is added where it is none."""
    operand = Operand(node, WHOLE)
    if operand not in operands:
        operands.append(operand)
    return Ref("operand", operands.index(operand))


def rows_key(node: fx.Node) -> tuple[object, ...]:
    """Equal for tensors that are one another's copies: views in the same shape of one tensor."""
    source, _ = through(node, is_view)
    return source, tuple(str(size) for size in value_of(node).shape)


def merged(program: Program, operands: Sequence[Operand]) -> tuple[Program, list[Operand]]:
    """Let a program take each tensor once, in whatever views it is spelled."""
    first: dict[tuple[object, ...], int] = {}
    kept: list[Operand] = []
    places = []
    for operand in operands:
        key = (*rows_key(operand.node), operand.mode, operand.shape)
        if operand.mode != ROWS or key not in first:
            first[key] = len(kept)
            kept.append(operand)
        places.append(first[key])

    def place(ref: Ref) -> Ref:
        return Ref("operand", places[ref.index]) if ref.is_operand else ref

    modes = tuple(operand.mode for operand in kept)
    return replace(program, modes=modes, steps=mapped(program.steps, place)), kept
