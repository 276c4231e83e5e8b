"""How much shared memory one CTA may have, by device."""

from __future__ import annotations

from overlapc.planning.tiles import sm_number

SHARED_KIB = {
    "sm_75": 64,
    "sm_80": 163,
    "sm_86": 99,
    "sm_87": 163,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_103": 227,
    "sm_110": 227,
    "sm_120": 99,
    "sm_121": 99,
    "gfx90a": 64,
    "gfx942": 64,
    "gfx950": 160,
}
"""From the vendors' guides: technical specifications by compute capability in the programming guide
of CUDA, the local data share in the ISA documents of CDNA. They do not grow with the number."""
LEAST_KIB = {"sm": 48, "gfx": 64}
"""What every device has that runs kernels of ours."""


def shared_bytes(architecture: str) -> int:
    """Bytes of shared memory that a CTA may have on ``sm_<number>`` or ``gfx<name>``.

    For an architecture that is not listed it is the least of its generation: NVIDIA's with the same
    number of tens.
    """
    if architecture in SHARED_KIB:
        return SHARED_KIB[architecture] * 1024
    if architecture.startswith("gfx"):
        return LEAST_KIB["gfx"] * 1024
    tens = sm_number(architecture) // 10
    known = [size for name, size in SHARED_KIB.items() if tens and sm_number(name) // 10 == tens]
    return min(known, default=LEAST_KIB["sm"]) * 1024
