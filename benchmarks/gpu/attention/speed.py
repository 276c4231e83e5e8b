"""Attention timed on a GPU: our kernels beside their peers and the bound, from cold caches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.gpu.attention.checks import SITE, Held
from benchmarks.gpu.attention.peers import (
    Operands,
    as_transformers,
    flashinfer_peer,
    flex_peer,
    sdpa_peers,
)
from benchmarks.gpu.device import DTYPE, architecture
from benchmarks.gpu.timing import cell, measure_on_device, raw
from benchmarks.gpu.worker import WrongResult
from benchmarks.measuring.deadline import Deadline
from benchmarks.measuring.paired import Samples
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import tile_for
from overlapc.planning.attention.tile_names import PLANNED, TRIED, VALUES_BEHIND
from overlapc.runtime.attention.gradients import BACKWARD
from overlapc.runtime.attention.kernels import run_decode, tiles_beside
from overlapc.runtime.attention.masks import Filled, input_of, program_of
from overlapc.runtime.ops import calls_of

HEADS, DIM = 8, 128
"""Of keys, and of a head, as in Llama 3 and Qwen 3."""
COLD_BYTES = 256 << 20
"""Of keys and values that are read in turn: several times the last cache of any device here."""
MOST_COPIES = 64
MOST_MEMORY = 0.7
"""Of a device's free memory that one row may take: chosen."""
TIMED_SECONDS = 0.4
"""Of a row at least, after what it compiles: chosen, so that all rows fit the minutes of a run."""
OURS, AGAIN, ONLINE, FIRST = "ours", "ours again", "online", "first keys"
POINTERS = "by pointers"
"""Our kernel of many rows, where the TMA unit loads nothing."""
INDUCTOR = "inductor"
MASKED = "ours, given the mask"
GIVEN = f"of {INDUCTOR}, given the mask"
PRODUCT = 8192
"""Rows and columns of the matrices whose product bounds many rows."""
SPEC = AttentionSpec(DTYPE, DIM, DIM, scale=DIM**-0.5)


@dataclass(frozen=True)
class DecodeShape:
    """One row of queries for each sequence, over a cache."""

    batch: int
    groups: int
    """Query heads of each of the `HEADS`."""
    keys: int
    """Of each sequence."""
    page: int = 0
    """Keys of a page; 0: the cache is one tensor."""
    spread: float = 1.0
    """Standard deviation of scores: of hundreds every row is computed twice."""
    item: int = 2
    """Bytes of each number of the cache."""

    def __str__(self) -> str:
        layout = f"pages of {self.page}" if self.page else "static"
        heads = f"{HEADS}x{self.groups} heads"
        return f"B {self.batch}, {heads}, {size(self.keys)} keys, {layout}{wide(self.spread)}"

    @property
    def cache_bytes(self) -> int:
        """Of keys and values."""
        return 2 * self.batch * HEADS * self.keys * DIM * self.item

    @property
    def bytes(self) -> int:
        """That a call has to move."""
        return self.cache_bytes + 2 * self.batch * HEADS * self.groups * DIM * 2


def wide(spread: float) -> str:
    """Of scores that are wider than most models'."""
    return "" if spread == 1 else f", scores of ±{3 * spread:g}"


def size(count: int) -> str:
    """In thousands of 1024, where it is some of those."""
    return f"{count // 1024}k" if count % 1024 == 0 else str(count)


class Turns:
    """Caches of equal sizes, each call of whatever candidate on the next one: so none is warm."""

    def __init__(self, make: Callable[[], Any], each_bytes: int) -> None:
        count = max(1, min(MOST_COPIES, math.ceil(COLD_BYTES / max(1, each_bytes))))
        self.all = [make() for _ in range(count)]
        self._turn = itertools.cycle(self.all)

    def run(self, candidate: Callable[[Any], object]) -> Callable[[], object]:
        """The candidate on whatever is next."""
        return lambda: candidate(next(self._turn))


def too_large(needed: int) -> str:
    """Why so many bytes are not tried; empty if they are."""
    free, _ = torch.cuda.mem_get_info()
    return f"{needed / 1e9:.0f} GB" if needed > MOST_MEMORY * free else ""


@dataclass(frozen=True)
class Copy:
    """One of the caches that are read in turn, and the queries."""

    sides: Operands
    """In one tensor each: torch's attention reads no pages."""
    held: Held
    scales: tuple[torch.Tensor, ...] = ()
    """Of heads of keys and of values, where those are held in float8."""


