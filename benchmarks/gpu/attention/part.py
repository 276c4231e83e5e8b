"""Attention on a GPU: every kernel checked, then timed against its peers and the bound.

Tables: what reading and products reach here; kernels against float64; decode steps over caches in
one tensor and in pages, latent ones (absorbed MLA) and float8 ones; a static cache that is not
full, as transformers reads it; prefill; scores so wide that every row is computed twice; gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu.attention.caches import LatentShape
from benchmarks.gpu.attention.checks import CHECKS, PAGE
from benchmarks.gpu.attention.speed import GIVEN, DecodeShape, PrefillShape
from benchmarks.gpu.claims import good, line
from benchmarks.gpu.linear import PLAIN
from benchmarks.gpu.worker import Row
from overlapc.planning.target import Target

BOUNDS, CHECKED = "Bounds", "Values"
DECODE, CACHE, PREFILL = "Decode", "A static cache that is not full", "Prefill"
LATENT, FLOAT8 = "Decode over a latent cache", "Decode over a float8 cache"
REDONE, TRAINED = "Rows that are computed twice", "Forward and gradients"
TABLES = (BOUNDS, CHECKED, DECODE, LATENT, FLOAT8, CACHE, PREFILL, REDONE, TRAINED)

SPEED = "benchmarks.gpu.attention.speed"
CACHES = "benchmarks.gpu.attention.caches"
K = 1024
SIZES = (
    (8, 8), (1, 128), (64, 1), (64, 8), (1, 32), (8, 32), (16, 4), (4, 64), (32, 4), (1, 8),
    (64, 32), (2, 16), (8, 1), (1, 1), (16, 32), (8, 128), (32, 16), (2, 128), (64, 128),
)  # fmt: skip
"""Sequences, and thousands of keys of each: the most telling first."""
WITH_FLEX = 3
"""So many of them beside FlexAttention too, over caches in one tensor: it is compiled anew for each
of them, and reads no others."""
STATIC = tuple((batch, 8 * K, 2 * K, groups) for batch in (1, 8, 32) for groups in (4, 8))
"""Sequences, room, keys, query heads a head: as in the issue that asks for it."""
LATENTS = tuple(
    LatentShape(batch, heads, thousands * K)
    for batch, thousands in ((16, 8), (1, 32), (16, 32), (1, 8), (16, 2), (1, 2))
    for heads in (128, 16)
)
"""Of DeepSeek's heads all, and those of one rank of eight."""
FLOAT8S = tuple(
    DecodeShape(batch, 4, thousands * K)
    for batch, thousands in ((8, 8), (1, 32), (32, 4), (16, 32), (1, 8), (1, 128))
)
SOONER = 2
"""So many rows of each of these before the rest of all tables."""
LONG = (
    PrefillShape(1, 4, 8 * K), PrefillShape(1, 4, 2 * K), PrefillShape(4, 4, 4 * K),
    PrefillShape(1, 4, 16 * K), PrefillShape(1, 4, 4 * K, is_causal=False),
    PrefillShape(2, 8, 4 * K, 64), PrefillShape(1, 1, 8 * K), PrefillShape(1, 4, 32 * K),
    PrefillShape(8, 4, 512), PrefillShape(1, 2, 4 * K, 256),
)  # fmt: skip
GRADIENTS = "gradients"
"""The kind of checks that are made before what is trained is timed: they compile as long as all
others together, and nothing else needs them."""
LEARNT = (PrefillShape(1, 4, 4 * K), PrefillShape(4, 1, 2 * K), PrefillShape(1, 4, 8 * K))
"""Of which gradients are wanted too."""
WIDE = 150.0
"""Standard deviation of the scores of `REDONE`: they reach what those of OPT do."""
WIDE_DECODE = tuple(DecodeShape(*sizes, spread=WIDE) for sizes in ((8, 4, 8 * K), (1, 4, 32 * K)))
WIDE_PREFILL = (PrefillShape(1, 4, 4 * K, spread=WIDE),)

OF_DECODE = ("share of the bound", "of best sdpa", "of sdpa", "of flex", "of flashinfer",
             "unified over online", "again")  # fmt: skip
IN_SUMMARY = ("share of the bound", "of best sdpa", "of flashmla", "of flashinfer",
              "of few rows", "of many rows", "of bfloat16", "of dequantised",
              "unified over online", "again")  # fmt: skip
"""Of latent and float8 caches."""

Done = Mapping[str, Sequence[Mapping[str, Any]]]


