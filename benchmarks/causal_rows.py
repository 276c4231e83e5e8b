"""Causal attention on processors, for some rows at a time, beside one call of torch's.

``python -m benchmarks.causal_rows``: Llama's heads of 64, float32, keys as many as rows, both ways
interleaved; ratios are paired by round. It tells from which rows to which ones the op cuts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.measuring.paired import Alone, Samples, measure
from benchmarks.measuring.tables import milliseconds, table
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.runtime.attention.library import by_rows

HEADS, DIM = 12, 64
SPEC = AttentionSpec("float32", DIM, DIM, scale=DIM**-0.5, after=0)
ROWS = (256, 384, 512, 640, 768, 1024, 1536, 2048)


def compared(rows: int, rounds: int) -> Samples:
    """Seconds of both ways, "whole" and "by rows", over as many keys as rows."""
    torch.manual_seed(0)
    operands = torch.randn(3, 1, HEADS, rows, DIM)
    q, k, v = operands.transpose(2, 3).contiguous().transpose(2, 3)

    def whole() -> torch.Tensor:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).contiguous()

    ways = {"whole": whole, "by rows": lambda: by_rows(SPEC, q, k, v)}
    torch.testing.assert_close(whole().transpose(1, 2), by_rows(SPEC, q, k, v))
    return measure(ways, Alone(), rounds=rounds, seed=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Print how much faster some rows at a time are."""
    parser = argparse.ArgumentParser("python -m benchmarks.causal_rows", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--rounds", type=int, default=61)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(argv)
    lines = []
    for rows in given.rows:
        samples = compared(rows, given.rounds)
        ratio = samples.ratio("whole", "by rows")
        lines.append((str(rows), milliseconds(samples.median("by rows")), str(ratio)))
    page = table(("rows", "by rows, ms", "times as fast"), lines)
    threads = torch.get_num_threads()
    about = (
        f"`python -m benchmarks.causal_rows`, {time.strftime('%Y-%m-%d')}, {given.rounds} rounds"
    )
    page = f"{about}, torch {torch.__version__}, threads: {threads}\n\n{page}\n"
    print(page)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "causal_rows.md").write_text(page)


if __name__ == "__main__":
    main()
