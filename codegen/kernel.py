"""A generated GEMM as something to call: checks what its spec promises, then launches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from overlapc.codegen.epilogue import Input
from overlapc.codegen.function import PARTS
from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError
from overlapc.planning.kernel_tiles import TMA_ALIGNMENT, tma_reads
from overlapc.planning.tiles import SWEEP

if TYPE_CHECKING:
    from torch import Tensor

INT32_LIMIT = 2**31


@dataclass(frozen=True)
class Kernel:
    """``C = A @ B``, with its epilogue, for every size that keeps the facts of ``spec``."""

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
        sweep: int = SWEEP,
        bias: Tensor | None = None,
        inputs: Sequence[Tensor] = (),
        bands: Tensor | None = None,
        counters: Tensor | None = None,
    ) -> Any:
        """Launch on the current stream; returns what Triton's launcher returns, None if C is empty.

        A[m, k] and B[k, n] have any strides that fit the spec's layouts; C is contiguous: [m, n],
        or the buffer of a ``Packing``. ``inputs`` are the epilogue's, of any strides; ``bias[n]``
        is the one of a spec with a bias. ``ctas`` programs stay resident and share the tiles,
        ``sweep`` tile rows of which are visited together, as a ``Packing`` has them. A spec with
        signals needs ``bands``, int32, the table of its ``Bands`` or ``Packing`` on the
        device, and ``counters``, int32[groups or more, COUNTER_STRIDE], zeroed before in stream
        order. KernelError where any of this does not hold.
        """
        spec = self.spec
        inputs = tuple(inputs) if bias is None else (*inputs, bias)
        self._check(a, b, inputs)
        self._check_result(c, a.shape[0], b.shape[1])
        if spec.signals and (bands is None or counters is None):
            raise self._error("a kernel that signals needs its bands and counters")
        if ctas < 1:
            raise self._error(f"{ctas} CTAs cannot compute anything")
        if sweep < 1:
            raise self._error(f"a sweep of {sweep} tile rows visits nothing")
        m, n = a.shape[0], b.shape[1]
        if m == 0 or n == 0:
            return None
        ctas = min(ctas, self.tiles(m, n))
        arguments = self._arguments(a, b, c, inputs, bands, counters, (ctas, sweep))
        return self.module.KERNEL[(ctas,)](*arguments, **self._constants())

    def compile(self, a: Tensor, b: Tensor, inputs: Sequence[Tensor] = ()) -> None:
        """Have Triton compile what calls with such operands launch; nothing is launched.

        KernelError where they do not fit, as by a call.
        """
        import torch

        self._check(a, b, inputs)
        c = a.new_empty(1, dtype=getattr(torch, self.spec.out))
        table = a.new_empty(1, dtype=torch.int32) if self.spec.signals else None
        arguments = self._arguments(a, b, c, inputs, table, table, (1, SWEEP))
        self.module.KERNEL.warmup(*arguments, grid=(1,), **self._constants())

    def _arguments(
        self, a: Tensor, b: Tensor, c: Tensor, inputs: Sequence[Tensor],
        bands: Tensor | None, counters: Tensor | None, launch: tuple[int, int],
    ) -> tuple[Any, ...]:  # fmt: skip
        operands: tuple[Any, Any] = (a, b)
        if self.spec.loads == "descriptors":
            operands = self._descriptors(a, b)
        parts = [
            part
            for item, tensor in zip(self.spec.chain.inputs, inputs, strict=True)
            for part in (tensor, *input_strides(item, tensor))
        ]
        (m, k), n = a.shape, b.shape[1]
        strides = *a.stride(), *b.stride()
        return (*operands, c, tuple(parts), bands, counters, m, n, k, *strides, *launch)

    def _constants(self) -> dict[str, Any]:
        return {**self.module.CONSTANTS, **device_constants(self.spec), **self.module.OPTIONS}

    def _descriptors(self, a: Tensor, b: Tensor) -> tuple[Any, Any]:
        from triton.tools.tensor_descriptor import TensorDescriptor

        spec = self.spec

        def descriptor(operand: Tensor, layout: str, block: tuple[int, int]) -> TensorDescriptor:
            if layout == "col":
                operand, block = operand.t(), (block[1], block[0])
            # The unit stride by its rule: of one row or column torch may say another.
            strides = [operand.stride(0), 1]
            return TensorDescriptor(operand, list(operand.shape), strides, list(block))

        return (
            descriptor(a, spec.a, (spec.block_m, spec.block_k)),
            descriptor(b, spec.b, (spec.block_k, spec.block_n)),
        )

    def _check_result(self, c: Tensor, m: int, n: int) -> None:
        spec = self.spec
        if spec.order == "packed":
            whole = self.tiles(m, n) * spec.block_m * spec.block_n
            if tuple(c.shape) != (whole,) or not c.is_contiguous():
                raise self._error(f"C is not a contiguous [{whole}]")
        elif tuple(c.shape) != (m, n) or not c.is_contiguous():
            raise self._error(f"C is not a contiguous [{m}, {n}]")
        if name_of(c) != spec.out:
            raise self._error("the dtypes are not the spec's")

    def _check(self, a: Tensor, b: Tensor, inputs: Sequence[Tensor]) -> None:
        spec = self.spec
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
            raise self._error(f"A{list(a.shape)} and B{list(b.shape)} cannot be multiplied")
        if any(name_of(operand) != spec.dtype for operand in (a, b)):
            raise self._error("the dtypes are not the spec's")
        self._check_inputs(inputs, a.shape[0], b.shape[1])
        if spec.flatten and a.shape[1] == 0:
            raise self._error("k is 0")
        if spec.even_k and a.shape[1] % spec.block_k:
            raise self._error(f"k is {a.shape[1]}, not a multiple of {spec.block_k}")
        self._check_strides("A", a, spec.a, (spec.block_m, spec.block_k))
        self._check_strides("B", b, spec.b, (spec.block_k, spec.block_n))
        if spec.loads == "descriptors" and not (fits_tma(a, spec.a) and fits_tma(b, spec.b)):
            raise self._error(f"descriptors need {TMA_ALIGNMENT}-byte aligned operands, not empty")

    def _check_inputs(self, inputs: Sequence[Tensor], m: int, n: int) -> None:
        promised = self.spec.chain.inputs
        if len(inputs) != len(promised):
            raise self._error(f"{len(promised)} inputs are promised, the bias among them")
        for item, tensor in zip(promised, inputs, strict=True):
            if name_of(tensor) != item.dtype or not has_shape(item, tensor, m, n):
                raise self._error(
                    f"an input is {name_of(tensor)}{list(tensor.shape)}, not the promised {item}"
                )

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


def fits_tma(operand: Tensor, layout: str) -> bool:
    """Whether the TMA unit can read a matrix of this layout; one without data counts as aligned."""
    if layout == "strided" or operand.numel() == 0:
        return False
    return begins_aligned(operand) and tma_reads(layout, operand.stride(), operand.element_size())


def begins_aligned(operand: Tensor) -> bool:
    """Whether a matrix begins at a multiple of 16 bytes; one without data does where its storage's
    offset does."""
    start = operand.storage_offset() * operand.element_size()
    has_data = operand.device.type != "meta" and type(operand).__name__ != "FakeTensor"
    base = operand.data_ptr() if has_data else 0
    return start % TMA_ALIGNMENT == 0 and base % TMA_ALIGNMENT == 0


def input_strides(item: Input, tensor: Tensor) -> tuple[int, ...]:
    """What the kernel is told of where an input's elements are: as many as the template expects."""
    match item.shape:
        case "matrix":
            strides = tensor.stride()
        case "column":
            strides = tensor.stride()[:1]
        case "vector":
            strides = tensor.stride()[-1:]
        case _:
            strides = ()
    assert len(strides) == PARTS[item.shape] - 1
    return tuple(strides)


