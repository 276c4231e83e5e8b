"""Reads linear layers: a GEMM by a weight, and the pointwise work after it that one op may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import fx

from overlapc.graphs.algebra import mutates
from overlapc.graphs.bands import (
    Builder,
    Operand,
    Refused,
    is_pointwise,
    is_static,
    is_view,
    refuse,
)
from overlapc.graphs.chain import Result, meta_operand, operand_shape
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.gemms import Gemm, add_gemm, form_of, left_of, read_gemm, rows_of
from overlapc.graphs.nodes import through, value_of
from overlapc.graphs.walking import Walk, dims_or_refuse, ordered
from overlapc.runtime.program import ROWS, WHOLE, Program, Ref, mapped
from overlapc.runtime.widening import loaded, widened

aten = torch.ops.aten
prims = torch.ops.prims

GEMMS = (aten.mm.default, aten.addmm.default)
TURNS = frozenset({aten.permute.default, aten.t.default, aten.transpose.int, aten.alias.default})
"""What may stand between a parameter and its GEMM."""
NARROW = ("int8", "float8_e4m3fn", "float8_e5m2")
"""Dtypes of weights that are widened before they are multiplied."""

Takes = Callable[["Linear"], bool]
"""Whether an op may take a layer with as much behind it."""


@dataclass(frozen=True)
class Linear:
    """What one op takes the place of."""

    gemms: tuple[Gemm, ...]
    """One, or two of the same rows."""
    program: Program
    operands: tuple[Operand, ...]
    result: Result
    dead: tuple[fx.Node, ...] = field(default=(), repr=False)
    """What goes once the result has taken its node's place, in program order."""

    @property
    def meta_operands(self) -> list[torch.Tensor]:
        """Tensors without content like what the op is given; sizes and strides are hints."""
        device = self.gemms[0].device
        return [
            meta_operand(one, operand_shape(one), value_of(one.node).dtype, device)
            for one in self.operands
        ]

    @property
    def is_static(self) -> bool:
        """Whether all its sizes are numbers."""
        return all(gemm.static for gemm in self.gemms)

    @property
    def after(self) -> tuple[str, ...]:
        """The ops after its GEMMs by their names, without views."""
        names = [step.op.split(".")[1] for step in loaded(self.program).program.steps]
        return tuple(name for name in names if name not in ("mm", "addmm", "reshape"))

    @property
    def layout(self) -> str:
        """How its weights lie as [k, n]: "row", "col", or "strided"."""
        found = {_layout(held_as(weight_of(gemm.node))) for gemm in self.gemms}
        return found.pop() if len(found) == 1 else "strided"

    @property
    def held(self) -> str:
        """The dtype of its weights in memory; empty where GEMMs read them as they are."""
        its = held_as(weight_of(self.gemms[0].node))
        return _dtype(its.node) if its.is_narrow else ""


