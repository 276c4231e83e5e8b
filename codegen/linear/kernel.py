"""A generated linear layer as something to call: checks what its spec promises, then launches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from overlapc.codegen.builder import built, generated
from overlapc.codegen.kernel import INT32_LIMIT, has_shape, input_strides, is_amd, name_of
from overlapc.codegen.linear.module import linear_module_text
from overlapc.codegen.linear.spec import LinearSpec
from overlapc.codegen.relaunching import Launched
from overlapc.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LinearKernel:
    """``C = x @ weight``, with its epilogue, for every size that keeps the facts of ``spec``;
    or several of them in one launch."""

    spec: LinearSpec
    path: Path
    """The generated module on disk: ``python <path>`` checks it."""
    module: ModuleType
    """The generated module, imported."""

    def tiles(self, sizes: Sequence[int]) -> int:
        """Tiles of results of so many columns each: counters that a launch of a split k needs."""
        return sum(-(-n // self.spec.block_n) for n in sizes)

    def part_elements(self, sizes: Sequence[int]) -> int:
        """Elements of float32 that a launch of a split k needs for its parts."""
        spec = self.spec
        each = spec.rows * (spec.weights * spec.block_n + spec.norm)
        return self.tiles(sizes) * spec.splits * each

    def __call__(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        *,
        inputs: Sequence[Sequence[Tensor]] = ((),),
        scales: Sequence[Tensor] = (),
        zeros: Sequence[Tensor] = (),
        gain: Tensor | None = None,
        parts: Tensor | None = None,
        arrivals: Tensor | None = None,
    ) -> Launched | None:
        """Launch on the current stream; returns how to launch it again, None if C is empty or
        Triton runs as an interpreter. Its tensors are x, then of each weight itself, its scale and
        its zero point, every C, each one's inputs, the gain, parts and arrivals, without those that
        are not promised.

        x[m, k] and each weight[k, n] have any strides that fit the spec; each C of ``outs`` is
        contiguous [m, n]. ``inputs`` are the epilogue's for each C, of any strides; ``scales`` of
        each weight and its ``zeros`` are [k / group, n], of any strides, ``gain`` of normed rows is
        contiguous [k].
        A split k needs ``parts``, float32 of
        ``part_elements`` in any state, and ``arrivals``, int32 of ``tiles`` that are zero and will
        be zero again: no two launches that may overlap share them. KernelError where any of this
        does not hold.
        """
        self._check(x, weights, outs, inputs, scales)
        self._check_scales(weights, zeros, self.spec.zeros)
        self._check_gain(x, gain)
        spec = self.spec
        (m, k), sizes = x.shape, tuple(c.shape[1] for c in outs)
        if m == 0 or sum(sizes) == 0:
            return None
        self._check_workspace(sizes, parts, arrivals)
        held = [(weight, *weight.stride()) for weight in weights]
        if spec.scales:
            pairs = zip(held, scales, strict=True)
            held = [(*weight, scale, *scale.stride()) for weight, scale in pairs]
        if spec.zeros:
            pairs = zip(held, zeros, strict=True)
            held = [(*weight, zero, *zero.stride()) for weight, zero in pairs]
        values = [
            tuple(
                part
                for item, tensor in zip(spec.chain.inputs, given, strict=True)
                for part in (tensor, *input_strides(item, tensor))
            )
            for given in inputs
        ]
        arguments = (
            x, tuple(held), tuple(outs), tuple(values), gain, parts, arrivals, m, k, sizes,
            *x.stride(),
        )  # fmt: skip
        constants = {**self.module.CONSTANTS, "IS_AMD": is_amd()}
        kernel, grid = self.module.KERNEL, (self.tiles(sizes), spec.splits, 1)
        compiled = kernel[grid](*arguments, **constants, **self.module.OPTIONS)
        if compiled is None:
            return None
        names = kernel.arg_names[len(arguments) :]
        return Launched(compiled[grid], arguments, tuple(constants[name] for name in names))

    def _check(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        inputs: Sequence[Sequence[Tensor]],
        scales: Sequence[Tensor],
    ) -> None:
        spec = self.spec
        count = spec.weights * spec.results
        if x.dim() != 2 or len(weights) != count or any(w.dim() != 2 for w in weights):
            raise self._error(f"it takes a matrix and {count} weights")
        if not len(outs) == len(inputs) == spec.results:
            raise self._error(f"it gives {spec.results} results")
        m, k = x.shape
        if m > spec.rows:
            raise self._error(f"there are {m} rows, and at most {spec.rows} are promised")
        held = spec.held or spec.dtype
        if name_of(x) != spec.dtype or any(name_of(w) != held for w in weights):
            raise self._error("the dtypes are not the spec's")
        if spec.even_k and k % spec.block_k:
            raise self._error(f"k is {k}, not a multiple of {spec.block_k}")
        sizes = [c.shape[-1] for c in outs for _ in range(spec.weights)]
        for weight, n in zip(weights, sizes, strict=True):
            if tuple(weight.shape) != (k, n):
                raise self._error(f"x{list(x.shape)} and {list(weight.shape)} do not fit")
            self._check_strides(weight)
        for c, given in zip(outs, inputs, strict=True):
            if c.dim() != 2 or len(c) != m or not c.is_contiguous():
                raise self._error(f"C is not a contiguous [{m}, n]")
            if name_of(c) != spec.out:
                raise self._error(f"C is of {name_of(c)}")
            self._check_inputs(given, m, c.shape[1])
        self._check_scales(weights, scales, self.spec.scales)

    def _check_strides(self, weight: Tensor) -> None:
        spec, strides = self.spec, weight.stride()
        unit = {"row": 1, "col": 0}.get(spec.weight)
        if unit is not None and strides[unit] != 1 and weight.shape[unit] > 1:
            raise self._error(f"a weight has strides {strides}, not the layout {spec.weight!r}")
        if spec.block_k * strides[0] + spec.block_n * strides[1] >= INT32_LIMIT:
            raise self._error(f"a tile of a weight with strides {strides} does not fit int32")

    def _check_gain(self, x: Tensor, gain: Tensor | None) -> None:
        if (gain is not None) != bool(self.spec.gain):
            raise self._error(f"a gain of {self.spec.gain or 'no dtype'} is promised")
        if gain is None:
            return
        is_row = tuple(gain.shape) == (x.shape[1],) and gain.is_contiguous()
        if name_of(gain) != self.spec.gain or not is_row:
            raise self._error(f"a gain is {name_of(gain)}{list(gain.shape)}")

    def _check_scales(
        self, weights: Sequence[Tensor], scales: Sequence[Tensor], dtype: str
    ) -> None:
        if len(scales) != (len(weights) if dtype else 0):
            raise self._error(f"scales or zero points of {dtype or 'no dtype'} are promised")
        for weight, scale in zip(weights, scales, strict=bool(dtype)):
            k, n = weight.shape
            groups = -(-k // self.spec.group) if self.spec.group else 1
            if name_of(scale) != dtype or tuple(scale.shape) != (groups, n):
                raise self._error(f"scales or zero points are {name_of(scale)}{list(scale.shape)}")

    def _check_inputs(self, inputs: Sequence[Tensor], m: int, n: int) -> None:
        promised = self.spec.chain.inputs
        if len(inputs) != len(promised):
            raise self._error(f"{len(promised)} inputs are promised")
        for item, tensor in zip(promised, inputs, strict=True):
            if name_of(tensor) != item.dtype or not has_shape(item, tensor, m, n):
                raise self._error(
                    f"an input is {name_of(tensor)}{list(tensor.shape)}, not the promised {item}"
                )

    def _check_workspace(
        self, sizes: Sequence[int], parts: Tensor | None, arrivals: Tensor | None
    ) -> None:
        if self.spec.splits == 1:
            return
        if parts is None or arrivals is None:
            raise self._error("a split k needs parts and arrivals")
        if name_of(parts) != "float32" or parts.numel() < self.part_elements(sizes):
            raise self._error(f"parts are not {self.part_elements(sizes)} of float32")
        if name_of(arrivals) != "int32" or arrivals.numel() < self.tiles(sizes):
            raise self._error(f"arrivals are not {self.tiles(sizes)} of int32")

    def _error(self, what: str) -> KernelError:
        return KernelError(
            f"This call does not fit its kernel: {what}.",
            where=str(self.spec),
            remedy="build a kernel for these operands, or leave the layer to the library",
        )


def build_linear(spec: LinearSpec) -> LinearKernel:
    """The kernel of ``spec``: from memory, else from disk, else generated.

    Compiles nothing for a device: Triton does that at the first launch, through its own cache.
    KernelError where Triton is missing.
    """
    return built(spec, lambda: LinearKernel(spec, *generated(linear_module_text(spec), spec.KIND)))
