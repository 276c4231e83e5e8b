"""How large a part of an attention one CTA computes at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.visibility import hides
from overlapc.errors import KernelError
from overlapc.planning.attention.tile_names import VALUES_BEHIND
from overlapc.planning.tiles import sm_number, why_not_served

LEAST_BLOCK = 16
"""The least side that Triton's dot takes on every device."""


@dataclass(frozen=True)
class AttentionTile:
    """What of a kernel suits a device."""

    block_m: int
    """Rows of queries of one CTA; a power of two, as the next one."""
    block_n: int
    """Keys of one step."""
    warps: int
    stages: int
    """Depth of the software pipeline that loads keys and values."""
    ones: int = 0
    """Columns of ones by which weights of 16 bits are multiplied, for matrix units to add up rows;
    0: they are added one by one. For kernels of many rows."""
    registers: int = 0
    """The most of a thread, where an assembler of NVIDIA, left to itself, takes too few and spills;
    0: left to itself."""
    by_tma: bool = field(default=False, kw_only=True)
    """Whether the TMA unit loads keys and values. For kernels of many rows."""
    ahead: bool = field(default=False, kw_only=True)
    """Whether keys are multiplied a tile before values, where that can be. For kernels of many
    rows."""
    one_loop: bool = field(default=False, kw_only=True)
    """Whether one loop takes all tiles, as if some row did not see all of each. For gradients."""


def padded(dim: int) -> int:
    """The columns that a tile of ``dim`` columns takes."""
    return max(LEAST_BLOCK, 1 << (dim - 1).bit_length())


