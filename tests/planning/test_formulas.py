from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
import sympy

from overlapc.planning import cost, formulas
from overlapc.planning.cost import Costs
from overlapc.planning.rates import GemmRates
from overlapc.planning.signaled import boundaries
from overlapc.planning.tiles import LEAST_SHARE
from tests.planning.machines import (
    KERNELS,
    random_curve,
    random_kernel,
    random_problem,
    random_target,
)

CASES = 200


def compiled(expression: sympy.Expr, names: str):
    return sympy.lambdify(formulas.symbols(names), expression, "math")


def test_gemm_seconds_are_the_formula() -> None:
    random = Random(0)
    formula = compiled(formulas.gemm_seconds(), "r n k b F P B a t_r t_c w e S")
    for _ in range(CASES):
        r, n, k = (random.randint(1, 500) for _ in range(3))
        b, rows, columns, Q = (random.randint(1, 8) for _ in range(4))
        F, P, B, S = (10 ** random.uniform(3, 9) for _ in range(4))
        e = random.randint(0, 100_000)
        a = random.random()
        rates = GemmRates("float32", F, a, P, B, rows, columns, Q, S)
        expected = formula(r, n, k, b, F, P, B, a, rows, columns, Q, e, S)
        assert rates.seconds(r, n, k, b, e) == pytest.approx(expected, rel=1e-12)


def test_a_gemm_beside_a_collective_is_the_formula() -> None:
    random = Random(6)
    formula = compiled(formulas.gemm_seconds_beside(), "r n k b F P B a t_r t_c w s c e S")
    more = 0
    for _ in range(CASES):
        p = random_problem(random, 300)
        target = random_target(random, device="cuda", resident=random.choice([3, 17, 60]))
        target = replace(target, communication_sms=random.choice([1, 2]))
        costs, r, rates = Costs(p, target), random.randint(1, p.m), target.gemm[0]
        P, B, S = (
            rate or math.inf
            for rate in (rates.pack_bytes_per_second, rates.memory_bytes_per_second, math.inf)
        )
        extra = rates.pointwise_seconds(p.epilogue_bytes * r // p.m)
        expected = formula(
            r, p.n, p.k, 4, rates.flops_per_second, P, B, rates.launch_seconds, rates.tile_rows,
            rates.tile_columns, rates.resident, target.communication_sms, target.compute_slowdown,
            0, S,
        )  # fmt: skip
        assert costs.gemm(r, beside=True) == pytest.approx(expected + extra, rel=1e-12)
        more += costs.gemm(r, beside=True) > costs.gemm(r)
    assert 0 < more < CASES


def test_the_curve_is_the_formula() -> None:
    random = Random(1)
    formula = compiled(formulas.curve_seconds(), "x x_0 x_1 y_0 y_1")
    for _ in range(CASES):
        curve = random_curve(random)
        for (x_0, y_0), (x_1, y_1) in zip(curve.points, curve.points[1:], strict=False):
            x = random.randint(x_0, x_1)
            assert curve.seconds(x) == pytest.approx(formula(x, x_0, x_1, y_0, y_1), abs=1e-9)


def test_advance_is_the_formula() -> None:
    random = Random(2)
    ready, end = (compiled(part, "G L Q R E c d") for part in formulas.advance())
    for _ in range(CASES):
        G, L, Q, R = (random.random() for _ in range(4))
        E, c, d = R + random.random(), 1 + random.random(), 1 + random.random()
        expected = (ready(G, L, Q, R, E, c, d), end(G, L, Q, R, E, c, d))
        assert cost.advance(R, E, G, L, Q, c, d) == pytest.approx(expected, rel=1e-12)


def test_a_kernel_is_its_formulas() -> None:
    """Everything that can be infinite or absent has a number here: a term without one is 0."""
    random = Random(4)
    names = "r n k b F P B a t_r t_c w e S m_t n_t k_t z g s u h o M C f"
    wave = compiled(formulas.kernel_wave_seconds(), names)
    read = compiled(formulas.kernel_read_bytes(), names)
    ready = compiled(formulas.kernel_ready(), "a w s t v")
    rebound = 0
    for kind in [*KERNELS] * (CASES // 5):
        costs = random_kernel(random, kind)
        p, tile, target = costs.problem, costs.tiling, costs.target
        share, pack, memory, pointwise = (
            random.uniform(0.3, 1),
            *(10 ** random.uniform(low, low + 3) for low in (8, 9, 9)),
        )
        rates = replace(
            target.gemm[0], generated_share=share, pack_bytes_per_second=pack,
            memory_bytes_per_second=memory, pointwise_bytes_per_second=pointwise,
        )  # fmt: skip
        target = replace(target, gemm=(rates,), l2_bytes_per_second=10 ** random.uniform(9, 12))
        costs = replace(costs, target=target)
        s = min(target.communication_sms, rates.resident - 1)
        values = (
            p.m, p.n, p.k, p.item_bytes, rates.flops_per_second, pack,
            memory, rates.launch_seconds, rates.tile_rows,
            rates.tile_columns, rates.resident, p.epilogue_bytes,
            pointwise, tile.block_m, tile.block_n, tile.block_k, tile.sweep,
            share * LEAST_SHARE, s, costs.runs, costs.height, p.sent_item_bytes,
            target.l2_bytes, target.l2_bytes_per_second, target.tile_seconds,
        )  # fmt: skip
        assert costs.read_bytes == pytest.approx(read(*values), rel=1e-12)
        assert costs.wave_seconds == pytest.approx(wave(*values), rel=1e-12)
        rows = random.choice(boundaries(costs)).rows
        tiles, seconds = costs.tiles_in(rows), costs.wave_seconds
        expected = ready(rates.launch_seconds, rates.resident, s, tiles, seconds)
        assert costs.ready(rows) == pytest.approx(expected, rel=1e-12)
        rebound += costs.read_bytes > p.m * p.k * p.item_bytes + p.n * p.k * p.item_bytes
    assert rebound > 20


def falls(random: Random, c: float, d: float) -> bool:
    """Whether a label that is nowhere later leads to one that is somewhere later."""
    G, L, Q, R, late_ready, late_end = (random.random() for _ in range(6))
    E = R + 2 * random.random()
    L, Q = max(L, Q), min(L, Q)
    later_ready = R + late_ready
    later_end = max(later_ready, E + late_end * random.choice([0, 1]))
    first = cost.advance(R, E, G, L, Q, c, d)
    second = cost.advance(later_ready, later_end, G, L, Q, c, d)
    return any(a > b + 1e-12 for a, b in zip(first, second, strict=True))


def test_dominance_holds_where_overlap_gains() -> None:
    """What the search prunes by needs 1/c + 1/d >= 1, and no less, given queued <= alone."""
    random = Random(3)
    gaining = losing = 0
    for _ in range(20_000):
        c, d = 1 + 2 * random.random(), 1 + 2 * random.random()
        if 1 / c + 1 / d >= 1:
            assert not falls(random, c, d)
            gaining += 1
        else:
            losing += falls(random, c, d)
    assert gaining > 1000
    assert losing > 10


def test_every_symbol_is_explained() -> None:
    for expression in formulas.formulas().values():
        assert {str(symbol) for symbol in expression.free_symbols} <= set(formulas.MEANING)
