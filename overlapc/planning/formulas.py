"""The cost model in symbols: what the documentation prints and the fast code is tested against.

Needs sympy, imported when a formula is asked for, so that planning itself stays quick to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sympy

MEANING = {
    "r": "rows of a group; of a group of columns, all rows",
    "n": "columns of the GEMM on one rank; of a group of columns, its columns",
    "k": "contracted size on one rank",
    "b": "bytes of an element",
    "F": "flops_per_second",
    "P": "pack_bytes_per_second",
    "B": "memory_bytes_per_second",
    "a": "launch_seconds",
    "t_r": "tile_rows",
    "t_c": "tile_columns",
    "w": "resident",
    "e": "bytes that pointwise work beside the GEMM reads and writes; of a group of columns, the "
    "pass that puts it in its place too",
    "S": "pointwise_bytes_per_second",
    "x": "bytes of a collective",
    "x_0": "bytes of the measured point below",
    "x_1": "bytes of the measured point above",
    "y_0": "seconds of the measured point below",
    "y_1": "seconds of the measured point above",
    "G": "seconds of a group's GEMM with nothing in flight; of a consumer, of its collective",
    "L": "seconds of its collective on an idle link; of a consumer, of its GEMM",
    "Q": "seconds that the collective adds to a busy link; of a consumer, L",
    "R": "when the groups so far are computed; of a consumer, when they have come",
    "E": "when the link would be done with them if nothing more were computed; of a consumer, "
    "when compute would be if nothing more came",
    "c": "compute_slowdown; of a consumer, link_slowdown",
    "d": "link_slowdown; of a consumer, compute_slowdown",
}
"""What each symbol stands for; names in code are fields of a target."""


def symbols(names: str) -> tuple[sympy.Symbol, ...]:
    """The symbols of those names: all quantities are positive."""
    import sympy

    return sympy.symbols(names, positive=True)


def gemm_seconds() -> sympy.Expr:
    """Of `GemmRates.seconds`; leave out a term by letting its rate go to infinity."""
    import sympy

    r, n, k, b, F, P, B, a, rows, columns, w, e, S = symbols("r n k b F P B a t_r t_c w e S")
    waves = sympy.ceiling(sympy.ceiling(r / rows) * sympy.ceiling(n / columns) / w)
    computed = waves * w * rows * columns * 2 * k / F + k * n * b / P
    return a + sympy.Max(computed, (r * k + k * n + r * n) * b / B) + e / S


def curve_seconds() -> sympy.Expr:
    """Of `Curve.seconds` between two measured points."""
    import sympy

    x, x_0, x_1, y_0, y_1 = symbols("x x_0 x_1 y_0 y_1")
    return y_0 * (y_1 / y_0) ** (sympy.log(x / x_0) / sympy.log(x_1 / x_0))


def advance() -> tuple[sympy.Expr, sympy.Expr]:
    """``(R, E)`` after one more group, as `cost.advance` gives them."""
    import sympy

    G, L, Q, R, E, c, d = symbols("G L Q R E c d")
    busy = sympy.Lt(G * c, (E - R) * d)
    ready = R + sympy.Piecewise((G * c, busy), (G + (E - R) * d * (1 - 1 / c), True))
    left = E - R - G * c / d
    return ready, ready + sympy.Piecewise((sympy.Max(left + Q, L), busy), (L, True))


def formulas() -> dict[str, sympy.Expr]:
    """Every formula by name, for printing."""
    ready, end = advance()
    return {"gemm": gemm_seconds(), "curve": curve_seconds(), "ready": ready, "end": end}
