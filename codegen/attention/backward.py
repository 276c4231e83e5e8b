"""The backward of a generated attention as something to call: checks its operands, then launches.

It makes the weights again from the logarithms of sums that the forward left. Every sum is made by
one program in a fixed order: the same call gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

from overlapc.codegen.attention.backward_module import PARTS, backward_text, of_gradients
from overlapc.codegen.attention.checking import Sizes, misfit, misfit_of_sides, sizes_of
from overlapc.codegen.attention.kernel import MOST_DIM, input_parts
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.builder import generated
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
    """By the names of ``PARTS``, as the tiles."""

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
        inputs: Sequence[Tensor] = (),
        lengths: Tensor | None = None,
        sinks: Tensor | None = None,
        lse_gradient: Tensor | None = None,
    ) -> Tensor:
        """Launch on the current stream, and write every element of the gradients.

        Operands are those of ``AttentionKernel``, with what it made of them; ``slopes``, the
        gradient of ``out``, and the other gradients are shaped as what they are of and have any
        strides. ``lse_gradient`` is None or contiguous. Returns float32[batch, groups * heads,
        rows]: of each row the sum of ``out * slopes``, less ``lse_gradient``. KernelError where
        any of this does not hold.
        """
        sizes = sizes_of(q, k, v)
        sides = (q, k, v, out)
        why = (
            misfit(self.spec, sizes, sides, inputs, lengths, None, sinks, lse, None)
            or misfit_of_sides(self.spec, sizes, (q_gradient if q_gradient is not None else q,
                                                  k_gradient, v_gradient, slopes))
        )  # fmt: skip
        if why:
            raise self._error(why)
        delta = lse.new_empty(lse.shape)
        poison = lse.new_zeros(lse.shape[:2])
        if not delta.numel() or not sizes.keys:
            for gradient in (q_gradient, k_gradient, v_gradient):
                if gradient is not None:
                    gradient.zero_()
            return delta.zero_()
        self._launch("rows", sizes)(
            out, slopes, lse, lse_gradient, delta, poison, sizes.heads, sizes.rows, out.stride(),
            slopes.stride(),
        )  # fmt: skip
        parts = input_parts(self.spec.inputs, inputs, sizes)
        self._launch("keys", sizes)(
            q, k, v, slopes, lse, delta, poison, None, k_gradient, v_gradient, parts, lengths,
            sizes.heads, sizes.rows, sizes.keys, q.stride(), k.stride(), v.stride(),
            slopes.stride(), k_gradient.stride(), v_gradient.stride(),
        )  # fmt: skip
        if q_gradient is not None:
            self._launch("queries", sizes)(
                q, k, v, slopes, lse, delta, None, q_gradient, parts, lengths,
                sizes.heads, sizes.rows, sizes.keys, q.stride(), k.stride(), v.stride(),
                slopes.stride(), q_gradient.stride(),
            )  # fmt: skip
        return delta

    def _launch(self, part: str, sizes: Sizes) -> Callable[..., None]:
        """Call it with what the kernel of a part takes but for constants."""
        module, tile = self.modules[part], self.tiles[part]
        blocks = {
            "keys": -(-sizes.keys // tile.block_n) * (sizes.heads // self.spec.groups),
        }.get(part, -(-sizes.rows // tile.block_m) * sizes.heads)

        def launch(*arguments: object) -> None:
            module.KERNEL[(blocks * sizes.batch,)](*arguments, **module.CONSTANTS, **module.OPTIONS)

        return launch

    def _error(self, what: str) -> KernelError:
        return KernelError(
            f"This call does not fit its kernels: {what}.",
            where=f"the backward of {self.spec}",
            remedy="build kernels for these operands, or let torch compute the gradients",
        )


def build_backward(
    spec: AttentionSpec, tile_of: Callable[[AttentionSpec, str], AttentionTile]
) -> AttentionBackward:
    """The backward of ``spec``, with the tile of each part; compiles nothing for a device.

    KernelError where scores cannot be lowered or have no derivative, heads are too wide, or Triton
    is missing.
    """
    spec = of_gradients(spec)
    return _built(spec, tuple((part, tile_of(spec, part)) for part in PARTS))


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
