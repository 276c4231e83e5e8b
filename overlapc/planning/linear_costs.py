"""How fast a linear layer of few rows can be at all: where each implementation may win."""

from __future__ import annotations

from dataclasses import dataclass

from overlapc.planning.linear import LIBRARY, MOST_ROWS, LinearProblem
from overlapc.planning.linear_tiles import FLAT, GEMV, rows_of_tile
from overlapc.planning.problem import ITEM_BYTES
from overlapc.planning.rates import ASSUMED_SHARE, GemmRates

BYTES = {**ITEM_BYTES, "int8": 1}


@dataclass(frozen=True)
class LinearRates:
    """What a device can do: none of it is a measurement of a kernel of ours."""

    read: float
    """Bytes a second from memory."""
    ordinary: float
    """Operations a second of the ordinary cores."""
    matrix: float
    """Operations a second of the matrix units, in the dtype of the rows."""

    @staticmethod
    def of(rates: GemmRates, float32: GemmRates) -> LinearRates | None:
        """From a target's GEMMs of the dtype and of float32; None where memory is not known."""
        read = rates.memory_bytes_per_second
        return LinearRates(read, float32.flops_per_second, rates.flops_per_second) if read else None


def weight_bytes(problem: LinearProblem) -> int:
    """Of what every row count has to read."""
    return problem.weights * problem.columns * problem.k * BYTES[problem.held or problem.dtype]


def least_seconds(
    problem: LinearProblem, implementation: str, rows: int, rates: LinearRates
) -> float:
    """No run of this implementation takes less, launch aside: reading, or else multiplying."""
    item = BYTES[problem.dtype]
    moved = weight_bytes(problem) + rows * (problem.k + problem.columns) * item
    computed = {GEMV: rows, FLAT: rows_of_tile(FLAT, rows) or rows, LIBRARY: rows}[implementation]
    flops = 2.0 * problem.weights * computed * problem.columns * problem.k
    rate = rates.ordinary if implementation == GEMV else rates.matrix
    share = ASSUMED_SHARE if implementation == FLAT else 1.0
    return max(moved / rates.read, flops / (share * rate))


def may_win(problem: LinearProblem, implementation: str, rows: int, rates: LinearRates) -> bool:
    """Whether an implementation need not be slower than the best library there could be.

    Where reading takes longest all are equal at best: there, only a measurement tells.
    """
    if rows > MOST_ROWS[implementation]:
        return False
    ours = least_seconds(problem, implementation, rows, rates)
    return ours <= least_seconds(problem, LIBRARY, rows, rates)


def bounds(problem: LinearProblem, rates: LinearRates) -> dict[str, int]:
    """Up to which row count each of ours may win; 0 where it never may."""
    return {
        way: max((m for m in range(1, most + 1) if may_win(problem, way, m, rates)), default=0)
        for way, most in MOST_ROWS.items()
    }