def decode(deadline: Deadline, shape: DecodeShape, rate: float, with_flex: bool) -> dict[str, Any]:
    """One decode step against every peer, and the time in which the cache is read."""
    if why := too_large((1 + 2 * bool(shape.page)) * shape.cache_bytes):
        return {"row": str(shape), "skipped": f"{why} are too much"}
    torch.manual_seed(shape.keys)
    turns = Turns(copies_of(shape), shape.cache_bytes)
    redone = torch.zeros(1, dtype=torch.int32, device="cuda")
    runs = {
        name: turns.run(decoder(shape, turns.all[0], softmax, redone))
        for name, softmax in softmaxes(shape.spread)
    }
    peers, why_not = decode_peers(shape, turns.all[0], with_flex)
    runs |= {name: turns.run(peer) for name, peer in peers.items()}
    samples = timed(runs, deadline, seed=shape.keys + shape.batch)
    given = {
        "row": str(shape),
        "tokens": shape.batch * shape.keys,
        "splits": decoder(shape, turns.all[0], "zero", redone)(turns.all[0]),
    }
    return {
        **given,
        **bounded(samples, shape.bytes / rate if rate else 0.0),
        **against(samples, why_not),
        **twice(runs[OURS], redone),
        **raw(samples),
    }


def softmaxes(spread: float) -> list[tuple[str, str]]:
    """Policies of our kernel by candidates; another one where zero does not suit the scores."""
    found = [(OURS, "zero"), (AGAIN, "zero"), (ONLINE, "online")]
    return found if spread == 1 else [*found, (FIRST, "first_tile")]


def twice(ours: Callable[[], object], redone: torch.Tensor) -> dict[str, int]:
    """How many rows of one call are computed a second time."""
    redone.zero_()
    ours()
    return {"redone": int(redone.item())}


