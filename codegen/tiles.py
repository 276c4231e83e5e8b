"""The spec that fits given operands: how they are read, and a tile that suits the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from overlapc.codegen.epilogue import Epilogue
from overlapc.codegen.kernel import begins_aligned, fits_tma, name_of
from overlapc.codegen.promotion import FP8
from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError
from overlapc.planning.kernel_tiles import (
    VECTOR,
    KernelFacts,
    layout_name,
    loads_by_tma,
    reads_vectors,
)
from overlapc.planning.tiles import MOST_SUMS, SPARING_SUMS, Tile, sm_number, sums, tiles_for

if TYPE_CHECKING:
    from torch import Tensor

    from overlapc.codegen.lowering import Lowered


LIGHT = {
    *("mm", "addmm", "_scaled_mm", "add", "sub", "rsub", "mul", "neg", "abs", "square", "where"),
    *("relu", "leaky_relu", "silu", "sigmoid", "maximum", "minimum"),
    *("convert_element_type", "_to_copy"),
}
"""Ops that leave registers beside the widest tile; the budget tests build epilogues of them."""
MOST_LIGHT = 4
"""So many of them, the GEMM among them, and one matrix that they read; from the same tests."""
MOST_BESIDE = 2
"""Calls after the GEMM and inputs, beside which the widest tile may be stored while the next one's
operands come; from the same tests."""

APART = {
    (8, False): {"lerp"},
    (10, True): {"log", "log2"},
    (12, False): {"celu", "div", "hardsigmoid", "hardswish", "reciprocal"},
}
"""By the major number of an architecture and whether TMA loads operands, ops that spill where the
next tile's come while they are computed: the assembler settles for 128 registers; from the same
tests."""


def spec_for(
    a: Tensor,
    b: Tensor,
    *,
    architecture: str,
    bias: bool = False,
    out: str | None = None,
    signals: bool = True,
    lowered: Lowered | None = None,
    tile: Tile | None = None,
) -> GemmSpec:
    """A spec for ``a[m, k] @ b[k, n]`` on ``sm_<number>`` or ``gfx<name>``, or for a chain of it.

    ``bias`` and ``out`` are of the GEMM alone, without a ``lowered`` chain. The spec keeps no size
    but a fact about k, so it serves every m. ``tile`` is what was planned, by default the first of
    the device's configurations; where operands or epilogue leave it too few registers, another of
    as many rows stands in. KernelError where the dtypes cannot be generated.
    """
    dtype = name_of(a)
    known = tiles_for(architecture, dtype)
    if name_of(b) != dtype or not known:
        raise KernelError(
            f"No GEMM is generated for {dtype} by {name_of(b)} on {architecture}.",
            where="the choice of a kernel",
            remedy="use the serial or chunked schedule",
        )
    layouts = layout(a), layout(b)
    aligned = fits_tma(a, layouts[0]) and fits_tma(b, layouts[1])
    by_tma = loads_by_tma(architecture, a.element_size(), aligned=aligned)
    chain = lowered.epilogue if lowered else None
    stored = lowered.dtype if lowered else out or dtype
    facts = KernelFacts(
        architecture,
        dtype,
        stored,
        a.shape[1],
        layouts,
        by_tma,
        b.shape[1] % VECTOR == 0 and (by_tma or (_by_vectors(a) and _by_vectors(b))),
        most_sums=most_sums(chain),
        is_bare=is_bare(chain),
    )
    tile = facts.tile(tile or known[0])
    return GemmSpec(
        dtype,
        stored,
        **tile.built,
        a=layouts[0],
        b=layouts[1],
        bias=bias,
        signals=signals,
        even_k=not by_tma and a.shape[1] % tile.block_k == 0,
        precision="fast" if lowered and lowered.fast and dtype in FP8 else "ieee",
        loads="descriptors" if by_tma else "pointers",
        flatten=a.shape[1] > 0 and _runs_on(chain, stored, tile, architecture, by_tma=by_tma),
        epilogue=str(chain) if chain else "",
    )


def most_sums(chain: Epilogue | None) -> int:
    """Elements of C that a thread may hold beside an epilogue: what the planner chooses by too."""
    return MOST_SUMS if chain is None or _is_light(chain) else SPARING_SUMS


def is_bare(chain: Epilogue | None) -> bool:
    """Whether a chain is its GEMM alone."""
    return chain is None or (len(chain.calls) == 1 and not chain.inputs)


def layout(operand: Tensor) -> str:
    """How a spec names the strides of a matrix."""
    return layout_name(operand.stride())


def _by_vectors(operand: Tensor) -> bool:
    """Whether a thread can read many elements of it at once."""
    return begins_aligned(operand) and reads_vectors(operand.stride())


def _runs_on(
    chain: Epilogue | None, stored: str, tile: Tile, architecture: str, *, by_tma: bool
) -> bool:
    """Whether registers, and shared memory for what is stored, are left to load the next tile's
    operands while one is stored."""
    if architecture.startswith("gfx"):
        return False
    names = {call.op.split(".")[1] for call in chain.calls} if chain else set[str]()
    if names & APART.get((sm_number(architecture) // 10, by_tma), set()):
        return False
    beside = len(chain.calls) - 1 + len(chain.inputs) if chain else 0
    is_narrow = by_tma and beside <= MOST_BESIDE and stored != "float32"
    return sums(tile, architecture) <= SPARING_SUMS or is_narrow


def _is_light(chain: Epilogue) -> bool:
    names = [call.op.split(".")[1] for call in chain.calls]
    matrices = sum(item.shape == "matrix" for item in chain.inputs)
    return len(names) <= MOST_LIGHT and set(names) <= LIGHT and matrices <= 1
