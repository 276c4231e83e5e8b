"""From FX nodes to the program that a band of rows runs: which dimensions of a value are its rows.

Every value between a GEMM and its collective is read as [rows, ...]: the first ``lead`` dimensions
of its node together are the rows. Views that keep the order of elements, casts, pointwise ops and
GEMMs keep rows apart, so the same calls on some rows of the operands give those rows of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from overlapc.graphs.edges import is_random
from overlapc.graphs.refusals import refuse
from overlapc.graphs.sizes import Dim, dims_of, fixed, is_static, lead_of, same, shape_of, sizes_of
from overlapc.graphs.values import value_of
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

aten = torch.ops.aten

BROADCASTS = "{} broadcasts its operands over other rows."
RANDOM = "Random numbers (dropout) stand between the GEMM and the collective."
MOST_STEPS = 24
"""Steps of a program, at most: each may run by itself for every band, where Inductor would fuse
them all."""


@dataclass(frozen=True)
class Band:
    """What a program computes of a node."""

    ref: Ref
    lead: int
    """How many dimensions of the node are its rows."""
    shape: tuple[int | torch.SymInt, ...]
    """Shape of the node."""
    dims: tuple[Dim, ...] | None
    """The sizes of ``shape`` as arguments for a new node; None where no node says them."""

    @property
    def rest(self) -> tuple[int | torch.SymInt, ...]:
        """The dimensions that are no rows."""
        return self.shape[self.lead :]


@dataclass(frozen=True)
class Fill:
    """A tensor full of one value, which is made for a chain."""

    value: bool | int
    """True makes booleans, a number what the operand's node has."""
    rows: tuple[Dim, ...] = ()
    """The product of these is the size that the operand's shape leaves open."""


@dataclass(frozen=True)
class Permutation:
    """What a reshape to ``shape`` and a permute to ``order`` make of a tensor, contiguous."""

    shape: tuple[Dim, ...] | None
    """None where it has that shape already."""
    order: tuple[int, ...]
    """As ``torch.permute`` takes it."""


@dataclass(frozen=True)
class Operand:
    """A tensor that the op is given."""

    node: fx.Node
    mode: str
    """How a band takes it, as the program says."""
    shape: tuple[Dim, ...] | None = None
    """What it is reshaped to, with -1 for the rows, or for a size within them; None as it is."""
    fill: Fill | None = None
    """If set, the op is given a new tensor, filled so, and not the node's."""
    permuted: Permutation | None = None
    """What is done to it before it is reshaped."""