def linear_gemms(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield every GEMM by a matrix that the graph is given and does not compute, in order."""
    for node in graph.nodes:
        if node.target in GEMMS and is_given(weight_of(node)):
            yield node


def weight_of(gemm: fx.Node) -> fx.Node:
    """Return the right operand of a GEMM."""
    form = form_of(gemm)
    assert form is not None
    weight = gemm.args[form.b]
    assert isinstance(weight, fx.Node)
    return weight


def is_given(node: fx.Node) -> bool:
    """Return whether a weight is an input of the graph or a constant, or a view of one; it may lie
    there in a narrower dtype."""
    while node.target in TURNS or _widens(node):
        (node,) = node.all_input_nodes
    return node.op in ("placeholder", "get_attr")


def _widens(node: fx.Node) -> bool:
    is_cast = node.target is prims.convert_element_type.default
    return is_cast and _dtype(node.all_input_nodes[0]) in NARROW


@dataclass(frozen=True)
class Held:
    """How a weight lies in memory: as its GEMM reads it, or narrower."""

    node: fx.Node
    """What the op is given."""
    is_narrow: bool = False
    is_turned: bool = False
    """The GEMM reads it transposed."""
    widening: tuple[fx.Node, ...] = ()
    """The calls between, in program order."""


def held_as(weight: fx.Node) -> Held:
    """Return how the right operand of a GEMM is held."""
    if _widens(weight):
        return Held(weight.all_input_nodes[0], True, False, (weight,))
    if _transposes(weight) and _widens(weight.all_input_nodes[0]):
        (wide,) = weight.all_input_nodes
        return Held(wide.all_input_nodes[0], True, True, (wide, weight))
    return Held(weight)


def _transposes(node: fx.Node) -> bool:
    if node.target is not aten.permute.default:
        return False
    order = cast("Sequence[int]", node.args[1])
    return [dim % 2 for dim in order] == [1, 0]


def _dtype(node: fx.Node) -> str:
    return str(value_of(node).dtype).removeprefix("torch.")


def _layout(its: Held) -> str:
    value = value_of(its.node)
    strides = value.t().stride() if its.is_turned else value.stride()
    if not is_static(strides):
        return "strided"
    rows, columns = strides
    return "row" if columns == 1 else "col" if rows == 1 else "strided"


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
        self.gemm, self.takes = gemm, takes
        self.builder = Builder(rows_of(gemm))
        add_gemm(self.builder, gemm)

    def read(self) -> Linear:
        best = self._linear(self.gemm)
        if self._is_crossed(self.gemm):
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
            if self._is_crossed(node) or not self.takes(longer):
                break
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
        if node.target not in GEMMS or not is_given(weight_of(node)):
            return False
        ours, other = value_of(weight_of(self.gemm)), value_of(weight_of(node))
        return _rows_key(left_of(node)) == _rows_key(left_of(self.gemm)) and (
            ours.shape == other.shape
        )

    def _is_crossed(self, last: fx.Node) -> bool:
        """Whether anything is written to between what is first read and where the op will stand."""
        weights = [weight_of(node) for node in self.builder.bands if form_of(node) is not None]
        read = {*self.builder.bands, *(node for one in weights for node in held_as(one).widening)}
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
        dims = None if last is self.gemm else dims_or_refuse(last, band)
        gemms = [node for node in builder.bands if form_of(node) is not None]
        program, operands = _merged(builder.program(None, [band.ref]), builder.operands)
        casts, between = [], set[fx.Node]()
        for weight in dict.fromkeys(weight_of(gemm) for gemm in gemms):
            its = held_as(weight)
            if its.is_narrow:
                at = operands.index(Operand(weight, WHOLE))
                operands[at] = Operand(its.node, WHOLE)
                casts.append((at, value_of(weight).dtype, its.is_turned))
                between |= set(its.widening)
        mine = set(builder.bands)
        # Who else reads a widened weight goes on to read it.
        for node in reversed(ordered(between, last.graph)):
            if all(user in mine for user in node.users):
                mine.add(node)
        return Linear(
            tuple(read_gemm(node) for node in gemms),
            widened(program, casts) if casts else program,
            tuple(operands),
            Result(last, dims),
            ordered(mine, last.graph),
        )


def _rows_key(node: fx.Node) -> tuple[object, ...]:
    """Equal for tensors that are one another's copies: views in the same shape of one tensor."""
    source, _ = through(node, is_view)
    return source, tuple(str(size) for size in value_of(node).shape)


def _merged(program: Program, operands: Sequence[Operand]) -> tuple[Program, list[Operand]]:
    """Let a program take each tensor once, in whatever views it is spelled."""
    first: dict[tuple[object, ...], int] = {}
    kept: list[Operand] = []
    places = []
    for operand in operands:
        key = (*_rows_key(operand.node), operand.mode, operand.shape)
        if operand.mode != ROWS or key not in first:
            first[key] = len(kept)
            kept.append(operand)
        places.append(first[key])

    def place(ref: Ref) -> Ref:
        return Ref("operand", places[ref.index]) if ref.is_operand else ref

    modes = tuple(operand.mode for operand in kept)
    return replace(program, modes=modes, steps=mapped(program.steps, place)), kept
