"""What Triton compiles a launch for: nothing that may differ between calls that count as warm.

It is asked of Triton's own launcher; no device is needed for that.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from overlapc.codegen import COUNTER_STRIDE, GemmSpec, build
from overlapc.codegen.aot import VARYING
from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Input, Ref
from overlapc.codegen.templates.signal import wait_for_group
from overlapc.runtime.cutting.layout import Dealing, producer_parts
from overlapc.runtime.signaled.staged import StagedGemm

SUM = Call("aten.add.Tensor", (Ref("value", 0), Ref("input", 0)))
GEMM = Call("aten.mm.dtype", (Ref("gemm", 0), Ref("gemm", 1), Dtype("float32")))
SPECS = {
    "alone": GemmSpec("bfloat16", "bfloat16", 128, 256, 64, warps=8, flatten=True),
    "column-major": GemmSpec("float32", "float32", 64, 64, 32, a="col", b="row"),
    "packed, with a residual": GemmSpec(
        "bfloat16", "float32", 64, 64, 32, order="packed",
        epilogue=str(Epilogue((Input("matrix", "float32"),), (GEMM, SUM))),
    ),
}  # fmt: skip
ROWS = (1, 2, 16, 17, 128, 4096)


def compiled_for(kernel: Any, *arguments: Any, **constants: Any) -> str:
    """The key of what Triton compiles for a launch on sm_90."""
    backend = make_backend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    _, specialised, _ = binder(*arguments, **constants)
    return repr([part for part in specialised if part[0] != "constexpr"])


def operands(spec: GemmSpec, m: int, n: int, k: int, skipped: int = 0) -> list[torch.Tensor]:
    """A, B and the inputs, each of which begins after so many elements."""
    dtype = getattr(torch, spec.dtype)

    def matrix(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(skipped + rows * columns, dtype=dtype)[skipped:].view(rows, columns)

    a = matrix(m, k, dtype) if spec.a == "row" else matrix(k, m, dtype).t()
    b = matrix(k, n, dtype) if spec.b == "row" else matrix(n, k, dtype).t()
    return [a, b, *(matrix(m, n, getattr(torch, its.dtype)) for its in spec.chain.inputs)]


def launched(
    spec: GemmSpec, a: torch.Tensor, b: torch.Tensor, *inputs: Any, ctas: int, sweep: int = 8
) -> str:
    """The key of the GEMM of these operands."""
    kernel = build(spec)
    out = torch.empty(16, dtype=getattr(torch, spec.out))
    table = torch.empty(64, dtype=torch.int32)
    arguments = kernel._arguments(a, b, out, inputs, table, table, (ctas, sweep))
    return compiled_for(kernel.module.KERNEL, *arguments, **kernel._constants())


@pytest.mark.parametrize("name", ["alone", "packed, with a residual"])
def test_no_number_of_rows_or_of_programs_is_compiled_for(name, private_cache):
    """Nor whether it is one, or a multiple of 16; nor of a sweep. Mutants: ``M``, ``num_ctas`` or
    ``sweep`` is no longer named in the template's ``do_not_specialize``."""
    spec = SPECS[name]
    keys = {
        launched(spec, *operands(spec, m, 256, 128), ctas=ctas, sweep=sweep)
        for m in ROWS
        for ctas, sweep in ((1, 8), (16, 16), (130, 1))
    }
    assert len(keys) == 1
    assert {launched(spec, *operands(spec, 16, 256, k), ctas=1) for k in (128, 120)} != keys


def test_no_target_of_a_waiter_is_compiled_for():
    """It would be loaded behind one that spins. Mutants: each of the three is specialised."""
    storage = torch.zeros(4, COUNTER_STRIDE, dtype=torch.int32)
    keys = {
        compiled_for(wait_for_group, storage, storage[-1], group, target, polls, COUNTER_STRIDE)
        for group in (0, 1, 16)
        for target in (1, 7, 16)
        for polls in (0, 1, 1000, 1024)
    }
    assert len(keys) == 1


def test_builds_ahead_of_time_know_what_is_not_compiled_for(private_cache):
    kernel = build(SPECS["alone"]).module.KERNEL
    assert {its.name for its in kernel.params if its.do_not_specialize} == {*VARYING}


@pytest.mark.parametrize("name", SPECS)
def test_calls_that_count_as_warm_are_one_kernel(name, private_cache):
    """Mutants: a stride, a size or an address is left out of what a call needs; rows are in it."""
    spec = SPECS[name]
    known: dict[Any, str] = {}
    kinds = [(m, n, k, skip) for m in ROWS for n in (40, 256) for k in (64, 72) for skip in (0, 4)]
    for m, n, k, skipped in kinds:
        given = operands(spec, m, n, k, skipped)
        key = launched(spec, *given, ctas=min(m, 130))
        assert known.setdefault(needed(spec, given), key) == key
    assert 1 < len(known) < len(kinds)


def needed(spec: GemmSpec, given: list[torch.Tensor]) -> Any:
    """What a staged call says that it needs of its kernel, whatever it sends."""
    fake: Any = SimpleNamespace(spec=spec)
    sender: Any = SimpleNamespace(collective="all_reduce", reduce="sum")
    parts = producer_parts(Dealing("all_reduce", 0, 64, 2, 0), (64,))
    gemm = StagedGemm(fake, sender, tuple(parts), (64, 64), 1, SimpleNamespace())  # pyright: ignore[reportArgumentType]
    everything: Any = gemm._needed(given, "tp")
    return next(its for its in everything if its[0] == "kernel")