NVIDIA = {
    "sm_80": {64: (128, 64, 8, 2), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    "sm_90": {64: (128, 128, 8, 2, 16), 128: (128, 64, 8, 3, 16), 256: (64, 32, 8, 2, 16)},
    "sm_100": {
        64: (64, 64, 8, 2, 0, 232),
        128: (128, 64, 8, 3),
        256: (64, 64, 8, 2),
    },
    # The matrix units of sm_80, and less shared memory and fewer registers left by its assembler.
    "sm_120": {64: (128, 64, 8, 2), 128: (64, 32, 8, 3), 256: (64, 32, 8, 2)},
}
"""Of 16 bits, by the first architecture that takes them and the most columns of a head. Of
sm_90, products with ones leave 377 of 574 instructions of a loop over 128 keys, and are 3 to 12 %
more products; on sm_80 they would be a quarter more."""
WIDE_KEYS = 192
"""Columns of a tile of keys whose values have 128 at most: of as many they spill."""
NVIDIA_BY_TMA = {
    "sm_90": {128: (128, 128, 8, 2, 16)},
    "sm_100": {
        64: (128, 64, 4, 2, 0, 255),
        128: (128, 128, 8, 2, 0, 255),
        WIDE_KEYS: (128, 64, 8, 2, 0, 255),
        256: (64, 64, 8, 2, 0, 255),
    },
}
"""Instead, where the TMA unit loads keys and values, so that threads keep no addresses, of the
products alone. On sm_120 it was not tried."""
PLAIN_BY_TMA = ("sm_100",)
"""Where it loads for no others, of which most tiles spill then."""
NVIDIA_AHEAD = {"sm_90": {64: (128, 64, 8, 2, 16), 128: (128, 64, 8, 3, 16)}}
"""To be tried beside those, with values a tile behind keys: weights are made while matrix units
multiply, at the cost of three loads of each CTA that are waited for."""
NVIDIA_MASKED = {
    "sm_80": {64: (64, 32, 8, 2), 128: (64, 32, 8, 2), 256: (32, 32, 8, 2, 0, 255)},
    "sm_90": {64: (128, 64, 8, 2, 16), 128: (128, 32, 8, 3, 16)},
    "sm_100": {
        128: (128, 32, 8, 3),
        256: (64, 64, 8, 1, 0, 255),
    },
    "sm_120": {64: (64, 32, 8, 2), 256: (16, 32, 8, 2)},
}
"""Instead, where masks that are looked through take registers as well. On sm_100 they leave none
for a second stage of more than 128 columns: of 32 rows there would be, but its matrix units take
64 at least, and those of sm_80 would multiply."""
NVIDIA_FLOAT = {
    "sm_80": {64: (32, 32, 8, 1), 128: (16, 16, 8, 1)},
    "sm_90": {64: (32, 32, 8, 1), 128: (16, 32, 8, 1)},
}
"""Of float32, likewise. Either tile of 128 columns spills on the other's devices: that of sm_80
from sm_90 on with Triton 3.6, that of sm_90 on sm_80 and sm_89 with 3.7."""
AMD = {64: (128, 64, 4, 1), 128: (128, 64, 4, 1), 256: (64, 32, 4, 1)}
AMD_FLOAT = {64: (64, 32, 8, 2), 128: (32, 16, 4, 1), 256: (16, 16, 4, 1)}


def check_served(spec: AttentionSpec, architecture: str) -> None:
    """KernelError where no attention is generated for ``architecture``."""
    if why := why_not_served(architecture):
        raise KernelError(
            f"No attention {why}.",
            where=str(spec),
            remedy="use torch's scaled_dot_product_attention",
        )


def tile_for(spec: AttentionSpec, architecture: str, *, is_aligned: bool = False) -> AttentionTile:
    """A tile for ``sm_<number>`` or ``gfx<name>``: of the largest whose machine code keeps within
    registers and shared memory, as the tests check. None was timed. KernelError where none does.

    With ``is_aligned`` the TMA unit may read keys and values (see ``descriptors.fits_tma``): it
    does where elements are of 16 bits, on the devices of ``NVIDIA_BY_TMA``, but on those of
    ``PLAIN_BY_TMA`` where the products take registers alone. A spec may name that of
    ``VALUES_BEHIND``, which is for such operands.
    """
    check_served(spec, architecture)
    behind = _tile_ahead(spec, architecture) if spec.tile == VALUES_BEHIND and is_aligned else None
    if behind is not None:
        return behind
    is_float = spec.dtype == "float32"
    by_tma = False
    if architecture.startswith("gfx"):
        known = AMD_FLOAT if is_float else AMD
    elif is_float:
        known = NVIDIA_FLOAT[_since(NVIDIA_FLOAT, architecture)]
    else:
        since = _since(NVIDIA, architecture)
        known = NVIDIA[since]
        is_plain = _is_plain(spec)
        by_tma = is_aligned and since in NVIDIA_BY_TMA and (is_plain or since not in PLAIN_BY_TMA)
        if hides(spec.scores):
            known = known | NVIDIA_MASKED.get(since, {})
        elif by_tma and is_plain:
            known = known | NVIDIA_BY_TMA[since]
    columns = columns_for(spec, known)
    if columns is None:
        wide = max(spec.head_dim, spec.value_dim)
        raise KernelError(
            f"Heads of {wide} columns of {spec.dtype} do not fit the registers of {architecture}.",
            where=str(spec),
            remedy="use torch's scaled_dot_product_attention, or a dtype of 16 bits",
        )
    return replace(AttentionTile(*known[columns]), by_tma=by_tma)


def columns_for(spec: AttentionSpec, known: Iterable[int]) -> int | None:
    """The least of the columns that are known which heads keep to; None where none is as wide."""
    wide = max(spec.head_dim, spec.value_dim)
    fitting = (
        columns
        for columns in known
        if columns >= wide and (columns != WIDE_KEYS or spec.value_dim <= 128)
    )
    return min(fitting, default=None)


def _tile_ahead(spec: AttentionSpec, architecture: str) -> AttentionTile | None:
    if not (_is_plain(spec) and suits_ahead(spec)):
        return None
    known = NVIDIA_AHEAD.get(architecture, {}).get(max(spec.head_dim, spec.value_dim))
    return AttentionTile(*known, by_tma=True, ahead=True) if known else None


def suits_ahead(spec: AttentionSpec) -> bool:
    """Whether values may be multiplied after the next keys: where nothing is rescaled in between,
    scores are the scaled product, and weights of 16 bits."""
    return spec.dtype != "float32" and not spec.is_online and spec.scores is None


def _is_plain(spec: AttentionSpec) -> bool:
    """Whether nothing but the products takes many registers: neither a program of scores, nor
    addresses of values that lengths cut, nor a walk to the first keys before."""
    return spec.scores is None and not spec.lengths and spec.softmax != "first_tile"


def _since(tables: Iterable[str], architecture: str) -> str:
    """The last of architectures that is not after ``architecture``."""
    number = sm_number(architecture)
    return f"sm_{max((own for own in map(sm_number, tables) if own <= number), default=80)}"
