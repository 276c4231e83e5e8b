"""Attention on processors by products of some rows at a time, beside Inductor's and torch's own.

``python -m benchmarks.by_rows``: heads of 64, keys as many as rows unless said, one thread, all
three ways interleaved; ratios are paired by round. The planner's thresholds are from it. "later": a
mask that is given hides later keys, as that of a padded prefill; "last": it hides the last
sixteenth of keys.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.measuring.paired import Alone, Samples, measure
from benchmarks.measuring.tables import milliseconds, table
from overlapc.planning.attention.by_rows import THREADS
from overlapc.runtime.attention.by_rows import spans_of
from overlapc.runtime.attention.products import attention_by_products

DIM = 64


@dataclass(frozen=True)
class Case:
    """One attention, spelled out."""

    dtype: str
    batch: int
    heads: int
    key_heads: int
    rows: int
    keys: int
    mask: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        heads = f"{self.batch}x{self.heads}/{self.key_heads}"
        return f"{self.mask}, {self.dtype}, {heads}, {self.rows} over {self.keys}"

    def operands(self) -> list[torch.Tensor]:
        """Queries, keys, values, and the mask where it is given."""
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        shapes = [(self.rows, self.heads), *[(self.keys, self.key_heads)] * 2]
        sides = [torch.randn(self.batch, n, h, DIM, dtype=dtype).transpose(1, 2) for n, h in shapes]
        if self.mask == "causal":
            return sides
        kept = torch.ones(self.batch, 1, self.rows, self.keys, dtype=torch.bool)
        if self.mask == "later":
            kept = kept.tril_(self.keys - self.rows)
        else:
            kept[..., -self.keys // 16 :] = False
        least = torch.finfo(dtype).min
        return [*sides, torch.zeros(kept.shape, dtype=dtype).masked_fill_(~kept, least)]


CASES = (
    *(Case(dtype, 1, heads, keys, rows, rows, "causal")
      for dtype in ("float32", "bfloat16") for heads, keys in ((12, 12), (16, 4))
      for rows in (256, 384, 512, 768, 1024, 1536, 2048)),
    *(Case(dtype, 4, 32, 8, 512, 512, "causal") for dtype in ("float32", "bfloat16")),
    *(Case(dtype, batch, heads, keys, rows, over, mask)
      for dtype in ("float32", "bfloat16")
      for batch, heads, keys, rows, over, mask in (
          (1, 16, 4, 128, 1024, "later"), (1, 16, 4, 384, 1024, "later"),
          (1, 16, 4, 384, 384, "later"), (1, 16, 4, 384, 384, "last"),
          (1, 16, 4, 512, 512, "later"),
          (1, 16, 4, 512, 512, "last"), (1, 12, 12, 512, 512, "later"),
          (1, 12, 12, 512, 512, "last"), (8, 12, 12, 512, 512, "last"),
          (1, 16, 4, 1024, 1024, "later"), (1, 16, 4, 1024, 1024, "last"),
          (1, 12, 12, 2048, 2048, "later"), (1, 12, 12, 2048, 2048, "last"),
      )),
)  # fmt: skip


def spelled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
    """As models spell it out."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (side[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for side in (k, v))
    scores = q @ k.transpose(2, 3) * DIM**-0.5
    if mask:
        scores = scores + mask[0]
    else:
        later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, torch.finfo(q.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2).contiguous()


def ways(case: Case) -> dict[str, Callable[[], torch.Tensor]]:
    """What is compared."""
    sides = case.operands()
    torch._dynamo.reset()
    compiled = torch.compile(spelled, dynamic=False)
    q, k, v, *masks = sides
    mask = masks[0] if masks else None

    def fused() -> torch.Tensor:
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous()

    def products() -> torch.Tensor:
        spans = spans_of(q, k, v, mask)
        return attention_by_products(q, k, v, DIM**-0.5, mask, spans).transpose(1, 2)

    return {"inductor": lambda: compiled(*sides), "fused": fused, "products": products}


def compared(case: Case, rounds: int) -> Samples:
    """Seconds of each way, which give the same."""
    found = ways(case)
    wanted = spelled(*(side.double() for side in case.operands()))
    bound = 1e-5 if case.dtype == "float32" else 0.03
    for way in found.values():
        torch.testing.assert_close(way().double(), wanted, atol=bound, rtol=bound)
    return measure(found, Alone(), rounds=rounds, seed=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Print how much faster products are than either."""
    parser = argparse.ArgumentParser("python -m benchmarks.by_rows", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args(argv)
    torch.set_num_threads(THREADS)
    lines = []
    with torch.no_grad():
        for case in CASES:
            if given.only in case.name:
                samples = compared(case, given.rounds)
                ratios = [str(samples.ratio(way, "products")) for way in ("inductor", "fused")]
                lines.append((case.name, milliseconds(samples.median("products")), *ratios))
                print(*lines[-1], flush=True)
    page = table(("attention", "products, ms", "times Inductor", "times fused"), lines)
    about = f"`python -m benchmarks.by_rows`, {time.strftime('%Y-%m-%d')}, {given.rounds} rounds"
    threads = torch.get_num_threads()
    page = f"{about}, torch {torch.__version__}, threads: {threads}\n\n{page}\n"
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "by_rows.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
