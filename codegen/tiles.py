"""The spec that fits given operands: how they are read, and a tile that suits the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from overlapc.codegen.epilogue import Epilogue
from overlapc.codegen.kernel import fits_tma, name_of
from overlapc.codegen.promotion import FP8
from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError

if TYPE_CHECKING:
    from torch import Tensor

    from overlapc.codegen.lowering import Lowered


class Tile(TypedDict):
    """The fields of a spec that suit a device rather than the operands."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


TILES: dict[tuple[str, bool], Tile] = {
    # Wide tiles read A and B least often; these are the widest that build without spills.
    ("sm_90", True): {"block_m": 128, "block_n": 256, "block_k": 64, "warps": 8, "stages": 3},
    ("sm_80", True): {"block_m": 128, "block_n": 128, "block_k": 32, "warps": 8, "stages": 3},
    ("gfx942", True): {"block_m": 128, "block_n": 128, "block_k": 32, "warps": 4, "stages": 2},
    ("sm_80", False): {"block_m": 64, "block_n": 64, "block_k": 32, "warps": 4, "stages": 3},
    ("sm_100", False): {"block_m": 64, "block_n": 64, "block_k": 32, "warps": 8, "stages": 2},
    ("gfx942", False): {"block_m": 64, "block_n": 64, "block_k": 32, "warps": 4, "stages": 2},
}
"""By the oldest architecture that can run it, and whether operands are 16 bits wide."""

FP8_TILES: dict[str, Tile] = {
    "sm_90": {"block_m": 128, "block_n": 128, "block_k": 128, "warps": 8, "stages": 4},
    "sm_89": {"block_m": 128, "block_n": 128, "block_k": 64, "warps": 8, "stages": 3},
    "gfx942": {"block_m": 128, "block_n": 128, "block_k": 32, "warps": 8, "stages": 2},
}
"""Of operands of 8 bits. Exact sums are held twice, so that the widest tile would spill."""

# Where the epilogue, or addresses, take more registers than beside the widest tile are free.
ROOMY: Tile = {"block_m": 128, "block_n": 128, "block_k": 64, "warps": 8, "stages": 4}

LIGHT = {
    *("mm", "addmm", "_scaled_mm", "add", "sub", "rsub", "mul", "neg", "abs", "square", "where"),
    *("relu", "leaky_relu", "silu", "sigmoid", "maximum", "minimum"),
    *("convert_element_type", "_to_copy"),
}
"""Ops that leave registers beside the widest tile; the budget tests build epilogues of them."""
MOST_LIGHT = 4
"""So many of them, the GEMM among them, and one matrix that they read; from the same tests."""


def spec_for(
    a: Tensor,
    b: Tensor,
    *,
    architecture: str,
    bias: bool = False,
    out: str | None = None,
    signals: bool = True,
    lowered: Lowered | None = None,
) -> GemmSpec:
    """A spec for ``a[m, k] @ b[k, n]`` on ``sm_<number>`` or ``gfx<name>``, or for a chain of it.

    ``bias`` and ``out`` are of the GEMM alone, without a ``lowered`` chain. The spec keeps no size
    but a fact about k, so it serves every m. A first choice, not a tuned one. KernelError where the
    dtypes cannot be generated.
    """
    dtype = name_of(a)
    if name_of(b) != dtype or (dtype in FP8 and not _has_fp8(architecture)):
        raise KernelError(
            f"No GEMM is generated for {dtype} by {name_of(b)} on {architecture}.",
            where="the choice of a kernel",
            remedy="use the serial or chunked schedule",
        )
    layouts = layout(a), layout(b)
    # Of 32 bits the TMA unit has no use: such products are not made by matrix units.
    fits = fits_tma(a, layouts[0]) and fits_tma(b, layouts[1]) and a.element_size() <= 2
    by_tma = fits and _has_tma(architecture)
    chain = lowered.epilogue if lowered else None
    stored = lowered.dtype if lowered else out or dtype
    tile = _tile_beside(architecture, dtype, chain, layouts, by_tma=by_tma, depth=a.shape[1])
    if tile["block_n"] == 256 and stored == "float32" and _number(architecture) >= 100:
        tile = ROOMY  # the whole tile passes through registers on its way from tensor memory
    return GemmSpec(
        dtype,
        stored,
        **tile,
        a=layouts[0],
        b=layouts[1],
        bias=bias,
        signals=signals,
        even_k=not by_tma and a.shape[1] % tile["block_k"] == 0,
        precision="fast" if lowered and lowered.fast and dtype in FP8 else "ieee",
        loads="descriptors" if by_tma else "pointers",
        epilogue=str(chain) if chain else "",
    )


def tile_for(architecture: str, *, half: bool) -> Tile:
    """Tile and pipeline for an architecture; newer ones take the newest that is older."""
    if architecture.startswith("gfx"):
        return TILES["gfx942", half]
    if half and _has_tma(architecture):
        return TILES["sm_90", half]
    return TILES["sm_100" if not half and _number(architecture) >= 100 else "sm_80", half]


def layout(operand: Tensor) -> str:
    """How a spec names the strides of a matrix."""
    rows, columns = operand.stride()
    if columns == 1:
        return "row"
    return "col" if rows == 1 else "strided"


def _tile_beside(
    architecture: str,
    dtype: str,
    chain: Epilogue | None,
    layouts: tuple[str, str],
    *,
    by_tma: bool,
    depth: int,
) -> Tile:
    """The widest tile that leaves registers to the epilogue, and to addresses if there are any."""
    if dtype in FP8:
        family = "gfx942" if architecture.startswith("gfx") else "sm_89"
        return FP8_TILES["sm_90" if _has_tma(architecture) else family]
    tile = tile_for(architecture, half=dtype != "float32")
    if tile["block_n"] < 256:
        return tile
    if by_tma:
        return Tile({**tile, "stages": 4}) if chain is None or _is_light(chain) else ROOMY
    even_k = depth % tile["block_k"] == 0
    leaves_registers = "strided" not in layouts and (layouts[1] == "col" or even_k)
    return tile if chain is None and leaves_registers else ROOMY


def _is_light(chain: Epilogue) -> bool:
    names = [call.op.split(".")[1] for call in chain.calls]
    matrices = sum(item.shape == "matrix" for item in chain.inputs)
    return len(names) <= MOST_LIGHT and set(names) <= LIGHT and matrices <= 1


def _has_tma(architecture: str) -> bool:
    return _number(architecture) >= 90


def _has_fp8(architecture: str) -> bool:
    """Whether matrix units multiply fp8, or Triton widens it for them."""
    return architecture.startswith("gfx") or _number(architecture) >= 89


def _number(architecture: str) -> int:
    """Of an architecture of NVIDIA's; 0 of others."""
    is_nvidia = architecture.startswith("sm_")
    return int(architecture.removeprefix("sm_")) if is_nvidia else 0
