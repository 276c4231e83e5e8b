"""The chains that are measured: layers of named models scaled to this machine, and extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

LOOPBACK = "loopback"
"""In place of a rate: no link is made, and the ranks talk through this machine's memory."""

FAST, SLOW = "1gbit", "300mbit"
RATES = (SLOW, FAST)
"""Those of the tables below: at its own rate, a shape computes about as long as it sends."""

COLLECTIVES = {
    "all_reduce": "gemm_all_reduce",
    "reduce_scatter": "gemm_reduce_scatter",
    "all_gather": "all_gather_gemm",
    "all_to_all": "gemm_all_to_all",
}
"""What the command line may call a kind of chain; also what it measures by default."""

KINDS = (*COLLECTIVES.values(), "all_to_all_gemm")
"""All kinds of ``benchmarks.overlap_link.chains``."""


@dataclass(frozen=True)
class Shape:
    """One rank's GEMM ``C[m, n] = A[m, k] @ W[n, k].T`` of a chain."""

    m: int
    n: int
    k: int
    origin: str
    """The model, layer and the rank's share of it, or what it is extreme in."""

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k}"


@dataclass(frozen=True)
class Pair:
    """One row of the table."""

    shape: Shape
    rate: str
    """Of the link, as ``tc`` spells it, or ``LOOPBACK``."""
    is_extreme: bool
    """Overlap is not expected to pay here; counted in "never slower", not in the share of bound."""
    kind: str = "gemm_all_reduce"
    """One of ``KINDS``."""
    ranks: int = 2


# The fast and the slow shapes of a table take turns, so that its first few have both.
_ROW_PARALLEL = (
    (FAST, Shape(2048, 1024, 1536, "Qwen3 0.6B down, 1/2 of k, 2048 tokens")),
    (SLOW, Shape(512, 2048, 4096, "Llama 3.2 1B down, 1/2 of k, 512 tokens")),
    (FAST, Shape(512, 4096, 1792, "Llama 3.1 8B down, 1/8 of k, 512 tokens")),
    (SLOW, Shape(1024, 1152, 3456, "Gemma 3 1B down, 1/2 of k, 1024 tokens")),
    (FAST, Shape(1024, 2048, 1024, "Llama 3.2 1B o, 1/2 of k, 1024 tokens")),
    (SLOW, Shape(768, 1600, 3200, "GPT-2 XL c_proj, 1/2 of k, 768 tokens")),
    (FAST, Shape(2048, 1024, 1024, "Qwen3 0.6B o, 1/2 of k, 2048 tokens")),
    (SLOW, Shape(512, 2048, 3072, "Qwen3 1.7B down, 1/2 of k, 512 tokens")),
    (FAST, Shape(1024, 2048, 2816, "TinyLlama 1.1B down, 1/2 of k, 1024 tokens")),
    (SLOW, Shape(384, 3072, 4096, "Phi-3 mini down, 1/2 of k, 384 tokens")),
    (FAST, Shape(2048, 896, 2432, "Qwen2.5 0.5B down, 1/2 of k, 2048 tokens")),
    (SLOW, Shape(512, 3584, 2368, "Qwen2.5 7B down, 1/8 of k, 512 tokens")),
)
"""Their results are summed: all-reduced, or reduce-scattered where the sequence is split."""

_COLUMN_PARALLEL = (
    (FAST, Shape(1024, 1280, 2048, "TinyLlama 1.1B qkv, 1/2 of n, 1024 tokens")),
    (SLOW, Shape(1024, 3072, 1024, "Qwen3 0.6B gate and up, 1/2 of n, 1024 tokens")),
    (FAST, Shape(2048, 768, 1152, "Gemma 3 1B qkv, 1/2 of n, 2048 tokens")),
    (SLOW, Shape(512, 2816, 2048, "TinyLlama 1.1B gate and up, 1/4 of n, 512 tokens")),
    (FAST, Shape(512, 768, 4096, "Llama 3.1 8B qkv, 1/8 of n, 512 tokens")),
    (SLOW, Shape(768, 2400, 1600, "GPT-2 XL c_attn, 1/2 of n, 768 tokens")),
    (FAST, Shape(1024, 1536, 2048, "Llama 3.2 1B qkv, 1/2 of n, 1024 tokens")),
    (SLOW, Shape(2048, 2048, 1024, "Qwen3 0.6B qkv, 1/2 of n, 2048 tokens")),
    (FAST, Shape(512, 1152, 3584, "Qwen2.5 7B qkv, 1/4 of n, 512 tokens")),
    (SLOW, Shape(1024, 2432, 896, "Qwen2.5 0.5B gate and up, 1/4 of n, 1024 tokens")),
    (FAST, Shape(2048, 576, 896, "Qwen2.5 0.5B qkv, 1/2 of n, 2048 tokens")),
    (SLOW, Shape(768, 3456, 1152, "Gemma 3 1B gate and up, 1/4 of n, 768 tokens")),
)
"""What they read is gathered, where the sequence is split."""