def rows(done: Done, shipped: Target) -> Iterator[Row]:
    """Every row, in the order in which they are measured."""
    yield Row(BOUNDS, PLAIN, "benchmarks.gpu.linear.reading")
    yield Row(BOUNDS, "a product", f"{SPEED}.product")
    yield from _checks(kind for kind in CHECKS if kind != GRADIENTS)
    read, flops = (_measured(done, unit) for unit in ("TB/s", "TFLOP/s"))
    first, *more = [
        [DecodeShape(batch, groups, thousands * K, page) for groups in (4, 8) for page in (0, PAGE)]
        for batch, thousands in SIZES
    ]
    for shapes in (first, *more[: WITH_FLEX - 1]):
        yield from (_decode(shape, read, with_flex=not shape.page) for shape in shapes)
    yield from _caches(read, flops, slice(SOONER))
    for batch, room, used, groups in STATIC:
        given = {"batch": batch, "room": room, "used": used, "groups": groups, "rate": read}
        name = f"B {batch}, {groups} query heads a head"
        yield Row(CACHE, name, f"{SPEED}.static_cache", given)
    yield from (_prefill(shape, flops, with_flex=shape == LONG[0]) for shape in LONG[:3])
    yield from (_decode(shape, read, table=REDONE) for shape in WIDE_DECODE)
    yield from (_prefill(shape, flops, table=REDONE) for shape in WIDE_PREFILL)
    yield from _checks([GRADIENTS])
    for shape in LEARNT:
        given = {"shape": shape, "rate": flops}
        yield Row(TRAINED, str(shape), f"{SPEED}.trained", given)
    yield from _caches(read, flops, slice(SOONER, None))
    for shapes in more[WITH_FLEX - 1 :]:
        yield from (_decode(shape, read) for shape in shapes)
    yield from (_prefill(shape, flops) for shape in LONG[3:])


def _checks(kinds: Iterable[str]) -> Iterator[Row]:
    for kind in kinds:
        for name in CHECKS[kind][1]:
            given = {"kind": kind, "name": name}
            yield Row(CHECKED, f"{kind}: {name}", "benchmarks.gpu.attention.checks.values", given)


def _decode(
    shape: DecodeShape, rate: float, *, with_flex: bool = False, table: str = DECODE
) -> Row:
    given = {"shape": shape, "rate": rate, "with_flex": with_flex}
    return Row(table, str(shape), f"{SPEED}.decode", given, seconds=0.7)


def _caches(read: float, flops: float, part: slice) -> Iterator[Row]:
    for shape in LATENTS[part]:
        given = {"shape": shape, "rate": read, "flops": flops}
        yield Row(LATENT, str(shape), f"{CACHES}.latent", given, seconds=0.7)
    for shape in FLOAT8S[part]:
        given = {"shape": shape, "rate": read}
        yield Row(FLOAT8, str(shape), f"{CACHES}.float8", given, seconds=0.7)


def _prefill(
    shape: PrefillShape, rate: float, *, with_flex: bool = False, table: str = PREFILL
) -> Row:
    given = {"shape": shape, "rate": rate, "with_flex": with_flex}
    return Row(table, str(shape), f"{SPEED}.prefill", given)


def _measured(done: Done, unit: str) -> float:
    """Bytes or operations a second, as this run measured them; zero where that failed."""
    return next((1e12 * row[unit] for row in done.get(BOUNDS, ()) if unit in row), 0.0)


def summary(done: Done) -> list[dict[str, Any]]:
    """One line for each claim that can be made."""
    checked = done.get(CHECKED, ())
    right = good(checked)
    lines: list[dict[str, Any]] = []
    if checked:
        lines.append({"row": "kernels that are right", "rows": f"{len(right)} of {len(checked)}"})
    decode = good(done.get(DECODE, ()))
    for column in OF_DECODE:
        lines += line(f"decode: {column}", decode, column)
    for name, its in (
        ("latent", good(done.get(LATENT, ()))),
        ("float8", good(done.get(FLOAT8, ()))),
    ):
        for column in IN_SUMMARY:
            lines += line(f"{name}: {column}", its, column)
    caches = good(done.get(CACHE, ()))
    for column in ("of inductor", GIVEN):
        lines += line(f"static cache: {column}", caches, column)
    prefill = good(done.get(PREFILL, ()))
    for column in ("of best sdpa", "unified over online", "by TMA over pointers",
                   "values behind over at once", "again", "share of the bound"):  # fmt: skip
        lines += line(f"prefill: {column}", prefill, column)
    trained = good(done.get(TRAINED, ()))
    for column in ("of best sdpa", "share of the bound"):
        lines += line(f"forward and gradients: {column}", trained, column)
    redone = [{"redone": float(row["redone"])} for row in (*decode, *prefill)]
    lines += line("rows of a call computed twice, of normal scores", redone, "redone")
    return lines + line("all computed twice: of online", good(done.get(REDONE, ())),
                        "unified over online")  # fmt: skip


def tables(done: Done, shipped: Target) -> dict[str, Sequence[Mapping[str, Any]]]:
    """What a page shows, the conclusions first."""
    return {"Summary": summary(done), **{name: done.get(name, []) for name in TABLES}}
