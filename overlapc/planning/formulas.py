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
    "G": "seconds of a group's GEMM with nothing in flight; of a producer's later groups beside a "
    "collective, but for c; of a consumer, of its collective",
    "L": "seconds of its collective on an idle link; of a consumer, of its GEMM",
    "Q": "seconds that the collective adds to a busy link; of a consumer, L",
    "R": "when the groups so far are computed; of a consumer, when they have come",
    "E": "when the link would be done with them if nothing more were computed; of a consumer, "
    "when compute would be if nothing more came",
    "c": "compute_slowdown; of a consumer, link_slowdown",
    "d": "link_slowdown; of a consumer, compute_slowdown",
    "m_t": "block_m of a generated kernel's tile",
    "n_t": "block_n of it",
    "k_t": "block_k of it",
    "z": "sweep of it",
    "g": "generated_share times the tile's own share",
    "s": "communication_sms",
    "u": "runs of rows of C that share no tile with each other",
    "h": "tile rows of a run that bands are multiples of",
    "o": "bytes of an element of what is sent",
    "M": "l2_bytes",
    "C": "l2_bytes_per_second",
    "f": "tile_seconds",
    "t": "tiles of the groups so far",
    "v": "seconds of a wave of a generated kernel",
}
"""What each symbol stands for; names in code are fields of a target."""


def symbols(names: str) -> tuple[sympy.Symbol, ...]:
    """The symbols of those names: all quantities are positive."""
    import sympy

    return sympy.symbols(names, positive=True)


def gemm_seconds() -> sympy.Expr:
    """What `GemmRates.seconds` computes; leave out a term by letting its rate go to infinity."""
    import sympy

    r, n, k, b, F, P, B, a, rows, columns, w, e, S = symbols("r n k b F P B a t_r t_c w e S")
    waves = sympy.ceiling(sympy.ceiling(r / rows) * sympy.ceiling(n / columns) / w)
    computed = waves * w * rows * columns * 2 * k / F + k * n * b / P
    return a + sympy.Max(computed, (r * k + k * n + r * n) * b / B) + e / S


def gemm_seconds_beside() -> sympy.Expr:
    """What `Costs.gemm` gives beside a collective; `advance` then multiplies it by c."""
    import sympy

    r, n, k, F, P, B, a, e, S = symbols("r n k F P B a e S")
    b, rows, columns, w, s, c = symbols("b t_r t_c w s c")
    tiles = sympy.ceiling(r / rows) * sympy.ceiling(n / columns)
    waves = sympy.Max(sympy.ceiling(tiles / w), sympy.ceiling(tiles / (w - s)) / c)
    computed = waves * w * rows * columns * 2 * k / F + k * n * b / P
    return a + sympy.Max(computed, (r * k + k * n + r * n) * b / B) + e / S


def curve_seconds() -> sympy.Expr:
    """What `Curve.seconds` gives between two measured points."""
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


def kernel_read_bytes() -> sympy.Expr:
    """What `KernelCosts.read_bytes` computes; gcd is the greatest common divisor."""
    import sympy

    r, n, k, b, w, m_t, n_t, z, s, u, h, M = symbols("r n k b w m_t n_t z s u h M")
    run, across, workers = sympy.ceiling(r / u / m_t), sympy.ceiling(n / n_t), w - s
    sweep, waves = sympy.Min(z, run), sympy.ceiling(u * run * across / workers)
    tiles, held = sweep * across, sympy.Max(sweep, sympy.ceiling(workers / across))
    columns = sympy.Min(across, sympy.ceiling(workers / sweep)) * n_t
    again_a = sympy.Min(waves, 1 + (tiles - sympy.Function("gcd")(tiles, workers)) / workers)
    again_b = sympy.Min(u * sympy.ceiling(run / sympy.Min(h, sweep)), waves)
    until = held + sweep * sympy.Piecewise((1, sympy.Ne(sympy.Mod(workers, tiles), 0)), (0, True))
    a_rows, b_rows = (sympy.Min(its, u * run) * m_t for its in (held, until))
    a_times = sympy.Piecewise((again_a, (a_rows + columns) * k * b > M), (1, True))
    b_times = sympy.Piecewise((again_b, (b_rows + n) * k * b > M), (1, True))
    return a_times * r * k * b + b_times * n * k * b


def kernel_wave_seconds() -> sympy.Expr:
    """What `KernelCosts.wave_seconds` computes."""
    import sympy

    r, n, k, b, F, B, a, w, e, S = symbols("r n k b F B a w e S")
    m_t, n_t, k_t, g, s, u, o, C, f = symbols("m_t n_t k_t g s u o C f")
    tiles = u * sympy.ceiling(r / u / m_t) * sympy.ceiling(n / n_t)
    waves, depth = sympy.ceiling(tiles / (w - s)), sympy.ceiling(k / k_t) * k_t
    multiplying = 2 * m_t * n_t * w * depth / (F * g)
    from_l2 = (w - s) * (m_t + n_t) * depth * b / C
    from_memory = kernel_read_bytes() / waves / B
    stored = ((w - s) * m_t * n_t * o + e / waves) / S
    mine = sympy.Max(multiplying, from_l2, from_memory) + f + stored
    return sympy.Max(mine, (gemm_seconds() - a) / sympy.ceiling(tiles / w))


def kernel_ready() -> sympy.Expr:
    """What `KernelCosts.ready` computes."""
    import sympy

    a, w, s, t, v = symbols("a w s t v")
    return a + sympy.ceiling(t / (w - s)) * v


def formulas() -> dict[str, sympy.Expr]:
    """Every formula by name, for printing."""
    ready, end = advance()
    return {
        "gemm": gemm_seconds(),
        "gemm beside": gemm_seconds_beside(),
        "curve": curve_seconds(),
        "ready": ready,
        "end": end,
        "kernel read": kernel_read_bytes(),
        "kernel wave": kernel_wave_seconds(),
        "kernel ready": kernel_ready(),
    }