_EXPERT_DOWN = (
    (FAST, Shape(1024, 2048, 768, "Qwen3 30B-A3B expert down, 1024 tokens")),
    (SLOW, Shape(512, 2880, 2880, "gpt-oss 20B expert down, 512 tokens")),
    (FAST, Shape(1024, 2048, 1024, "OLMoE 1B-7B expert down, 1024 tokens")),
    (SLOW, Shape(256, 7168, 2048, "DeepSeek-V3 expert down, 256 tokens")),
    (FAST, Shape(1024, 2048, 1408, "DeepSeek-V2 Lite expert down, 1024 tokens")),
    (SLOW, Shape(256, 4096, 3584, "Mixtral 8x7B expert down, 1/4 of k, 256 tokens")),
    (FAST, Shape(2048, 1024, 512, "Granite 3.0 1B-A400M expert down, 2048 tokens")),
    (SLOW, Shape(256, 4096, 3200, "Phi-3.5 MoE expert down, 1/2 of k, 256 tokens")),
    (FAST, Shape(512, 4096, 1536, "Qwen3 235B-A22B expert down, 512 tokens")),
    (SLOW, Shape(256, 5120, 2048, "Llama 4 Scout expert down, 1/4 of k, 256 tokens")),
    (FAST, Shape(2048, 1536, 512, "Granite 3.0 3B-A800M expert down, 2048 tokens")),
    (SLOW, Shape(256, 6144, 2688, "DBRX expert down, 1/4 of k, 256 tokens")),
)
"""Their results go back to the ranks that the tokens came from, equally many to each."""

_EXPERT_UP = (
    (FAST, Shape(1024, 1536, 2048, "Qwen3 30B-A3B expert gate and up, 1024 tokens")),
    (SLOW, Shape(1024, 2816, 2048, "DeepSeek-V2 Lite expert gate and up, 1024 tokens")),
    (FAST, Shape(2048, 1024, 1024, "Granite 3.0 1B-A400M expert gate and up, 2048 tokens")),
    (SLOW, Shape(512, 3072, 4096, "Qwen3 235B-A22B expert gate and up, 512 tokens")),
)
"""What they read comes from the ranks of the tokens."""

MODELS: dict[str, tuple[tuple[str, Shape], ...]] = {
    "gemm_all_reduce": _ROW_PARALLEL,
    "gemm_reduce_scatter": _ROW_PARALLEL,
    "all_gather_gemm": _COLUMN_PARALLEL,
    "gemm_all_to_all": _EXPERT_DOWN,
    "all_to_all_gemm": _EXPERT_UP,
}
"""By kind: shapes and the rate of each. A rank's share may be that of a group larger than the one
that is measured: then only the GEMM's sizes are the model's."""

TINY = Shape(64, 256, 256, "tiny")
DECODE = Shape(16, 2048, 2048, "16 rows: a decode step")
MOSTLY_SENT = Shape(1024, 2048, 64, "small k: the collective dominates")
MOSTLY_GATHERED = Shape(1024, 64, 2048, "small n: the collective dominates")
WIDE = Shape(64, 16384, 512, "very wide")
LARGE = Shape(1024, 2048, 2048, "links cost nothing")


def pairs(
    kinds: Sequence[str] = tuple(COLLECTIVES.values()),
    rates: Sequence[str] = (),
    *,
    ranks: int = 2,
    shapes: int = 12,
    quick: bool = False,
    whole_rows: bool = False,
) -> list[Pair]:
    """All pairs, in the order of their rates: the first ``shapes`` of each kind, and extremes.

    Without ``rates`` every shape has its own, and two extremes of two ranks have none
    (``LOOPBACK``); else all are at all of ``rates``. More than two ranks share two cores: their
    GEMMs have half the rows, unless ``whole_rows``. ``quick`` leaves one shape and one extreme of
    each kind, at one rate.
    """
    found = []
    for kind in kinds:
        usual = MODELS[kind][: 1 if quick else shapes]
        extremes = _extremes(kind)[: 1 if quick else None]
        for rate in rates:
            found += [Pair(s, rate, rate == LOOPBACK, kind, ranks) for _, s in usual]
            found += [Pair(s, rate, True, kind, ranks) for s in extremes]
        if not rates:
            found += [Pair(s, rate, False, kind, ranks) for rate, s in usual]
            found += [Pair(s, FAST, True, kind, ranks) for s in extremes]
        if not rates and not quick and ranks == 2:
            found += [Pair(s, LOOPBACK, True, kind, ranks) for s in (LARGE, DECODE)]
    if ranks > 2 and not whole_rows:
        found = [replace(p, shape=halved(p.shape)) for p in found]
    order = rates or (*RATES, LOOPBACK)
    return sorted(found, key=lambda pair: order.index(pair.rate))


def _extremes(kind: str) -> list[Shape]:
    dominated = MOSTLY_GATHERED if kind in ("all_gather_gemm", "all_to_all_gemm") else MOSTLY_SENT
    return [TINY, DECODE, dominated, WIDE]


def halved(shape: Shape) -> Shape:
    """The same with half the rows, which the origin then says."""
    return replace(shape, m=shape.m // 2, origin=f"{shape.origin}, halved")
