"""Attentions drawn at random: what is computed, of which operands, and how they lie in memory."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from overlapc.codegen.attention.bounds import bounds_of, safe_phi
from overlapc.codegen.attention.cache import Cache, leading
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile, suits_ahead
from tests.codegen.drawn_scores import draw_scores

PREFILL, DECODE, BACKWARD = "prefill", "decode", "backward"
DTYPES = ("float32", "float16", "bfloat16")
DIMS = (16, 16, 24, 32, 40, 64, 80, 96, 128, 3, 1, 192, 256)
LATENT = ((16, 8), (32, 16), (64, 5), (128, 64))
"""Columns of values, and of what follows them in a key."""
POLICIES = ("zero", "zero", "bound", "head", "running", "first_tile", "first_tile", "sink")
SPREADS = (1.0, 1.0, 1.0, 4.0, 40.0, 300.0)
"""Multiplied into queries: scores reach hundreds, as those of OPT do, and thousands."""

MOST_PROGRAMS = 16
"""Blocks of rows of heads: each takes the interpreter some hundredths of a second."""


@dataclass
class Drawn:
    """One attention and the plain values of its operands, ``[batch, heads, rows, dim]``."""

    seed: int
    kind: str
    spec: AttentionSpec
    tile: AttentionTile
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    inputs: list[torch.Tensor]
    lengths: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    phi: torch.Tensor | None = None
    cache: Cache = field(default_factory=Cache)
    splits: int = 1
    is_apart: bool = False
    scales: tuple[torch.Tensor, torch.Tensor] | None = None
    architecture: str = ""
    looks: bool = False
    """Whether masks are looked through before, of however few keys."""
    is_spoiled: bool = False
    has_lse: bool = True
    """Whether logarithms of sums are asked for."""
    is_bounded: bool = False
    """φ is what the program's own bounds give."""
    features: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        batch, heads, rows, _ = self.q.shape
        return batch, heads, rows, self.k.shape[2]

    @property
    def text(self) -> str:
        """All that tells it from others, for an error."""
        return (
            f"seed {self.seed}: {self.kind} of {self.sizes} {self.spec} {self.tile} {self.cache} "
            f"splits={self.splits} lengths={self.lengths} looks={self.looks} {self.features}"
        )


