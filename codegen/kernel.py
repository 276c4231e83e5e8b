"""A generated GEMM as something to call: checks what its spec promises, then launches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor

INT32_LIMIT = 2**31


@dataclass(frozen=True)
class Kernel:
    """``C = A @ B (+ bias)`` for every size that keeps the facts of ``spec``."""

    spec: GemmSpec
    path: Path
    """The generated module on disk: ``python <path>`` checks it."""
    module: ModuleType
    """The generated module, imported."""

    def tiles(self, m: int, n: int) -> int:
        """Tiles of C[m, n]: more CTAs than these have nothing to do."""
        return -(-m // self.spec.block_m) * self.tiles_n(n)

    def tiles_n(self, n: int) -> int:
        """Tiles in one tile row of C."""
        return -(-n // self.spec.block_n)

    def __call__(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        *,
        ctas: int,
        bias: Tensor | None = None,
        bands: Tensor | None = None,
        counters: Tensor | None = None,
    ) -> Any:
        """Launch on the current stream; returns what Triton's launcher returns, None if C is empty.

        A[m, k] and B[k, n] have any strides that fit the spec's layouts; C[m, n] and bias[n] are
        contiguous. ``ctas`` programs stay resident and share the tiles. A spec with signals needs
        ``bands``, int32, ``Bands.table`` on the device, and ``counters``, int32[groups or more,
        COUNTER_STRIDE], zeroed before in stream order. KernelError where any of this does not hold.
        """
        self._check(a, b, c, bias)
        if self.spec.signals and (bands is None or counters is None):
            raise self._error("a kernel that signals needs its bands and counters")
        if ctas < 1:
            raise self._error(f"{ctas} CTAs cannot compute anything")
        (m, k), n = a.shape, b.shape[1]
        if m == 0 or n == 0:
            return None
        ctas = min(ctas, self.tiles(m, n))
        return self.module.KERNEL[(ctas,)](
            a, b, bias, c, bands, counters, m, n, k, *a.stride(), *b.stride(), ctas,
            **self.module.CONSTANTS, **self.module.OPTIONS,
        )  # fmt: skip

    def _check(self, a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None) -> None:
        spec = self.spec
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
            raise self._error(f"A{list(a.shape)} and B{list(b.shape)} cannot be multiplied")
        m, n = a.shape[0], b.shape[1]
        if tuple(c.shape) != (m, n) or not c.is_contiguous():
            raise self._error(f"C is not a contiguous [{m}, {n}]")
        if (bias is not None) != spec.bias or (bias is not None and tuple(bias.shape) != (n,)):
            raise self._error(f"the bias is not as promised: [{n}] iff the spec says so")
        if bias is not None and not bias.is_contiguous():
            raise self._error("the bias is not contiguous")
        operands = (a, b) if bias is None else (a, b, bias)
        if any(_name(operand) != spec.dtype for operand in operands) or _name(c) != spec.out:
            raise self._error("the dtypes are not the spec's")
        if spec.even_k and a.shape[1] % spec.block_k:
            raise self._error(f"k is {a.shape[1]}, not a multiple of {spec.block_k}")
        self._check_strides("A", a, spec.a, (spec.block_m, spec.block_k))
        self._check_strides("B", b, spec.b, (spec.block_k, spec.block_n))
        if spec.block_m * n >= INT32_LIMIT:
            raise self._error(f"a tile of C spans {spec.block_m} rows of {n}: too wide for int32")

    def _check_strides(
        self, name: str, operand: Tensor, layout: str, block: tuple[int, int]
    ) -> None:
        strides = operand.stride()
        unit = {"row": 1, "col": 0}.get(layout)
        if unit is not None and strides[unit] != 1 and operand.shape[unit] > 1:
            raise self._error(f"{name} has strides {strides}, not the layout {layout!r}")
        if sum(size * stride for size, stride in zip(block, strides, strict=True)) >= INT32_LIMIT:
            raise self._error(f"a tile of {name} with strides {strides} does not fit int32")

    def _error(self, what: str) -> KernelError:
        return KernelError(
            f"This call does not fit its kernel: {what}.",
            where=str(self.spec),
            remedy="build a kernel for these operands, or use the serial or chunked schedule",
        )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
