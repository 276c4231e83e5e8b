"""What a generated module does when it is run by itself: check against float64, then time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overlapc.codegen.bands import COUNTER_STRIDE, Bands
from overlapc.codegen.kernel import Kernel
from overlapc.codegen.module_check import check_module
from overlapc.codegen.oracle import error_over_bound, random_input, random_operand
from overlapc.codegen.packing import Packing, unpack
from overlapc.codegen.spec import GemmSpec
from overlapc.planning.tiles import SWEEP

if TYPE_CHECKING:
    from torch import Tensor

CHECKED_SWEEP = 2
"""Tile rows that checks visit together: three make a whole sweep and a lower one."""

TIMED_SIZES = (8192, 8192, 4096)
"""m, n, k that are timed; chosen large enough that a launch costs nothing beside them."""


def main(file: str) -> int:
    """Check the generated module at ``file``; returns the exit code of the process."""
    kernel, is_right, on_gpu = check_module(
        file,
        lambda path, module: Kernel(GemmSpec.parse(module.SPEC), path, module),
        _sizes,
        _check,
    )
    if on_gpu:
        _time(kernel)
    return 0 if is_right else 1


def _sizes(spec: GemmSpec) -> list[tuple[int, int, int]]:
    # Descriptors want aligned strides: ragged is what they allow.
    columns, depth = spec.block_n + 7, spec.block_k * 2 + (0 if spec.even_k else 3)
    if spec.loads == "descriptors":
        columns, depth = spec.block_n + 16, spec.block_k * 2 + (0 if spec.even_k else 16)
    tall = 3 if spec.order == "band" else 2 * CHECKED_SWEEP  # packed order takes whole sweeps
    whole = (tall * spec.block_m, 2 * spec.block_n, 3 * spec.block_k)
    rows = (tall - 1) * spec.block_m + (16 if spec.a == "col" else 5)
    return [whole, (rows, columns, depth)]


@dataclass(frozen=True)
class Case:
    """One call of a kernel on random operands."""

    kernel: Kernel
    a: Tensor
    b: Tensor
    c: Tensor
    """As the kernel stores it."""
    inputs: Sequence[Tensor]
    groups: Bands | Packing
    """What is announced."""
    counters: Tensor

    @classmethod
    def random(
        cls, kernel: Kernel, sizes: tuple[int, int, int], device: str, groups: int = 2
    ) -> Case:
        """Operands, and a C that holds nothing but NaN."""
        import torch

        (m, n, k), spec = sizes, kernel.spec
        a = random_operand(spec.a, m, k, spec.dtype, device)
        b = random_operand(spec.b, k, n, spec.dtype, device)
        inputs = [random_input(item, m, n, device) for item in spec.chain.inputs]
        announced: Bands | Packing
        if spec.order == "packed":
            tiles = kernel.tiles(m, n)
            counts = (1,) * (groups - 1) + (tiles - groups + 1,)
            announced = Packing.of(spec, m, n, counts, CHECKED_SWEEP)
            shape, targets = (announced.order.elements,), announced.targets
        else:
            head = (spec.block_m,) * (groups - 1)
            announced = Bands.of((*head, m - sum(head)), spec.block_m)
            shape, targets = (m, n), announced.targets(kernel.tiles_n(n))
        c = torch.full(shape, torch.nan, device=device).to(getattr(torch, spec.out))
        counters = torch.zeros(len(targets), COUNTER_STRIDE, dtype=torch.int32, device=device)
        return cls(kernel, a, b, c, inputs, announced, counters)

    def run(self, ctas: int, sweep: int = CHECKED_SWEEP) -> None:
        """Call the kernel. What is packed lies as `result` reads it with the sweep of checks."""
        import torch

        table = torch.tensor(self.groups.table, dtype=torch.int32, device=self.c.device)
        self.kernel(self.a, self.b, self.c, ctas=ctas, sweep=sweep, inputs=self.inputs,
                    bands=table, counters=self.counters)  # fmt: skip

    @property
    def is_counted(self) -> bool:
        """Whether every tile was announced, in a kernel that announces."""
        n = self.b.shape[1]
        groups = self.groups
        is_packed = isinstance(groups, Packing)
        targets = groups.targets if is_packed else groups.targets(self.kernel.tiles_n(n))
        counted = self.counters[:, 0].tolist() == list(targets)
        return counted or not self.kernel.spec.signals

    @property
    def result(self) -> Tensor:
        """C[m, n]."""
        if not isinstance(self.groups, Packing):
            return self.c
        return unpack(self.c, self.groups.order)


def _check(kernel: Kernel, sizes: tuple[int, int, int], device: str) -> float:
    """The largest error over its bound; infinite where a counter or an element is missing."""
    case = Case.random(kernel, sizes, device)
    case.run(ctas=3)
    error = error_over_bound(kernel.spec, case.a, case.b, None, case.result, case.inputs)
    m, n, k = sizes
    counted = case.counters[:, 0].tolist()
    print(f"  m={m} n={n} k={k}: {error:.3g}, counters {counted}")  # noqa: T201
    return error if case.is_counted else float("inf")


def _time(kernel: Kernel) -> None:
    import torch

    case = Case.random(kernel, TIMED_SIZES, "cuda", groups=1)
    ctas = torch.cuda.get_device_properties("cuda").multi_processor_count
    ours = _seconds(lambda: case.run(ctas, SWEEP))
    # In bfloat16, whatever the operands are: it is the plain product that is compared.
    a, b = case.a.bfloat16(), case.b.bfloat16()
    library = _seconds(lambda: torch.mm(a, b))
    m, n, k = TIMED_SIZES
    rate = 2e-12 * m * n * k
    print(  # noqa: T201
        f"  m={m} n={n} k={k}: {rate / ours:.0f} TFLOP/s;"
        f" torch.mm in bfloat16 {rate / library:.0f} TFLOP/s"
    )


def _seconds(run: Callable[[], object], rounds: int = 20) -> float:
    """Median seconds of one run on the current stream."""
    import torch

    times = []
    for _ in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return sorted(times[3:])[rounds // 2]
