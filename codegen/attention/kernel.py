"""A generated attention as something to call: checks what its spec promises, then launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from overlapc.codegen.attention.checking import INPUT_SHAPES, Sizes, misfit, sizes_of
from overlapc.codegen.attention.descriptors import descriptor, fits_tma
from overlapc.codegen.attention.launch_order import together_of_rows
from overlapc.codegen.attention.looking import KeptTiles
from overlapc.codegen.attention.module import module_text
from overlapc.codegen.attention.scores import PARTS
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.builder import generated
from overlapc.codegen.epilogue import Input
from overlapc.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor

MOST_DIM = 256
"""Of a head: a block of rows of queries, and one of sums, stay in registers."""


@dataclass(frozen=True)
class AttentionKernel:
    """The attention of ``spec``, a CTA for each block of rows of each head."""

    spec: AttentionSpec
    tile: AttentionTile
    path: Path
    """The generated module on disk."""
    module: ModuleType
    """The generated module, imported."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        *,
        inputs: Sequence[Tensor] = (),
        lengths: Tensor | None = None,
        phi: Tensor | None = None,
        sinks: Tensor | None = None,
        lse: Tensor | None = None,
        redone: Tensor | None = None,
    ) -> None:
        """Launch on the current stream, and write every element of ``out`` and ``lse``.

        q[batch, groups * heads, rows, head_dim], k[batch, heads, keys, head_dim], v[batch, heads,
        keys, value_dim] and out[batch, groups * heads, rows, value_dim] have any strides.
        ``inputs`` are the program's, each of a shape that broadcasts to [batch, groups * heads,
        rows, keys]. ``lengths`` is int32[batch] of any stride, ``phi`` float32[groups * heads],
        which a launch changes where softmax is running, ``sinks`` [groups * heads] of any floating
        dtype, ``lse`` contiguous [batch, groups * heads, rows] of float32 or float64. ``redone``,
        int64[1] or int32[1], is added the rows that were computed a second time; it is needed but
        where softmax is online. A tile ``by_tma`` takes k and v that ``fits_tma``. KernelError
        where any of this does not hold.
        """
        sizes = sizes_of(q, k, v)
        why = misfit(self.spec, sizes, (q, k, v, out), inputs, lengths, phi, sinks, lse, redone)
        if why:
            raise self._error(why)
        if not (sizes.batch and sizes.heads and sizes.rows):
            return
        if not sizes.keys:
            fill_without_keys(out, lse, sinks)
            return
        by_tma = self._by_tma(k, v)
        blocks = -(-sizes.rows // self.tile.block_m)
        parts = input_parts(self.spec.inputs, inputs, sizes)
        ends = length_parts(lengths)
        kept = KeptTiles(self.spec, q.device, inputs, parts, ends, sizes)
        self.module.KERNEL[(blocks * sizes.heads * sizes.batch,)](
            q, k, v, out, lse, parts, ends, phi, moves_of_phi(self.spec, q), sinks, redone,
            *kept.of(self.module, self.tile), *by_tma, sizes.heads, sizes.rows, sizes.keys,
            together_of_rows(self.spec, sizes), q.stride(), k.stride(), v.stride(), out.stride(),
            **self.module.CONSTANTS, **self.module.OPTIONS,
        )  # fmt: skip

    def _by_tma(self, k: Tensor, v: Tensor) -> tuple[Any, Any]:
        """Descriptors of both; None where they are loaded by pointers."""
        if not self.tile.by_tma:
            return None, None
        if not (fits_tma(k) and fits_tma(v)):
            raise self._error("the TMA unit cannot read k and v as they lie")
        rows, constants = self.tile.block_n, self.module.CONSTANTS
        return descriptor(k, rows, constants["BLOCK_D"]), descriptor(v, rows, constants["BLOCK_V"])

    def _error(self, what: str) -> KernelError:
        return KernelError(
            f"This call does not fit its kernel: {what}.",
            where=str(self.spec),
            remedy="build a kernel for these operands, or use scaled_dot_product_attention",
        )


@lru_cache(maxsize=512)
def build_attention(spec: AttentionSpec, tile: AttentionTile) -> AttentionKernel:
    """The kernel of ``spec``; compiles nothing for a device, which Triton does at the first launch.

    KernelError where scores cannot be lowered, heads are too wide, or Triton is missing.
    """
    if max(spec.head_dim, spec.value_dim) > MOST_DIM:
        raise KernelError(
            f"Heads of more than {MOST_DIM} have no kernel for many rows.",
            where=str(spec),
            remedy="use the decode kernel for few rows, or scaled_dot_product_attention",
        )
    return AttentionKernel(spec, tile, *generated(module_text(spec, tile), spec.KIND))


def fill_without_keys(out: Tensor, lse: Tensor | None, sinks: Tensor | None) -> None:
    """Write what an attention over no key is: a sum of nothing is zero, in eager as well, whatever
    the softmax makes of a sink alone."""
    out.zero_()
    if lse is None:
        return
    if sinks is None:
        lse.fill_(-float("inf"))
    else:
        lse.copy_(sinks[:, None])


def moves_of_phi(spec: AttentionSpec, q: Tensor) -> Tensor | None:
    """What CTAs of one launch add up to move φ by, zeros int64[2, heads]; None where it stays."""
    import torch

    if not spec.moves_phi:
        return None
    return torch.zeros((2, q.shape[1]), dtype=torch.int64, device=q.device)


def length_parts(lengths: Tensor | None) -> tuple[Tensor, int] | None:
    """What kernels are told of lengths: where they are, and how far apart. One of all sequences
    is read as often as there are, and need not be copied."""
    return None if lengths is None else (lengths, lengths.stride(0))


def input_parts(
    promised: Sequence[Input], inputs: Sequence[Tensor], sizes: Sizes
) -> tuple[Any, ...]:
    """What a kernel is told of the inputs of scores: ``scores.PARTS`` of each."""
    parts: list[Any] = []
    for item, tensor in zip(promised, inputs, strict=True):
        parts.append(tensor)
        if item.shape == "scalar":
            continue
        wide = tensor.expand(sizes.batch, sizes.heads, *INPUT_SHAPES[item.shape](sizes))
        batch, head, row, key = wide.stride()
        own = {"matrix": (row, key), "column": (row,), "vector": (key,), "one": ()}[item.shape]
        parts += (batch, head, *own)
        assert len(own) + 3 == PARTS[item.shape]
    return tuple(parts)
