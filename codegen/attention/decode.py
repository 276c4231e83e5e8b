"""A generated decode attention as something to call: checks what is promised, then launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.checking import Sizes, misfit_of, sizes_of
from overlapc.codegen.attention.decode_checking import decode_misfit, misfit_of_memory
from overlapc.codegen.attention.decode_module import KIND, decode_text
from overlapc.codegen.attention.kernel import (
    fill_without_keys,
    input_parts,
    length_parts,
    moves_of_phi,
)
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.builder import generated
from overlapc.codegen.kernel import is_amd
from overlapc.codegen.relaunching import Known, Launched, lies
from overlapc.errors import KernelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Workspace:
    """Memory in which the CTAs of one launch meet. One launch at a time may use it, any number in
    stream order, by replays of a captured graph as well."""

    partials: Tensor
    """float32; what is in it does not matter."""
    arrived: Tensor
    """int32, one for each block of rows; zero before the first launch, and after each. Empty where
    one CTA computes each block."""
    moves: Tensor | None = None
    """As of ``moves_of_phi``, zero again after each launch."""


@dataclass(frozen=True)
class DecodeKernel:
    """The attention of ``spec`` over a cache: CTAs share the keys of each head out."""

    spec: AttentionSpec
    cache: Cache
    tile: AttentionTile
    path: Path
    """The generated module on disk."""
    module: ModuleType
    """The generated module, imported."""
    known: Known = field(default_factory=Known, init=False, compare=False, repr=False)

    def blocks(self, rows: int) -> int:
        """Blocks of packed rows of one head of keys."""
        return -(-rows * self.spec.groups // self.tile.block_m)

    def workspace(
        self, q: Tensor, splits: int, zeros: Callable[[int, torch.device], Tensor] | None = None
    ) -> Workspace:
        """Memory for launches on queries like ``q`` with up to ``splits`` CTAs a block.

        ``zeros`` gives counters that are zero, int32; without it a memset makes them.
        """
        import torch

        units = q.shape[0] * (q.shape[1] // self.spec.groups) * self.blocks(q.shape[2])
        meeting = units if splits > 1 else 0  # one CTA a block meets nobody
        return Workspace(
            torch.empty(meeting * splits * self._part, dtype=torch.float32, device=q.device),
            (zeros or _zeros)(meeting, q.device),
            moves_of_phi(self.spec, q),
        )

    @property
    def _part(self) -> int:
        """Numbers that one CTA leaves: its sums of values, and two of each row."""
        return self.tile.block_m * (self.module.CONSTANTS["BLOCK_V"] + 2)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        *,
        splits: int,
        workspace: Workspace,
        inputs: Sequence[Tensor] = (),
        lengths: Tensor | None = None,
        table: Tensor | None = None,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        phi: Tensor | None = None,
        sinks: Tensor | None = None,
        lse: Tensor | None = None,
        redone: Tensor | None = None,
    ) -> None:
        """Launch on the current stream, and write every element of ``out`` and ``lse``.

        Arguments are as of ``AttentionKernel``, k and v as of ``Cache``. ``table`` is
        int32[batch, pages], ``k_scale`` and ``v_scale`` float32[1] or [heads of keys]. At most
        ``splits`` CTAs share the keys of a block of rows, whatever its length:
        ``planning.decode_splits`` says how many pay. Equal calls give equal bits; another
        ``splits`` may add in another order. KernelError where this does not hold.
        """
        tensors = (
            q, k, v, out, lse, *inputs, lengths, table, k_scale, v_scale, phi, sinks, redone,
            workspace.partials, workspace.arrived, workspace.moves,
        )  # fmt: skip
        is_beginning = k.data_ptr() == v.data_ptr()  # where values are shared they have to be
        key = (splits, is_beginning, lies(tensors))
        launch = self.known.get(key)
        if launch is not None:
            read = (q, self._read(k), self._as_read(v), *tensors[3:])
            launch([tensor for tensor in read if tensor is not None])
            return
        keys = k.shape[-2] if table is None else table.shape[-1] * self.cache.page
        sizes = replace(sizes_of(q, k, v), keys=keys)
        why = decode_misfit(
            self.spec, self.cache, sizes, (q, k, v, out), inputs, lengths, phi, sinks, lse, redone,
            table, (k_scale, v_scale),
        ) or self._misfit_of(workspace, sizes, splits, q)  # fmt: skip
        if why:
            raise self._error(why)
        if not (sizes.batch and sizes.heads and sizes.rows):
            return
        if not keys:
            fill_without_keys(out, lse, sinks)
            return
        k, v = self._read(k), self._as_read(v)
        launched = self._launch(
            sizes, splits, (q, k, v, out, lse), input_parts(self.spec.inputs, inputs, sizes),
            (length_parts(lengths), table, k_scale, v_scale, phi, sinks, redone), workspace,
        )  # fmt: skip
        if launched is not None:
            self.known.keep(key, launched.again(range(sum(one is not None for one in tensors))))

    def _launch(
        self,
        sizes: Sizes,
        splits: int,
        sides: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
        inputs: tuple[Any, ...],
        others: tuple[Any, ...],
        workspace: Workspace,
    ) -> Launched | None:
        """Launch what fits; how to do so again, or None in Triton's interpreter."""
        q, k, v, out, _ = sides
        _, table, k_scale, *_ = others
        heads = sizes.heads // self.spec.groups
        scale_stride = 0 if k_scale is None or k_scale.numel() == 1 else 1
        arguments = (
            *sides, inputs, *others, workspace.partials, workspace.arrived, workspace.moves, heads,
            sizes.rows, sizes.keys, splits, q.stride(), k.stride(), v.stride(), out.stride(),
            0 if table is None else table.stride(0), scale_stride,
        )  # fmt: skip
        constants = {**self.module.CONSTANTS, "IS_AMD": is_amd(), "PAIRS": self._takes_pairs(v)}
        options = dict(self.module.OPTIONS)
        if is_amd():  # which refuses options that it does not know
            options.pop("maxnreg", None)
        kernel = self.module.KERNEL
        grid = (sizes.batch * heads * self.blocks(sizes.rows), splits, 1)
        compiled = kernel[grid](*arguments, **constants, **options)
        if compiled is None:
            return None
        names = kernel.arg_names[len(arguments) :]
        return Launched(compiled[grid], arguments, tuple(constants[name] for name in names))

    def _read(self, k: Tensor) -> Tensor:
        """What of keys a launch reads beside values."""
        if self.cache.shares_values and k.shape[3] == self.spec.head_dim:
            k = k[..., self.spec.value_dim :]
        return self._as_read(k)

    def _as_read(self, side: Tensor) -> Tensor:
        import torch

        is_bytes = self.cache.comes_as_bytes(self.spec, sm_of(side.device))
        return side.view(torch.uint8) if is_bytes else side

    def _takes_pairs(self, v: Tensor) -> bool:
        """Whether each even column of values and the next one lie as a number of 16 bits does."""
        *steps, last = v.stride()
        lie_so = last == 1 and not any(step % 2 for step in (*steps, v.data_ptr()))
        architecture = "gfx" if is_amd() else sm_of(v.device)
        return lie_so and self.cache.has_pairs(self.spec, architecture)

    def _misfit_of(self, workspace: Workspace, sizes: Sizes, splits: int, q: Tensor) -> str:
        units = sizes.batch * (sizes.heads // self.spec.groups) * self.blocks(sizes.rows)
        if not 0 < splits < 2**16:
            return f"{splits} CTAs cannot share the keys of a head"
        heads = (2, sizes.heads)
        if why := misfit_of("moves", workspace.moves, heads, ("int64",), self.spec.moves_phi):
            return why
        if splits == 1:
            return ""
        numbers = units * splits * self._part
        return misfit_of_memory("counters", workspace.arrived, "int32", units, q) or (
            misfit_of_memory("partial sums", workspace.partials, "float32", numbers, q)
        )

    def _error(self, what: str) -> KernelError:
        return KernelError(
            f"This call does not fit its kernel: {what}.",
            where=f"{self.cache} of {self.spec}",
            remedy="build a kernel for these operands, or use scaled_dot_product_attention",
        )


@lru_cache(maxsize=512)
def build_decode(spec: AttentionSpec, cache: Cache, tile: AttentionTile) -> DecodeKernel:
    """The decode kernel of ``spec``; compiles nothing for a device, as ``build_attention``.

    KernelError where scores cannot be lowered, the cache cannot be read, or Triton is missing.
    """
    cache.check(spec)
    return DecodeKernel(spec, cache, tile, *generated(decode_text(spec, cache, tile), KIND))


def _zeros(count: int, device: torch.device) -> Tensor:
    import torch

    return torch.zeros(count, dtype=torch.int32, device=device)


def sm_of(device: torch.device) -> str:
    """Return ``sm_<number>`` of a GPU of NVIDIA, and nothing of other devices."""
    import torch

    if device.type != "cuda" or is_amd():
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
