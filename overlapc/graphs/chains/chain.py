"""Chains of GEMMs and a collective: typed records over FX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import sympy
import torch
from torch import fx

from overlapc.graphs.chains.bands import Operand, Permutation
from overlapc.graphs.chains.gemms import Gemm, is_batched
from overlapc.graphs.collectives import Collective
from overlapc.graphs.refusals import refuse
from overlapc.graphs.sizes import Dim, is_static, shape_of, size_of
from overlapc.graphs.values import hint_of, tensor_facts, value_of
from overlapc.runtime.programs.program import ROWS, Program


@dataclass(frozen=True)
class Result:
    """A node that a result of the op takes the place of."""

    node: fx.Node
    dims: tuple[Dim, ...] | None = None
    """What the result is reshaped to; None where it has the node's shape."""
    permuted: Permutation | None = None
    """What is done to the result before that."""
    views: tuple[fx.Node, ...] = ()
    """Views of ``node``'s source that are made again after that, and lead to what it gave."""


@dataclass(frozen=True)
class Padding:
    """What evens out shards: every block ends with rows that nobody reads.

    There are as many blocks as ``Chain.outer`` says. Operands by rows are given such rows, but for
    what a consumer moves, which has them; results lose them, but for what a producer's collective
    gives.
    """

    end: Dim
    """How many times ``inner`` rows of a block are none of them."""
    added: int
    """How many times ``inner`` rows are."""
    inner: tuple[Dim, ...] = ()
    """Dimensions of rows behind the one that is padded."""


@dataclass(frozen=True)
class Chain:
    """What one op takes the place of."""

    kind: str
    collective: Collective
    gemms: tuple[Gemm, ...]
    program: Program
    operands: tuple[Operand, ...]
    results: tuple[Result, ...]
    """In the order in which the op gives them."""
    axis: int = 0
    """Dimension of the moved tensor, as the program sees it, along which ranks' parts lie."""
    outer: tuple[Dim, ...] = ()
    """Along dimension 0, every one of so many blocks (their product) holds a part of each rank."""
    receives: tuple[int | fx.Node, ...] = ()
    sends: tuple[int | fx.Node, ...] = ()
    """Rows from and to each rank, where they differ."""
    dead: tuple[fx.Node, ...] = field(default=(), repr=False)
    """What goes once every result has taken its node's place, in program order."""
    padding: Padding | None = None
    sizes: dict[fx.Node, Dim] = field(default_factory=dict, repr=False)
    """Nodes that ask the chain's values for a size, and what else says it."""

    @property
    def padded(self) -> tuple[Operand, ...]:
        """The operands that are given rows of padding."""
        given = self.operands if self.program.sent else self.operands[1:]
        return tuple(one for one in given if self.padding and one.mode == ROWS)

    @property
    def trimmed(self) -> tuple[Result, ...]:
        """The results whose rows of padding nobody reads."""
        given = self.results[1:] if self.program.sent else self.results
        return given if self.padding else ()


def operand_facts(chain: Chain) -> tuple[list[tuple[int, ...]], list[torch.dtype]]:
    """Return the shapes, as hints, and dtypes of a chain's operands as the op is given them."""
    shapes, dtypes = [], []
    for operand in chain.operands:
        dtype, shape = value_of(operand.node).dtype, operand_shape(operand)
        if operand.fill is not None:
            dtype = torch.bool if operand.fill.value is True else dtype
            shape = _reshaped([_hint(dim) for dim in operand.fill.rows], operand.shape)
        if chain.padding is not None and operand in chain.padded:
            blocks = prod(_hint(dim) for dim in (*chain.outer, *chain.padding.inner))
            shape = (shape[0] + blocks * chain.padding.added, *shape[1:])
        shapes.append(shape)
        dtypes.append(dtype)
    return shapes, dtypes


def operand_shape(operand: Operand) -> tuple[int, ...]:
    """Return the shape, as hints, that an operand has once it is reshaped."""
    facts = tensor_facts(operand.node)
    if facts is None:
        refuse(operand.node, "no_sizes", f"Tracing left no sizes at {operand.node.target}.")
    return _reshaped(facts.shape, operand.shape)


def blocks_of(chain: Chain) -> int:
    """Return how many blocks of rows are dealt out to the ranks, as a hint."""
    return prod(_hint(dim) for dim in chain.outer)


def meta_operands(chain: Chain) -> list[torch.Tensor]:
    """Return tensors without content like what the op is given; sizes and strides are hints.

    What lies on another device than the chain's GEMMs, and a kernel cannot read, is on the CPU.
    """
    device = chain.gemms[0].device
    made = []
    for operand, shape, dtype in zip(chain.operands, *operand_facts(chain), strict=True):
        made.append(meta_operand(operand, shape, dtype, device))
    return made


def meta_operand(
    operand: Operand, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> torch.Tensor:
    """Return a tensor without content like one operand of a chain on a device."""
    value = value_of(operand.node)
    where = "meta" if value.device.type == device else "cpu"
    # Permuted, padded or filled it is made anew.
    is_new = operand.fill is not None or operand.permuted is not None
    own = [hint_of(size) for size in value.shape]
    if is_new or prod(own) != prod(shape):
        return torch.empty(shape, dtype=dtype, device=where)
    strides = [hint_of(stride) for stride in value.stride()]
    return torch.empty_strided(own, strides, dtype=dtype, device=where).reshape(shape)


def _hint(dim: Dim) -> int:
    return hint_of(size_of(dim))


def _reshaped(shape: Sequence[int], to: tuple[Dim, ...] | None) -> tuple[int, ...]:
    if to is None:
        return tuple(shape)
    sizes = [_hint(dim) for dim in to]
    if 0 in sizes and len(sizes) == len(shape):  # no number of elements says what is left
        return tuple(own if size == -1 else size for own, size in zip(shape, sizes, strict=True))
    rest = prod(size for size in sizes if size != -1)
    return tuple(prod(shape) // max(rest, 1) if size == -1 else size for size in sizes)


def batches_of_varying_rows(chain: Chain) -> int:
    """Return how many GEMMs a batched one is whose rows alone vary; 0 where it is none."""
    batches, *more = shape_of(chain.gemms[0].node)
    varies = is_batched(chain.gemms[0].node) and not is_static(more)
    return batches if varies and isinstance(batches, int) else 0


def symbolic_rows(chain: Chain) -> sympy.Expr | None:
    """Return the rows that are cut in terms of a symbol; None unless it is exactly one."""
    shape = shape_of(chain.gemms[0].node)[:-1]
    rows = prod(shape)
    if isinstance(rows, int) or batches_of_varying_rows(chain):
        return None
    expression = rows.node.expr
    return expression if len(expression.free_symbols) == 1 else None