def has_shape(item: Input, tensor: Tensor, m: int, n: int) -> bool:
    """Whether a tensor is what an epilogue is promised beside C[m, n]."""
    shape = tuple(tensor.shape)
    match item.shape:
        case "matrix":
            return shape == (m, n)
        case "column":
            return shape == (m, 1)
        case "vector":
            return shape in ((n,), (1, n))
        case "one":
            return tensor.numel() == 1 and shape != ()
    return shape == ()


def device_constants(spec: GemmSpec) -> dict[str, bool]:
    """The template's compile-time parameters that are the device's: Triton's interpreter has no
    pipelines."""
    from triton import knobs

    return {"IS_AMD": is_amd(), "FLATTEN": spec.flatten and not knobs.runtime.interpret}


def is_amd() -> bool:
    """Return whether Triton compiles for AMD's GPUs here."""
    import torch

    return bool(torch.version.hip)


def special(numbers: Iterable[int]) -> tuple[tuple[bool, bool], ...]:
    """What Triton compiles a kernel for of numbers, or addresses, that it is given: whether each is
    one, or a multiple of 16."""
    return tuple((number == 1, number % 16 == 0) for number in numbers)


def name_of(tensor: Tensor) -> str:
    """The dtype of a tensor as a spec names it."""
    return str(tensor.dtype).removeprefix("torch.")