@dataclass
class Builder:
    """A program in the making."""

    rows: int | torch.SymInt
    """Rows of every value of the program."""
    operands: list[Operand] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    bands: dict[fx.Node, Band] = field(default_factory=dict)
    """The nodes whose values the program computes."""

    def saved(self) -> Builder:
        """Return a copy, for ``restore``."""
        return Builder(self.rows, [*self.operands], [*self.steps], {**self.bands})

    def restore(self, saved: Builder) -> None:
        """Be again what ``saved`` is a copy of."""
        self.operands, self.steps, self.bands = saved.operands, saved.steps, saved.bands

    def sizes(self) -> dict[fx.Node, Dim]:
        """Return the nodes that ask for a size of a value, with what else says that size."""
        return {
            user: band.dims[user.args[1]]  # pyright: ignore[reportCallIssue, reportArgumentType]
            for node, band in self.bands.items()
            if band.dims is not None
            for user in node.users
            if user.target is aten.sym_size.int
        }

    def program(self, sent: Ref | None, kept: Sequence[Ref]) -> Program:
        """Return what was built; refused if that is long."""
        if len(self.steps) > MOST_STEPS:
            (*_, last) = self.bands
            refuse(last, "too_long", f"More than {MOST_STEPS} ops stand in one chain.")
        modes = tuple(operand.mode for operand in self.operands)
        return Program(modes, tuple(self.steps), sent, tuple(kept))

    def operand(
        self,
        node: fx.Node,
        mode: str,
        shape: tuple[Dim, ...] | None = None,
        fill: Fill | None = None,
        permuted: Permutation | None = None,
    ) -> Ref:
        """Return the reference of an operand; one that is there already is not added again."""
        operand = Operand(node, mode, shape, fill, permuted)
        if operand not in self.operands:
            self.operands.append(operand)
        return Ref("operand", self.operands.index(operand))

    def step(self, op: Any, args: Sequence[Any], kwargs: Sequence[tuple[str, Any]] = ()) -> Ref:
        """Add a call and return its value."""
        self.steps.append(Step(str(op), tuple(args), tuple(kwargs)))
        return Ref("value", len(self.steps) - 1)

    def view(self, node: fx.Node, band: Band) -> Band:
        """Add a view that keeps the order of elements, of a value that is known."""
        shape = shape_of(node)
        lead = lead_of(shape, self.rows, band.rest)
        if lead is None:
            refuse(node, "view_mixes_rows", f"{node.target} mixes rows and columns in a dimension.")
        ref, rest = band.ref, shape[lead:]
        if not same(rest, band.rest):
            ref = self.regroup(node, ref, band.rest, rest)
        dims = band.dims if same(shape, band.shape) else dims_of(node, shape)
        self.bands[node] = Band(ref, lead, shape, dims)
        return self.bands[node]

    def regroup(self, node: fx.Node, ref: Ref, was: Sequence[Any], now: Sequence[Any]) -> Ref:
        """Add a step that reads the dimensions behind the rows as others, as ``node`` does.

        A program holds numbers: of sizes that vary, one is whatever is left.
        """
        if is_static(now):
            return self.step(aten.reshape.default, (ref, (-1, *now)))
        first, was, left = _without_common(was, now)
        if len(left) == 1:
            return self.step(aten.flatten.using_ints, (ref, first + 1, first + len(was)))
        sizes = tuple(size if isinstance(size, int) else -1 for size in left)
        if len(was) == 1 and sizes.count(-1) == 1:
            return self.step(aten.unflatten.int, (ref, first + 1, sizes))
        return self.step(aten.reshape.default, (ref, (-1, *fixed(node, now))))

    def pointwise(self, node: fx.Node) -> Band:
        """Add a pointwise op or cast of which at least one operand is known."""
        shape = shape_of(node)
        alike = [self.bands[n] for n in node.all_input_nodes if n in self.bands]
        alike = [band for band in alike if same(band.shape, shape)]
        # Where a dimension of size one stands next to the rows, shapes alone do not tell.
        lead = alike[0].lead if alike else lead_of(shape, self.rows)
        if lead is None:
            refuse(node, "not_rowwise", BROADCASTS.format(node.target))
        args = tuple(self._argument(node, arg, shape, lead) for arg in node.args)
        kwargs = [(k, self._argument(node, v, shape, lead)) for k, v in node.kwargs.items()]
        dims = alike[0].dims if alike else dims_of(node, shape)
        ref = self.step(node.target, args, kwargs)
        self.bands[node] = Band(ref, lead, shape, dims)
        return self.bands[node]

    def _argument(self, node: fx.Node, arg: Any, shape: Sequence[Any], lead: int) -> Any:
        if not isinstance(arg, fx.Node):
            return constant(node, arg)
        if arg in self.bands:
            band = self.bands[arg]
            if len(band.rest) != len(shape) - lead:
                refuse(node, "not_rowwise", BROADCASTS.format(node.target))
            return band.ref
        return self.leaf(node, arg, shape, lead)

    def leaf(self, node: fx.Node, leaf: fx.Node, shape: Sequence[Any], lead: int) -> Ref:
        """Return the operand for what ``node``, of this shape, broadcasts ``leaf`` to."""
        if not isinstance(value_of(leaf), torch.Tensor):
            refuse(node, "symbolic_argument", f"{node.target} takes a number that varies.")
        if is_random(leaf):
            refuse(leaf, "random", RANDOM)
        own = shape_of(leaf)
        rows = own[: max(0, len(own) - (len(shape) - lead))]
        rest = sizes_of(leaf, len(rows))
        if all(statically_known_true(size == 1) for size in rows):
            return self.operand(leaf, WHOLE, rest if rows else None)
        if len(rows) == lead and same(rows, shape[:lead]):
            return self.operand(leaf, ROWS, None if lead == 1 else (-1, *rest))
        what = f"{node.target} repeats an operand over some of the rows only."
        return refuse(node, "partial_broadcast", what)


def constant(node: fx.Node, value: Any) -> Any:
    """Return an argument as a program holds it."""
    if isinstance(value, list | tuple):
        return tuple(constant(node, item) for item in value)
    if value is None or isinstance(value, bool | int | float | str | torch.dtype):
        return value
    return refuse(node, "argument", f"{node.target} is given {value!r}, which no program can hold.")


def _without_common(was: Sequence[Any], now: Sequence[Any]) -> tuple[int, list[Any], list[Any]]:
    """Two groupings of one number of elements without the sizes that begin and end both alike.

    At least one size is left of each. Also how many there were at the beginning.
    """
    was, now, first = [*was], [*now], 0
    while min(len(was), len(now)) > 1 and statically_known_true(was[0] == now[0]):
        was, now, first = was[1:], now[1:], first + 1
    while min(len(was), len(now)) > 1 and statically_known_true(was[-1] == now[-1]):
        was, now = was[:-1], now[:-1]
    return first, was, now