def draw(kind: str, seed: int) -> Drawn:
    """Return the attention of a seed, for kernels of ``kind``."""
    chance = random.Random(f"{kind} {seed}")
    generator = torch.Generator().manual_seed(seed)
    dtype = chance.choice(DTYPES)
    groups, heads, batch = chance.choice((1, 1, 2, 3, 4, 5, 7, 8)), chance.choice((1, 1, 2, 3)), 2
    if groups * heads > 9 or chance.random() < 0.3:
        batch = chance.choice((1, 1, 3)) if groups * heads < 9 else 1
    if kind == BACKWARD and groups * heads > 6:
        groups = 3
    blocks = chance.choice((16, 16, 32)), chance.choice((16, 16, 32, 64))
    rows, keys = _rows_and_keys(chance, kind, groups, *blocks)
    most = MOST_PROGRAMS if keys < 500 else MOST_PROGRAMS // 4
    while batch * heads * groups * -(-rows // blocks[0]) > most and groups * heads > 1:
        batch, heads, groups = (1, heads, groups) if batch > 1 else (1, 1, groups - (heads == 1))
    head_dim, value_dim, cache, is_apart = _memory(chance, kind, dtype, blocks[1])
    if cache.page:
        keys = -(-keys // cache.page) * cache.page
    every = heads * groups
    made = draw_scores(chance, generator, (batch, every, rows, keys))
    spread = chance.choice(SPREADS)
    spec = AttentionSpec(
        dtype, head_dim, value_dim, groups,
        chance.choice((head_dim**-0.5, head_dim**-0.5, 1.0, -0.3, 0.0)),
        **_places(chance), lengths=kind != BACKWARD and chance.random() < 0.3,
        program=made.text, sinks=chance.random() < 0.25,
        dead=chance.choice(("nan", "nan", "zero")),
    )  # fmt: skip
    if kind == BACKWARD:
        spread = min(spread, 4.0)
        spec = replace(spec, lengths=chance.random() < 0.3)
    spec, is_bounded = _softmax(chance, spec)
    q = torch.randn(batch, every, rows, head_dim, generator=generator) * spread
    k = _once_for_all(chance, torch.randn(batch, heads, keys, head_dim, generator=generator))
    v = _once_for_all(chance, torch.randn(batch, heads, keys, value_dim, generator=generator))
    if chance.random() < 0.1 and spec.scale and keys:
        q[..., 0], k = chance.choice((-1, 1)) * 150.0 / spec.scale, k.clone()
        k[..., 0] = 1.0
    if kind != BACKWARD:
        spec, q, v = _far_from_one(chance, spec, q, v, cache)
    kept = getattr(torch, cache.of(spec))
    k, v = k.to(kept), v.to(kept)
    if cache.shares_values:
        v = k[..., :value_dim]
    found = Drawn(
        seed, kind, spec, AttentionTile(*blocks, 4, 2), q.to(getattr(torch, dtype)), k, v,
        made.inputs, cache=cache, is_apart=is_apart, is_bounded=is_bounded,
        splits=chance.choice((1, 1, 2, 3, 5, 5, 40)), looks=chance.random() < 0.5,
    )  # fmt: skip
    if cache.of(spec) != dtype and chance.random() < 0.3:
        found.architecture = "sm_80"
    _beside(found, chance, generator)
    _kernel(found, chance)
    _options(found, random.Random(f"options {kind} {seed}"))
    found.features = (*made.names, *_features(found, spread))
    return found


def _rows_and_keys(
    chance: random.Random, kind: str, groups: int, block_m: int, block_n: int
) -> tuple[int, int]:
    """Few, and about the edges of tiles."""
    keys = (1, 2, 7, block_n - 1, block_n, block_n + 1, 2 * block_n, 3 * block_n + 5, 100, 150)
    if chance.random() < 0.06:  # more tiles than a word has bits
        return 1 if kind == DECODE else 5, 33 * block_n + chance.choice((-7, 0, 200))
    if kind == DECODE:
        return chance.choice((1, 1, 1, 2, 3, max(1, 40 // groups))), chance.choice((0, *keys, 300))
    rows = chance.choice((1, 2, 5, block_m - 1, block_m, block_m + 1, 2 * block_m + 3, 50))
    return rows, chance.choice(keys if kind == BACKWARD else (0, *keys))


def _memory(
    chance: random.Random, kind: str, dtype: str, block_n: int
) -> tuple[int, int, Cache, bool]:
    """Columns of keys and of values, the cache, and whether what follows values lies apart."""
    head_dim = chance.choice(DIMS[:9] if kind == BACKWARD else DIMS)
    value_dim = head_dim if chance.random() < 0.6 else chance.choice(DIMS)
    if kind != DECODE:
        return head_dim, value_dim, Cache(), False
    page = chance.choice((0, 0, 16, 32, 64))
    narrow = dtype != "float32" and chance.random() < 0.4
    shares = chance.random() < 0.25
    if shares:
        value_dim, rest = chance.choice(LATENT)
        head_dim = value_dim + rest
        assert leading(head_dim) == value_dim
    cache = Cache("float8_e4m3fn" if narrow else "", narrow and chance.random() < 0.6, page, shares)
    return head_dim, value_dim, cache, shares and chance.random() < 0.5


def _places(chance: random.Random) -> Mapping[str, object]:
    """Which keys a row sees by its place."""
    before = chance.choice((0, 3, 9, 40))
    return chance.choice((
        {}, {}, {"after": 0}, {"after": 0, "align": "bottom_right"},
        {"after": 0, "before": before, "align": "bottom_right"}, {"after": 0, "before": before},
        {"before": before, "after": 5}, {"before": before, "after": 5, "align": "bottom_right"},
        {"before": before},
    ))  # fmt: skip


def _softmax(chance: random.Random, spec: AttentionSpec) -> tuple[AttentionSpec, bool]:
    """A policy, and whether φ is the one that bounds of the program give."""
    calls = spec.scores.calls[1:] if spec.scores else ()
    phi = safe_phi(spec.dtype, bounds_of(calls))
    if phi is not None and chance.random() < 0.7:
        return replace(spec, softmax="bound", bound=phi), True
    policy = chance.choice(POLICIES)
    if policy == "sink" and not spec.sinks:
        policy = "first_tile"
    bound = chance.choice((-20.0, 3.0, 90.0)) if policy == "bound" else 0.0
    return replace(spec, softmax=policy, bound=bound), False


def _once_for_all(chance: random.Random, side: torch.Tensor) -> torch.Tensor:
    """Perhaps expanded over batches or heads."""
    for dim in (0, 1):
        if side.shape[dim] > 1 and chance.random() < 0.12:
            side = side.narrow(dim, 0, 1).expand(side.shape)
    return side


def _far_from_one(
    chance: random.Random, spec: AttentionSpec, q: torch.Tensor, v: torch.Tensor, cache: Cache
) -> tuple[AttentionSpec, torch.Tensor, torch.Tensor]:
    """Perhaps queries that are large or small beside their scale, or large values."""
    if spec.dtype != "float16" and chance.random() < 0.12:
        factor = chance.choice((2.0**60, 2.0**-60, 2.0**-100))
        spec, q = replace(spec, scale=spec.scale / factor), q * factor
    if not cache.shares_values and cache.of(spec) == spec.dtype and chance.random() < 0.1:
        v = v * (1e3 if spec.dtype == "float16" else 1e30)
    return spec, q, v


def _beside(found: Drawn, chance: random.Random, generator: torch.Generator) -> None:
    """Draw lengths, sinks, φ and scales where they are taken."""
    batch, every, _, keys = found.sizes
    spec = found.spec
    if spec.lengths:
        most = keys + (5 if chance.random() < 0.3 and not found.cache.page else 0)
        own = [chance.choice((0, 1, keys, chance.randint(0, most))) for _ in range(batch)]
        found.lengths = torch.tensor(own, dtype=torch.int32)
    if spec.sinks:
        found.sinks = torch.randn(every, generator=generator) * chance.choice((1.0, 1.0, 50.0))
        if chance.random() < 0.2:
            found.sinks[0] = -torch.inf
        dtype = chance.choice((torch.float32, getattr(torch, spec.dtype)))
        found.sinks = found.sinks.to(dtype)
    if spec.takes_phi:
        found.phi = torch.randn(every, generator=generator) * chance.choice((1.0, 5.0, 60.0))
    if found.cache.scales:
        heads = every // spec.groups
        count = chance.choice((1, heads))
        one, other = (torch.rand(count, generator=generator) + 0.5 for _ in range(2))
        found.scales = one, other


def _kernel(found: Drawn, chance: random.Random) -> None:
    """Draw what else of a tile the kernel of many rows may have."""
    if found.kind != PREFILL or found.spec.dtype == "float32":
        return
    is_ahead = suits_ahead(found.spec) and chance.random() < 0.4
    found.tile = replace(
        found.tile, ones=chance.choice((0, 16)), by_tma=chance.random() < 0.4, ahead=is_ahead
    )


def _options(found: Drawn, chance: random.Random) -> None:
    """Draw what a call may ask for otherwise."""
    found.has_lse = found.kind == BACKWARD or chance.random() < 0.8
    if found.spec.dtype == "float32":
        found.spec = replace(
            found.spec, precision=chance.choice(("ieee", "ieee", "tf32x3", "tf32"))
        )


def _features(found: Drawn, spread: float) -> list[str]:
    spec, cache, tile = found.spec, found.cache, found.tile
    has = {
        spec.dtype: True, f"softmax {spec.softmax}": True, f"groups {spec.groups}": True,
        f"dims {spec.head_dim}x{spec.value_dim}": True, f"spread {spread:g}": True,
        "window": spec.before is not None, "causal": spec.after is not None,
        spec.align: spec.align != "top_left", "lengths": spec.lengths, "sinks": spec.sinks,
        "dead zero": spec.dead == "zero", "negative scale": spec.scale < 0,
        "bounded": found.is_bounded, "pages": cache.page > 0, "latent": cache.shares_values,
        "apart": found.is_apart, "float8": cache.dtype != "", "scales": cache.scales,
        "bytes": bool(found.architecture), "tma": tile.by_tma, "ahead": tile.ahead,
        "ones": tile.ones > 0, "looks": found.looks, "no keys": found.sizes[3] == 0,
        f"splits {found.splits}": found.kind == DECODE, "many keys": found.sizes[3] > 500,
        "large values": bool((found.v.double().abs() > 1e3).any()),
        spec.precision: spec.precision != "ieee", "no logarithms": not found.has_lse,
        "queries far from one": not 1e-6 < abs(spec.scale or 1.0) < 1e6,
    }  # fmt: skip
    return [name for name, is_so in has.items() if is_so]
