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

from overlapc.codegen.attention.backward_module import SUMS, backward_text, of_gradients, parts_of
from overlapc.codegen.attention.checking import Sizes, misfit, misfit_of_sides, sizes_of
from overlapc.codegen.attention.kernel import MOST_DIM, input_parts
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
        lse_gradient: Tensor | None = None,
    ) -> Tensor:
        """Launch on the current stream, and write every element of the gradients.

        Operands are those of ``AttentionKernel``, with what it made of them; ``slopes``, the
        gradient of ``out``, and the other gradients are shaped as what they are of and have any
        strides; of inputs, those for which it was built are given, in their places.
        ``lse_gradient`` is None or contiguous. Returns float32[batch, groups * heads, rows]: of
        each row the sum of ``out * slopes``, less ``lse_gradient``. KernelError where any of this
        does not hold.
        """
        sizes = sizes_of(q, k, v)
        sides = (q, k, v, out)
        why = (
            misfit(self.spec, sizes, sides, inputs, lengths, None, sinks, lse, None)
            or misfit_of_sides(self.spec, sizes, (q_gradient if q_gradient is not None else q,
                                                  k_gradient, v_gradient, slopes))
        )  # fmt: skip
        for tensor, gradient in zip(inputs, input_gradients, strict=False):
            if gradient is not None and gradient.shape != tensor.shape:
                why = why or f"{list(gradient.shape)} is no gradient of {list(tensor.shape)}"
        if why:
            raise self._error(why)
        delta = lse.new_empty(lse.shape)
        poison = lse.new_zeros(lse.shape[:2])
        if not delta.numel() or not sizes.keys:
            for gradient in (q_gradient, k_gradient, v_gradient, *input_gradients):
                if gradient is not None:
                    gradient.zero_()
            return delta.zero_()
        self._launch("rows", sizes)(
            out, slopes, lse, lse_gradient, delta, poison, sizes.heads, sizes.rows, out.stride(),
            slopes.stride(),
        )  # fmt: skip
        parts = input_parts(self.spec.inputs, inputs, sizes)
        shares = lse.new_empty(lse.shape) if "shares" in self.modules else None
        if shares is not None:
            self._launch("shares", sizes)(
                q, k, lse, shares, parts, lengths, sinks, sizes.heads, sizes.rows, sizes.keys,
                q.stride(), k.stride(),
            )  # fmt: skip
        self._launch("keys", sizes)(
            q, k, v, slopes, lse, delta, poison, shares, k_gradient, v_gradient, parts, lengths,
            sizes.heads, sizes.rows, sizes.keys, q.stride(), k.stride(), v.stride(),
            slopes.stride(), k_gradient.stride(), v_gradient.stride(),
        )  # fmt: skip
        if q_gradient is not None:
            self._launch("queries", sizes)(
                q, k, v, slopes, lse, delta, shares, q_gradient, parts, lengths,
                sizes.heads, sizes.rows, sizes.keys, q.stride(), k.stride(), v.stride(),
                slopes.stride(), q_gradient.stride(),
            )  # fmt: skip
        for index, gradient in enumerate(input_gradients):
            if gradient is None:
                continue
            part, item = f"input {index}", self.spec.inputs[index]
            whole, own = partial_sums(item, gradient, sizes)
            sums_heads = SUMS.get(item.shape) == "heads"
            shared = (sizes.heads // own[1], sizes.batch // own[0]) if sums_heads else (1, 1)
            self._launch(part, sizes, own)(
                q, k, v, slopes, lse, delta, shares, whole, parts, lengths,
                sizes.heads, sizes.rows, sizes.keys, own[1], *shared, q.stride(), k.stride(),
                v.stride(), slopes.stride(), whole.stride(),
            )  # fmt: skip
            if whole.data_ptr() != gradient.data_ptr():
                shape = (1,) * (4 - gradient.dim()) + tuple(gradient.shape)
                gradient.copy_(whole.sum_to_size(shape).view(gradient.shape))
        return delta

    def _launch(
        self, part: str, sizes: Sizes, of: tuple[int, int, int, int] | None = None
    ) -> Callable[..., None]:
        """Call it with what the kernel of a part takes but for constants; ``of``: the sizes of the
        gradient of an input."""
        module, tile = self.modules[part], self.tiles[part]
        rows, keys = -(-sizes.rows // tile.block_m), -(-sizes.keys // tile.block_n)
        programs = rows * sizes.heads * sizes.batch
        if part == "keys":
            programs = keys * (sizes.heads // self.spec.groups) * sizes.batch
        if of is not None:
            # One row or key is one block: of itself, or what all are summed to.
            blocks = (rows if of[2] > 1 else 1) * (keys if of[3] > 1 else 1)
            programs = blocks * of[0] * of[1]

        def launch(*arguments: object) -> None:
            module.KERNEL[(programs,)](*arguments, **module.CONSTANTS, **module.OPTIONS)

        return launch

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


def partial_sums(
    item: Input, gradient: Tensor, sizes: Sizes
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Where a kernel writes the gradient of an input, of four dimensions, and their sizes.

    It is the gradient itself where only heads and batches are summed; else float32 sums of each
    head, of which torch makes the rest.
    """
    every = (sizes.batch, sizes.heads)
    shape = (1,) * (4 - gradient.dim()) + tuple(gradient.shape)
    own = {
        "heads": (shape[0], shape[1], sizes.rows, sizes.keys),
        "rows": (*every, 1, sizes.keys),
    }.get(SUMS.get(item.shape, "keys"), (*every, sizes.rows, 1))
    if own == shape:
        return gradient.view(shape), own
    import torch

    return gradient.new_empty(own, dtype=torch.float32), own
