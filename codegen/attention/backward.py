"""The backward of a generated attention as something to call: checks its operands, then launches.

It makes the weights again from the logarithms of sums that the forward left. Every sum is made by
one program in a fixed order: the same call gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

from overlapc.codegen.attention.backward_module import (
    SUMS,
    backward_text,
    has_shares,
    of_gradients,
    parts_of,
)
from overlapc.codegen.attention.checking import Sizes, misfit, misfit_of_sides, sizes_of
from overlapc.codegen.attention.kernel import MOST_DIM, input_parts, length_parts
from overlapc.codegen.attention.launch_order import together_of_keys, together_of_rows
from overlapc.codegen.attention.looking import KeptTiles
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.builder import generated
from overlapc.codegen.epilogue import Input
from overlapc.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor

KIND = "attention_backward"


@dataclass(frozen=True)
class AttentionBackward:
    """The gradients of the attention of ``spec``."""

    spec: AttentionSpec
    """Without its policy: that only matters to the forward."""
    tiles: Mapping[str, AttentionTile]
    modules: Mapping[str, ModuleType]
    """By the names that ``parts_of`` gives, as the tiles."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        slopes: Tensor,
        *,
        q_gradient: Tensor | None,
        k_gradient: Tensor,
        v_gradient: Tensor,
        input_gradients: Sequence[Tensor | None] = (),
        inputs: Sequence[Tensor] = (),
        lengths: Tensor | None = None,
        sinks: Tensor | None = None,
        sinks_gradient: Tensor | None = None,
        lse_gradient: Tensor | None = None,
    ) -> None:
        """Launch on the current stream, and write every element of the gradients.

        Operands are those of ``AttentionKernel``, with what it made of them; ``slopes``, the
        gradient of ``out``, and the other gradients are shaped as what they are of and have any
        strides; of inputs, those for which it was built are given, in their places.
        ``lse_gradient`` is None or contiguous, of float32. KernelError where any of this does not
        hold.
        """
        import torch

        sizes = sizes_of(q, k, v)
        of_q = q if q_gradient is None else q_gradient
        why = (
            misfit(self.spec, sizes, (q, k, v, out), inputs, lengths, None, sinks, lse, None)
            or misfit_of_sides(self.spec, sizes, (of_q, k_gradient, v_gradient, slopes))
            or _misfit_of_gradients(inputs, input_gradients)
        )
        if why:
            raise self._error(why)
        if not lse.numel() or not sizes.keys:
            every = (q_gradient, k_gradient, v_gradient, *input_gradients, sinks_gradient)
            for gradient in every:
                if gradient is not None:
                    gradient.zero_()
            if sinks_gradient is not None and lse_gradient is not None:
                sinks_gradient.copy_(lse_gradient.sum((0, 2)))  # the logarithm is the sink
            return
        # Each of its own: where the second half of one lay would go by the number of rows.
        bases = lse.new_empty(lse.shape, dtype=torch.float32)
        delta = torch.empty_like(bases)
        poison = bases.new_zeros(lse.shape[:2])
        shares = torch.empty_like(bases) if has_shares(self.spec) else None
        counts = (sizes.heads, sizes.rows, sizes.keys)
        of_rows, of_keys = sizes.heads * sizes.batch, sizes.heads // self.spec.groups * sizes.batch
        self._launch(
            "rows", self._blocks("rows", sizes)[0] * of_rows,
            out, slopes, lse, lse_gradient, bases, shares, delta, poison, *counts[:2],
            out.stride(), slopes.stride(),
        )  # fmt: skip
        parts = input_parts(self.spec.inputs, inputs, sizes)
        ends = length_parts(lengths)
        tiles = KeptTiles(self.spec, q.device, inputs, parts, ends, sizes)

        def kept(part: str) -> tuple[Tensor | None, int]:
            return tiles.of(self.modules[part], self.tiles[part])

        if "shares" in self.modules:
            self._launch(
                "shares", self._blocks("shares", sizes)[0] * of_rows,
                q, k, bases, shares, parts, ends, *kept("shares"), sinks, *counts, q.stride(),
                k.stride(),
            )  # fmt: skip
        left = (q, k, v, slopes, bases, delta)
        strides = (q.stride(), k.stride(), v.stride(), slopes.stride())
        self._launch(
            "keys", self._blocks("keys", sizes)[1] * of_keys,
            *left, poison, shares, k_gradient, v_gradient, parts, ends, *kept("keys"), *counts,
            together_of_keys(self.spec, sizes), *strides, k_gradient.stride(), v_gradient.stride(),
        )  # fmt: skip
        if q_gradient is not None:
            self._launch(
                "queries", self._blocks("queries", sizes)[0] * of_rows,
                *left, poison, shares, q_gradient, parts, ends, *kept("queries"), *counts,
                together_of_rows(self.spec, sizes), *strides, q_gradient.stride(),
            )  # fmt: skip
        for index, gradient in enumerate(input_gradients):
            if gradient is not None:
                others = (parts, ends, *kept(f"input {index}"), *counts)
                sides = (*left, poison, shares)
                self._sum_input(index, gradient, sizes, sides, others, strides)
        if sinks is not None and sinks_gradient is not None:
            # A sink has a weight and no value: what it adds to the gradient is its part of delta.
            weight = torch.exp(sinks.float()[:, None] - lse)
            if self.spec.dead == "zero":
                weight = weight.masked_fill(lse == -torch.inf, 0.0)  # nor has such a row a weight
            if shares is not None and "shares" in self.modules:  # of scores in nats
                weight = torch.exp(sinks.float()[:, None] - bases) * shares
            sinks_gradient.copy_(-(weight * delta).sum((0, 2)))

    def _sum_input(
        self,
        index: int,
        gradient: Tensor,
        sizes: Sizes,
        sides: tuple[Tensor | None, ...],
        others: tuple[object, ...],
        strides: tuple[object, ...],
    ) -> None:
        """Write the gradient of one input, of whatever the kernel takes before and after it."""
        item = self.spec.inputs[index]
        sums = sums_of(item, gradient, sizes)
        batches, heads, *own = sums.shape
        is_heads = SUMS.get(item.shape) == "heads"
        shared = (sizes.heads // heads, sizes.batch // batches) if is_heads else (1, 1)
        rows, keys = self._blocks(f"input {index}", sizes)
        # One row or key is one block: of itself, or what all are summed to.
        blocks = (rows if own[0] > 1 else 1) * (keys if own[1] > 1 else 1)
        self._launch(
            f"input {index}", blocks * heads * batches,
            *sides, sums, *others, heads, *shared, *strides, sums.stride(),
        )  # fmt: skip
        if sums.data_ptr() != gradient.data_ptr():
            gradient.copy_(sums.sum_to_size(_wide_shape(gradient)).view(gradient.shape))

    def _blocks(self, part: str, sizes: Sizes) -> tuple[int, int]:
        """Of rows and of keys."""
        tile = self.tiles[part]
        return -(-sizes.rows // tile.block_m), -(-sizes.keys // tile.block_n)

    def _launch(self, part: str, programs: int, *arguments: object) -> None:
        module = self.modules[part]
        module.KERNEL[(programs,)](*arguments, **module.CONSTANTS, **module.OPTIONS)

    def _error(self, what: str) -> KernelError:
        return KernelError(
            f"This call does not fit its kernels: {what}.",
            where=f"the backward of {self.spec}",
            remedy="build kernels for these operands, or let torch compute the gradients",
        )


def build_backward(
    spec: AttentionSpec,
    tile_of: Callable[[AttentionSpec, str], AttentionTile],
    of_inputs: Iterable[int] = (),
) -> AttentionBackward:
    """The backward of ``spec``, with the tile of each part; compiles nothing for a device.

    It gives gradients of q, k, v and of the inputs of these indices.
    KernelError where scores cannot be lowered or have no derivative, heads are too wide, or Triton
    is missing.
    """
    spec = of_gradients(spec)
    return _built(spec, tuple((part, tile_of(spec, part)) for part in parts_of(spec, of_inputs)))


@lru_cache(maxsize=512)
def _built(spec: AttentionSpec, tiles: tuple[tuple[str, AttentionTile], ...]) -> AttentionBackward:
    if max(spec.head_dim, spec.value_dim) > MOST_DIM:
        raise KernelError(
            f"Heads of more than {MOST_DIM} have no backward kernel.",
            where=str(spec),
            remedy="let torch compute the gradients",
        )
    modules = {part: generated(backward_text(spec, part, tile), KIND)[1] for part, tile in tiles}
    return AttentionBackward(spec, dict(tiles), modules)


def sums_of(item: Input, gradient: Tensor, sizes: Sizes) -> Tensor:
    """Where a kernel writes what it sums of the gradient of an input, of four dimensions.

    It is the gradient itself where only heads and batches are summed; else float32 sums of each
    head, of which torch makes the rest, always in the same order.
    """
    import torch

    every = (sizes.batch, sizes.heads)
    own = _wide_shape(gradient)
    shape = {
        "heads": (*own[:2], sizes.rows, sizes.keys),
        "rows": (*every, 1, sizes.keys),
        "keys": (*every, sizes.rows, 1),
    }[SUMS.get(item.shape, "keys")]
    is_whole = item.shape == "matrix" and shape == own
    return gradient.view(own) if is_whole else gradient.new_empty(shape, dtype=torch.float32)


def _wide_shape(tensor: Tensor) -> tuple[int, ...]:
    return (1,) * (4 - tensor.dim()) + tuple(tensor.shape)


def _misfit_of_gradients(inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> str:
    for tensor, gradient in zip(inputs, gradients, strict=False):
        if gradient is not None and gradient.shape != tensor.shape:
            return f"{list(gradient.shape)} is no gradient of {list(tensor.shape)}"
    return ""
