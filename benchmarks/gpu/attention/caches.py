"""Decode over caches of fewer bytes, timed on a GPU: latent (absorbed MLA), and scaled float8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.attention import speed
from benchmarks.gpu.attention.checks import LATENT, Held
from benchmarks.gpu.attention.peers import (
    Operands,
    flashinfer_latent_peer,
    flashmla_peer,
    sdpa_peers,
)
from benchmarks.gpu.attention.speed import AGAIN, ONLINE, OURS, Copy, DecodeShape, Turns
from benchmarks.gpu.timing import raw
from benchmarks.measuring.deadline import Deadline
from overlapc.codegen.attention.cache import Cache
from overlapc.runtime.attention.kernels import as_wide, tiles_beside

BFLOAT16, DEQUANTISED = "bfloat16", "dequantised"
SHARED = Cache(shares_values=True)
FLOAT8 = Cache("float8_e4m3fn", scales=True)


@dataclass(frozen=True)
class LatentShape:
    """One row of queries for each sequence; one head of keys, whose beginnings are the values."""

    batch: int
    heads: int
    """Of queries."""
    keys: int
    """Of each sequence."""

    def __str__(self) -> str:
        dims = f"{LATENT.head_dim}/{LATENT.value_dim}"
        return f"B {self.batch}, {self.heads} heads of {dims}, {speed.size(self.keys)} keys"

    @property
    def cache_bytes(self) -> int:
        """Of keys, which hold the values."""
        return 2 * self.batch * self.keys * LATENT.head_dim

    @property
    def bytes(self) -> int:
        """That a call has to move."""
        return self.cache_bytes + 2 * self.batch * self.heads * (LATENT.head_dim + LATENT.value_dim)

    @property
    def flops(self) -> float:
        """Of both products."""
        dims = LATENT.head_dim + LATENT.value_dim
        return 2.0 * self.batch * self.heads * self.keys * dims

    def copy(self) -> Copy:
        """Random queries and a random cache."""
        q, k = (
            torch.empty(self.batch, heads, rows, LATENT.head_dim, dtype=torch.bfloat16,
                        device="cuda").normal_()
            for heads, rows in ((self.heads, 1), (1, self.keys))
        )  # fmt: skip
        v = k[..., : LATENT.value_dim]
        return Copy((q, k, v), Held(k, v))


def latent(deadline: Deadline, shape: LatentShape, rate: float, flops: float) -> dict[str, Any]:
    """One decode step of absorbed MLA against every peer and another number of rows that a CTA may
    hold, and the larger of two bounds: the time in which the cache is read, and that of the
    products, which many heads are near."""
    if why := speed.too_large(2 * shape.cache_bytes):
        return {"row": str(shape), "skipped": f"{why} are too much"}
    torch.manual_seed(shape.keys)
    turns = Turns(shape.copy, shape.cache_bytes)
    like = turns.all[0]
    spec = replace(LATENT, groups=shape.heads)
    peers, why_not = latent_peers(like)
    reading = shape.bytes / rate if rate else 0.0
    products = shape.flops / flops if flops else 0.0
    given = {
        "row": str(shape),
        "read bound us": 1e6 * reading if reading else None,
        "product bound us": 1e6 * products if products else None,
    }
    bound = max(reading, products) if reading and products else 0.0
    out = torch.empty_like(like.sides[0][..., : spec.value_dim])
    ours = partial(speed.launcher, spec, SHARED, out)
    for tile in tiles_beside(spec, *like.sides, shares_values=True):
        peers[tile.replace("_", " ")] = ours("zero", counter(), tile=tile)
    return {**given, **against_peers(deadline, turns, ours, peers, why_not, bound)}


def latent_peers(like: Copy) -> tuple[dict[str, Callable[[Copy], object]], dict[str, str]]:
    """Torch's attention, of which heads are rows: all share one head of keys, and none is masked;
    then what is made for it, where that is installed."""
    found, why_not = sdpa_peers(heads_as_rows(like), is_causal=False)
    peers: dict[str, Callable[[Copy], object]] = {
        name: lambda copy, peer=peer: peer(heads_as_rows(copy)) for name, peer in found.items()
    }
    for name, make in (("flashmla", flashmla_peer), ("flashinfer", flashinfer_latent_peer)):
        try:
            its = make(like.sides, LATENT.scale)
            peers[name] = lambda copy, its=its: its(copy.sides)
        except Exception as error:  # whatever it raises leaves the others
            why_not[name] = speed.said(error)
    return peers, why_not


def heads_as_rows(copy: Copy) -> Operands:
    """Queries [batch, 1, heads, columns] beside the same keys and values."""
    q, k, v = copy.sides
    return q.transpose(1, 2), k, v


def float8(deadline: Deadline, shape: DecodeShape, rate: float) -> dict[str, Any]:
    """One decode step over a float8 cache with a scale for each head, against our kernel and torch
    over the same cache in bfloat16, and against torch where each step dequantises it before."""
    narrow = replace(shape, item=1)
    if why := speed.too_large(narrow.cache_bytes + 3 * shape.cache_bytes):
        return {"row": f"{shape}", "skipped": f"{why} are too much"}
    torch.manual_seed(shape.keys)
    turns = Turns(partial(quantised, speed.copies_of(shape)), narrow.cache_bytes)
    like = turns.all[0]
    found, why_not = sdpa_peers(like.sides, is_causal=False)
    peers: dict[str, Callable[[Copy], object]] = {
        name: lambda copy, peer=peer: peer(copy.sides) for name, peer in found.items()
    }
    if "sdpa" in found:
        peers[DEQUANTISED] = lambda copy: found["sdpa"](dequantised(copy))
    spec, out = replace(speed.SPEC, groups=shape.groups), torch.empty_like(like.sides[0])
    peers[BFLOAT16] = over_bfloat16(speed.launcher(spec, Cache(), out, "zero", counter()))
    ours = partial(speed.launcher, spec, FLOAT8, out)
    bound = narrow.bytes / rate if rate else 0.0
    measured = against_peers(deadline, turns, ours, peers, why_not, bound)
    return {"row": str(shape), **measured}


def quantised(make: Callable[[], Copy]) -> Copy:
    """What ``make`` makes, held in float8 with scales of heads; its sides are that in bfloat16."""
    (q, k, v), heads = make().sides, speed.HEADS
    scales = torch.rand(heads, device="cuda") + 0.5, torch.rand(heads, device="cuda") + 0.5
    held = [side.to(torch.float8_e4m3fn) for side in (k, v)]
    copy = Copy((q, k, v), Held(held[0], held[1]), scales)
    return replace(copy, sides=dequantised(copy))


def dequantised(copy: Copy) -> Operands:
    """The queries, and keys and values in their dtype."""
    q, held = copy.sides[0], copy.held
    k, v = (as_wide(side, scale, q.dtype)
            for side, scale in zip((held.k, held.v), copy.scales, strict=True))  # fmt: skip
    return q, k, v


def over_bfloat16(run: Callable[[Copy], object]) -> Callable[[Copy], object]:
    """Our kernel on the cache that is dequantised already."""
    return lambda copy: run(Copy(copy.sides, Held(copy.sides[1], copy.sides[2])))


def counter() -> torch.Tensor:
    """Of rows that are computed twice."""
    return torch.zeros(1, dtype=torch.int32, device="cuda")


def against_peers(
    deadline: Deadline,
    turns: Turns,
    ours: Callable[[str, torch.Tensor], Callable[[Copy], int]],
    peers: dict[str, Callable[[Copy], object]],
    why_not: dict[str, str],
    bound: float,
) -> dict[str, Any]:
    """A row's times and ratios; ``ours`` makes a run of a softmax and of what counts its rows."""
    redone = counter()
    policies = ((OURS, "zero"), (AGAIN, "zero"), (ONLINE, "online"))
    runs = {name: turns.run(ours(softmax, redone)) for name, softmax in policies}
    runs |= {name: turns.run(peer) for name, peer in peers.items()}
    splits = ours("zero", redone)(turns.all[0])
    samples = speed.timed(runs, deadline, seed=splits)
    return {
        "splits": splits,
        **speed.bounded(samples, bound),
        **speed.against(samples, why_not),
        **speed.twice(runs[OURS], redone),
        **raw(samples),
    }