def copies_of(shape: DecodeShape) -> Callable[[], Copy]:
    """What makes random caches, their pages all in one random order."""
    dtype = getattr(torch, DTYPE)
    sizes = ((HEADS * shape.groups, 1), (HEADS, shape.keys), (HEADS, shape.keys))
    cache = Cache(page=shape.page)
    pages = -(-shape.keys // shape.page) if shape.page else 0
    order = torch.randperm(shape.batch * pages, device="cuda")

    def make() -> Copy:
        q, k, v = (
            torch.empty(shape.batch, heads, rows, DIM, dtype=dtype, device="cuda").normal_()
            for heads, rows in sizes
        )
        q *= shape.spread
        return Copy((q, k, v), Held.of(k, v, cache, order))

    return make


def decoder(
    shape: DecodeShape,
    like: Copy,
    softmax: str,
    redone: torch.Tensor,
    lengths: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
) -> Callable[[Copy], int]:
    """Our kernel for such caches, perhaps of keys that a mask of booleans keeps; gives the CTAs
    that share a head."""
    masks = [] if kept is None else [kept]
    program = program_of([Filled(input_of(mask), -math.inf, True) for mask in masks])
    spec = replace(SPEC, groups=shape.groups, lengths=lengths is not None, program=program)
    out = torch.empty_like(like.sides[0])
    return launcher(spec, Cache(page=shape.page), out, softmax, redone, lengths, masks)


def launcher(
    spec: AttentionSpec,
    cache: Cache,
    out: torch.Tensor,
    softmax: str,
    redone: torch.Tensor,
    lengths: torch.Tensor | None = None,
    inputs: Sequence[torch.Tensor] = (),
    tile: str = PLANNED,
) -> Callable[[Copy], int]:
    """Our kernel of few rows, as its op launches it; gives the CTAs that share a head."""
    its = replace(spec, softmax=softmax, tile=tile)

    def run(copy: Copy) -> int:
        held, scales = copy.held, copy.scales or (None, None)
        return run_decode(
            its, cache, copy.sides[0], held.k, held.v, out, None, table=held.table,
            lengths=lengths, inputs=inputs, redone=redone, k_scale=scales[0], v_scale=scales[1],
        )  # fmt: skip

    return run


def decode_peers(
    shape: DecodeShape, like: Copy, with_flex: bool
) -> tuple[dict[str, Callable[[Copy], object]], dict[str, str]]:
    """Peers for such caches, and why others are left out. Torch's read the cache in one tensor."""
    found, why_not = sdpa_peers(like.sides, is_causal=False)
    if with_flex:
        try:
            found["flex"] = flex_peer(like.sides, is_causal=False)
        except Exception as error:  # whatever a compiler raises leaves the others
            why_not["flex"] = said(error)
    peers: dict[str, Callable[[Copy], object]] = {
        name: lambda copy, peer=peer: peer(copy.sides) for name, peer in found.items()
    }
    if like.held.table is not None:
        try:
            pages = like.held.k, like.held.v
            its = flashinfer_peer(like.sides[0], pages, like.held.table, shape.keys)
            peers["flashinfer"] = lambda copy: its((copy.held.k, copy.held.v))
        except Exception as error:
            why_not["flashinfer"] = said(error)
    return peers, why_not


def static_cache(
    deadline: Deadline, batch: int, room: int, used: int, groups: int, rate: float
) -> dict[str, Any]:
    """A cache with room for more keys than it holds, which only its mask tells: what transformers
    makes of it with Inductor, and our kernel, which reads as many keys as there are: given their
    number, and given the mask, of which it reads no tile that is hidden."""
    shape = DecodeShape(batch, groups, room)
    name = f"B {batch}, {HEADS}x{groups} heads, {size(used)} keys in room for {size(room)}"
    if why := too_large((2 + 2 * groups) * shape.cache_bytes):
        return {"row": name, "skipped": f"{why} are too much"}
    turns = Turns(copies_of(shape), shape.cache_bytes)
    redone = torch.zeros(1, dtype=torch.int32, device="cuda")
    lengths = torch.full((batch,), used, dtype=torch.int32, device="cuda")
    kept = (torch.arange(room, device="cuda") < used).expand(batch, 1, 1, room)
    inductor = as_transformers(groups)
    runs = {
        INDUCTOR: turns.run(lambda copy: inductor(*copy.sides, kept)),
        OURS: turns.run(decoder(shape, turns.all[0], "zero", redone, lengths)),
        AGAIN: turns.run(decoder(shape, turns.all[0], "zero", redone, lengths)),
        ONLINE: turns.run(decoder(shape, turns.all[0], "online", redone, lengths)),
        MASKED: turns.run(decoder(shape, turns.all[0], "zero", redone, kept=kept)),
    }
    samples = timed(runs, deadline, seed=batch)
    bytes_read = replace(shape, keys=used).bytes
    return {
        "row": name,
        **bounded(samples, bytes_read / rate if rate else 0.0),
        f"of {INDUCTOR}": cell(samples.ratio(INDUCTOR, OURS)),
        GIVEN: cell(samples.ratio(INDUCTOR, MASKED)),
        **ours_alone(samples),
        **twice(runs[OURS], redone),
        **raw(samples),
    }


@dataclass(frozen=True)
class PrefillShape:
    """As many rows as keys."""

    batch: int
    groups: int
    rows: int
    dim: int = DIM
    is_causal: bool = True
    spread: float = 1.0
    """As of ``DecodeShape``."""

    def __str__(self) -> str:
        mask = "causal" if self.is_causal else "all keys"
        heads = f"{HEADS}x{self.groups} heads of {self.dim}"
        return f"B {self.batch}, {heads}, {size(self.rows)} rows, {mask}{wide(self.spread)}"

    @property
    def flops(self) -> float:
        """Of both products; of causal ones the half that is not masked."""
        share = 0.5 if self.is_causal else 1.0
        return 4 * self.batch * HEADS * self.groups * self.rows**2 * self.dim * share


def prefill(
    deadline: Deadline, shape: PrefillShape, rate: float, with_flex: bool
) -> dict[str, Any]:
    """Many rows against every peer, and the time of the products at the rate of a large one."""
    q, k, v = random_sides(shape)
    out = torch.empty_like(q)
    redone = torch.zeros(1, dtype=torch.int32, device="cuda")

    def ours(softmax: str, *, is_aligned: bool = True, tile: str = PLANNED) -> Callable[[], object]:
        its = replace(spec_of(shape), softmax=softmax, tile=tile)
        kernel = build_attention(its, tile_for(its, architecture(), is_aligned=is_aligned))
        return lambda: kernel(q, k, v, out, redone=redone)

    runs = {name: ours(softmax) for name, softmax in softmaxes(shape.spread)}
    runs[POINTERS] = ours("zero", is_aligned=False)
    for tile in tiles_beside(spec_of(shape), q, k, v):
        runs[tile] = ours("zero", tile=tile)
    peers, why_not = sdpa_peers((q, k, v), is_causal=shape.is_causal)
    if with_flex:
        try:
            peers["flex"] = flex_peer((q, k, v), is_causal=shape.is_causal)
        except Exception as error:
            why_not["flex"] = said(error)
    runs |= {name: lambda peer=peer: peer((q, k, v)) for name, peer in peers.items()}
    samples = timed(runs, deadline, seed=shape.rows)
    return {
        "row": str(shape),
        "TFLOP/s": shape.flops / samples.median(OURS) / 1e12,
        **bounded(samples, shape.flops / rate if rate else 0.0),
        **against(samples, why_not),
        **twice(runs[OURS], redone),
        **raw(samples),
    }


def trained(deadline: Deadline, shape: PrefillShape, rate: float) -> dict[str, Any]:
    """A forward and its gradients, by our op and by each of torch's backends."""
    sides = random_sides(shape)
    slopes = torch.randn_like(sides[0])
    for side in sides:
        side.requires_grad_()
    before = calls_of(SITE)[BACKWARD]

    def with_gradients(attention: Callable[[Operands], Any]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attention(sides), sides, slopes)

    def ours(softmax: str) -> Callable[[], object]:
        text = str(replace(spec_of(shape), softmax=softmax))
        op = torch.ops.overlapc.attention
        return with_gradients(lambda its: op(*its, [], None, None, None, text, SITE)[0])

    runs = {name: ours(softmax) for name, softmax in softmaxes(shape.spread)}
    peers, why_not = sdpa_peers(sides, is_causal=shape.is_causal)
    for name, peer in peers.items():
        try:
            with_gradients(peer)()
        except RuntimeError as error:  # some run forwards only
            why_not[name] = said(error)
        else:
            runs[name] = with_gradients(peer)
    samples = timed(runs, deadline, seed=shape.rows)
    if calls_of(SITE)[BACKWARD] == before:
        raise WrongResult("no kernel made the gradients")
    # Of the forward two products, and five of the gradients.
    flops = 3.5 * shape.flops
    return {
        "row": str(shape),
        "TFLOP/s": flops / samples.median(OURS) / 1e12,
        **bounded(samples, flops / rate if rate else 0.0),
        **against(samples, why_not),
        **raw(samples),
    }


def random_sides(shape: PrefillShape) -> Operands:
    """Normal random queries, keys and values."""
    dtype = getattr(torch, DTYPE)
    torch.manual_seed(shape.rows)
    q, k, v = (
        torch.empty(shape.batch, heads, shape.rows, shape.dim, dtype=dtype, device="cuda").normal_()
        for heads in (HEADS * shape.groups, HEADS, HEADS)
    )
    return q * shape.spread, k, v


def spec_of(shape: PrefillShape) -> AttentionSpec:
    """Of its attention."""
    after = 0 if shape.is_causal else None
    return replace(SPEC, head_dim=shape.dim, value_dim=shape.dim, groups=shape.groups,
                   scale=shape.dim**-0.5, after=after)  # fmt: skip


def product(deadline: Deadline) -> dict[str, Any]:
    """FLOP/s of a large product of matrices: what no attention of many rows can beat."""
    a, b = (
        torch.empty(PRODUCT, PRODUCT, dtype=getattr(torch, DTYPE), device="cuda").normal_()
        for _ in range(2)
    )
    samples = measure_on_device({"mm": lambda: torch.mm(a, b)}, deadline, seed=0)
    name = f"a product of {PRODUCT}x{PRODUCT} matrices"
    return {"row": name, "TFLOP/s": 2 * PRODUCT**3 / samples.median("mm") / 1e12}


def timed(runs: Mapping[str, Callable[[], object]], deadline: Deadline, seed: int) -> Samples:
    """As `measure_on_device`, but what was compiled before takes not all of the time."""
    left = max(deadline.left(), TIMED_SECONDS)
    return measure_on_device(runs, Deadline.after(left), seed)


def bounded(samples: Samples, bound: float) -> dict[str, Any]:
    """Our time beside the bound, in seconds, and its share; zero: it was not measured."""
    ours = samples.median(OURS)
    return {
        "us": 1e6 * ours,
        "bound us": 1e6 * bound if bound else None,
        "share of the bound": bound / ours if bound else None,
    }


def against(samples: Samples, why_not: Mapping[str, str]) -> dict[str, Any]:
    """Times of peers over ours, the best of torch's named, and why some are not there."""
    torchs = [name for name in samples.seconds if name.startswith("sdpa")]
    best = min(torchs, key=samples.median, default="")
    own = (OURS, AGAIN, ONLINE, FIRST, POINTERS, *TRIED)
    others = [name for name in samples.seconds if name not in own and name[:5] != "sdpa "]
    found: dict[str, Any] = {f"of {name}": cell(samples.ratio(name, OURS)) for name in others}
    if best:
        found |= {"best sdpa": best, "of best sdpa": cell(samples.ratio(best, OURS))}
    left_out = "; ".join(f"{name}: {why}" for name, why in why_not.items())
    return {**found, **ours_alone(samples), "not there": left_out or "none"}


def ours_alone(samples: Samples) -> dict[str, Any]:
    """What one softmax gains over the other in the same kernel, and the noise of that."""
    found = {
        "unified over online": cell(samples.ratio(ONLINE, OURS)),
        "again": cell(samples.ratio(AGAIN, OURS)),
    }
    if FIRST in samples.seconds:
        found["first keys over online"] = cell(samples.ratio(ONLINE, FIRST))
    if POINTERS in samples.seconds:
        found["by TMA over pointers"] = cell(samples.ratio(POINTERS, OURS))
    if VALUES_BEHIND in samples.seconds:
        found["values behind over at once"] = cell(samples.ratio(OURS, VALUES_BEHIND))
    return found


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]
