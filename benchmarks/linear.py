"""Linear layers of few rows on a processor: what could beat the library, paired.

``python -m benchmarks.linear`` times ``F.linear`` as Inductor compiles it against the library with
its operands in other places, oneDNN with packed weights, and Inductor's own templates, from cold
caches, and writes benchmarks/results/linear.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch._inductor import config as inductor_config

from benchmarks.attention import Alone
from benchmarks.paired import Samples, measure
from overlapc.runtime.linear_trials import COLD_BYTES
from overlapc.runtime.linear_ways import swapped, vectors

PEER, AGAIN = "inductor", "inductor again"
ROWS = (1, 2, 4, 8, 16, 32, 64)
SHAPES = {"qkv": (1536, 1024), "o": (1024, 1024), "gate, up": (5632, 1024), "down": (1024, 2816),
          "head": (32000, 1024)}  # fmt: skip
"""Columns and contracted size of the layers of a small Llama, and of its vocabulary."""
MOST_COPIES = 16

Linear = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of rows [m, k] and a weight [n, k]."""


@dataclass(frozen=True)
class Case:
    """One layer at one row count."""

    name: str
    rows: int
    n: int
    k: int
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}, {self.rows}x{self.n}x{self.k} {dtype}"


def cases() -> Iterator[Case]:
    """Every layer at every row count in both dtypes."""
    for dtype in (torch.float32, torch.bfloat16):
        for name, (n, k) in SHAPES.items():
            for rows in ROWS:
                yield Case(name, rows, n, k, dtype)


def by_inductor(x: torch.Tensor, w: torch.Tensor, **changes: Any) -> Linear:
    """``F.linear`` compiled for such operands."""
    with inductor_config.patch(**changes):
        torch._dynamo.reset()
        run = torch.compile(lambda x, w: F.linear(x, w), dynamic=False)
        run(x, w)
    return run


def packed(x: torch.Tensor, weights: list[torch.Tensor]) -> Linear:
    """oneDNN with weights that it has laid out anew: a second copy that sees no change of them."""
    reorder = torch.ops.mkldnn._reorder_linear_weight
    held = {w.data_ptr(): reorder(w, len(x)) for w in weights}
    compute = torch.ops.mkldnn._linear_pointwise

    def run(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return compute(x, held[w.data_ptr()], None, "none", [], "")

    return run


def candidates(case: Case) -> dict[str, Callable[[], object]]:
    """A warm call for each way; each call reads another copy of the weight."""
    x = torch.randn(case.rows, case.k).to(case.dtype)
    size = case.n * case.k * x.element_size()
    copies = max(2, min(MOST_COPIES, COLD_BYTES // size))
    weights = [torch.randn(case.n, case.k).to(case.dtype) for _ in range(copies)]
    peer = by_inductor(x, weights[0])
    ways: dict[str, Linear] = {PEER: peer, AGAIN: peer, "library": F.linear}
    ways["swapped"] = lambda x, w: swapped(None, x, w.t())
    if case.rows <= 2:
        ways["vectors"] = lambda x, w: vectors(None, x, w.t())
    templates = {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN"}
    with suppress(Exception):  # not every build of torch has them
        ways["inductor's templates"] = by_inductor(x, weights[0], **templates)
    if torch.backends.mkldnn.is_available():
        ways["oneDNN, packed"] = packed(x, weights)

    def in_turn(way: Linear) -> Callable[[], object]:
        number = count()
        return lambda: way(x, weights[next(number) % copies])

    found = {name: in_turn(way) for name, way in ways.items()}
    for call in found.values():
        call()
        call()
    return found


def timed(found: dict[str, Callable[[], object]], seconds: float) -> Samples:
    """Rounds of about ``seconds`` in total."""
    start = time.perf_counter()
    for call in found.values():
        call()
    once = time.perf_counter() - start
    rounds = max(31, min(300, int(seconds / once)))
    return measure(found, Alone(), rounds=rounds, seed=0)


COLUMNS = ("library", "swapped", "vectors", "inductor's templates", "oneDNN, packed")


def row(case: Case, samples: Samples) -> str:
    """One line of the table."""
    ratios = [
        str(samples.ratio(PEER, name)) if name in samples.seconds else "-"
        for name in (AGAIN, *COLUMNS)
    ]
    shown = [str(case), f"{1e6 * samples.median(PEER):.0f}", *ratios, str(samples.rounds)]
    return f"| {' | '.join(shown)} |"


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row, about")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    head = ["layer", "inductor, us", AGAIN, *COLUMNS, "rounds"]
    lines = [
        f"torch {torch.__version__}, {torch.get_num_threads()} threads,"
        f" {time.strftime('%Y-%m-%d')}. Weights are read from cold caches. Ratios are of the time"
        " of `F.linear` as Inductor compiles it, paired by round, with their 95 % interval: above"
        " 1 a candidate is faster.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for case in cases():
        if given.only in str(case):
            lines.append(row(case, timed(candidates(case), given.seconds)))
            print(lines[-1], flush=True)
            if not given.only:  # row by row: a run that is cut short leaves what it measured
                given.out.mkdir(parents=True, exist_ok=True)
                (given.out / "linear.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
