"""How much of registers a kernel may leave on the stack, by release of Triton."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.codegen.aot import Binary
from tests.codegen.machine_loops import inner_loops_of

PRODUCTS = "HMMA|HGMMA|UTCHMMA"


@dataclass(frozen=True)
class Spills:
    """The most of one kernel."""

    bytes: int = 0
    """On the stack of a thread."""
    share: float = 0.0
    """Of the instructions of a loop that multiplies matrices, what moves numbers from there or to
    it."""


OTHER_RELEASES = {"3.6": Spills(56), "3.9": Spills(104, 0.002)}
"""Of Triton, that are not pinned: each brings an assembler of its own, and no tile was found that
does with the registers of all of them and takes no more instructions in the loop over whole tiles.
What spills with 3.6 computes a row again or looks for a φ of its own, in no loop that multiplies;
with 3.9 a GEMM of strided operands loads one number again in 949 instructions."""


def release() -> str:
    """Of Triton, as ``3.7``."""
    import triton

    return ".".join(triton.__version__.split(".")[:2])


def check_spills(binary: Binary, most: Spills = Spills()) -> None:
    """Raise AssertionError where more is on the stack than ``most``, or what a release has."""
    other = OTHER_RELEASES.get(release(), Spills())
    bytes_, share = max(most.bytes, other.bytes), max(most.share, other.share)
    assert binary.spilled_bytes <= bytes_, (
        f"{binary.registers} registers and {binary.spilled_bytes} B"
    )
    if not (binary.spilled_bytes and binary.cubin):
        return
    for loop in inner_loops_of(binary.cubin, PRODUCTS):
        moved, own = loop.count("LDL|STL"), len(loop.instructions)
        assert moved <= share * own, f"{moved} of {own} instructions move what is on the stack"
