"""The spec that fits given operands: their layouts, and a tile that suits the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from overlapc.codegen.spec import GemmSpec

if TYPE_CHECKING:
    from torch import Tensor


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
    ("gfx942", False): {"block_m": 64, "block_n": 64, "block_k": 32, "warps": 4, "stages": 2},
}
"""By the oldest architecture that can run it, and whether operands are 16 bits wide."""

# Where addresses take more registers than beside the widest tile are free.
ROOMY: Tile = {"block_m": 128, "block_n": 128, "block_k": 64, "warps": 8, "stages": 4}


def spec_for(
    a: Tensor,
    b: Tensor,
    *,
    architecture: str,
    bias: bool = False,
    out: str | None = None,
    signals: bool = True,
) -> GemmSpec:
    """A spec for ``a[m, k] @ b[k, n]`` on ``sm_<number>`` or ``gfx<name>``.

    It keeps no size but a fact about k, so it serves every m. A first choice, not a tuned one.
    KernelError where the dtypes cannot be generated.
    """
    dtype = str(a.dtype).removeprefix("torch.")
    tile = tile_for(architecture, half=a.element_size() == 2)
    even_k = a.shape[1] % tile["block_k"] == 0
    if tile["block_n"] == 256 and not _leaves_registers(layout(a), layout(b), even_k):
        tile = ROOMY
        even_k = a.shape[1] % tile["block_k"] == 0
    return GemmSpec(
        dtype,
        out or dtype,
        **tile,
        a=layout(a),
        b=layout(b),
        bias=bias,
        signals=signals,
        even_k=even_k,
    )


def tile_for(architecture: str, *, half: bool) -> Tile:
    """Tile and pipeline for an architecture; newer ones take the newest that is older."""
    if architecture.startswith("gfx"):
        return TILES["gfx942", half]
    if half and int(architecture.removeprefix("sm_")) >= 90:
        return TILES["sm_90", half]
    return TILES["sm_80", half]


def layout(operand: Tensor) -> str:
    """How a spec names the strides of a matrix."""
    rows, columns = operand.stride()
    if columns == 1:
        return "row"
    return "col" if rows == 1 else "strided"


def _leaves_registers(a: str, b: str, even_k: bool) -> bool:
    """Whether the widest tile builds without spills; the budget tests build both sides of it."""
    if "strided" in (a, b):
        return False
    return b == "col" or even_k
