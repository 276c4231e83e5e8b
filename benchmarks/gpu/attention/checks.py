"""Kernels of attention, right before they are timed: each kind on random data against float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from benchmarks.gpu.device import architecture
from benchmarks.gpu.gemm import checks as gpu_checks
from benchmarks.gpu.worker import WrongResult
from benchmarks.measuring.deadline import Deadline
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.descriptors import fits_tma
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.scores import PRODUCT
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import tile_for
from overlapc.codegen.epilogue import Call, Epilogue, Input, Ref
from overlapc.planning.attention.tile_names import MANY_ROWS, VALUES_BEHIND
from overlapc.runtime.attention.gradients import BACKWARD
from overlapc.runtime.attention.kernels import run_decode
from overlapc.runtime.attention.op import redone_of
from overlapc.runtime.attention.program import attention_by_torch, masked_scores
from overlapc.runtime.attention.running_phi import running_phi
from overlapc.runtime.ops import calls_of

SIZES = (2, 2, 300, 700)
"""Batch, heads of keys, rows, keys: no whole tiles."""
DECODE_SIZES = (3, 2, 1, 1500)
CROWDED_SIZES = (4, 4, 1, 20_000)
"""Of as many CTAs as a device has room for, more than one of which shares each sequence's keys."""
CROWDED_LAUNCHES = 40
"""Of each of three that run beside one another: chosen."""
GRADIENT_SIZES = (2, 2, 300, 460)
GRADIENT_STEPS = 4
"""Roundings of the largest element of a gradient that its elements may be off by: chosen."""
SITE = "benchmarks.gpu.attention.checks"
PAGE = 16
"""Keys of a page, as most servers have it; it is no whole tile, so that each key's is looked up."""
STEPS = {"float32": 2.0**-20, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Of roundings, by dtype; of float32 what three products of tf32 lose, with a margin."""

PLAIN = Cache()


@dataclass(frozen=True)
class Case:
    """One attention, and what it is given."""

    spec: AttentionSpec
    cache: Cache = PLAIN
    rows: int = 0
    """Of a decode step that has other than one."""
    keys: int = 0
    """Where it is about more than others."""
    lengths: tuple[float, ...] = ()
    """Of sequences, as shares of all keys."""
    spread: float = 1.0
    """Multiplied into queries."""
    phi: float = 0.0
    shift: float = 0.0
    """Of scores, by one column of queries and keys."""
    is_redone: bool = False
    """Some rows, and not none, have to be computed a second time."""
    is_odd: bool = False
    """Keys and values lie as no TMA unit reads them."""


def _program(inputs: tuple[Input, ...], *calls: Call) -> str:
    return str(Epilogue(inputs, (PRODUCT, *calls)))


def _value(index: int) -> Ref:
    return Ref("value", index)


CAP = _program(
    (),
    Call("aten.div.Tensor", (_value(0), 30.0)),
    Call("aten.tanh.default", (_value(1),)),
    Call("aten.mul.Tensor", (_value(2), 30.0)),
)
KEPT = _program(
    (Input("matrix", "bool"),),
    Call("aten.where.ScalarOther", (Ref("input", 0), _value(0), -math.inf)),
)
ADDED = _program(
    (Input("matrix", "bfloat16"),), Call("aten.add.Tensor", (_value(0), Ref("input", 0)))
)
SLOPES = _program(
    (Input("vector", "float32"),), Call("aten.add.Tensor", (_value(0), Ref("input", 0)))
)

BRAIN = AttentionSpec("bfloat16", 128, 128, scale=128**-0.5)
HALF = replace(BRAIN, dtype="float16", softmax="first_tile")
CAUSAL = replace(BRAIN, after=0, align="bottom_right")

PREFILL: Mapping[str, Case] = {
    "bfloat16, causal, 4 queries a head": Case(replace(CAUSAL, groups=4)),
    "float16, first keys": Case(HALF),
    "float32": Case(replace(BRAIN, dtype="float32", precision="tf32x3")),
    "scores of hundreds, values a tile behind": Case(
        replace(CAUSAL, groups=4, tile=VALUES_BEHIND), spread=400.0, is_redone=True
    ),
    "online": Case(replace(CAUSAL, softmax="online"), spread=40.0),
    "scores of hundreds": Case(CAUSAL, spread=400.0, is_redone=True),
    "a number for each head": Case(replace(BRAIN, softmax="head"), phi=3.0),
    "a window": Case(replace(CAUSAL, before=100)),
    "lengths": Case(replace(CAUSAL, lengths=True, dead="zero"), lengths=(0.6, 0.0)),
    "lengths, by pointers": Case(
        replace(CAUSAL, lengths=True, groups=4), lengths=(0.6, 1.0), is_odd=True
    ),
    "a mask, rows of no key": Case(replace(BRAIN, program=KEPT)),
    "slopes": Case(replace(BRAIN, program=SLOPES)),
    "a mask that hides tiles": Case(replace(BRAIN, program=ADDED), keys=1100),
    "soft-cap": Case(replace(BRAIN, program=CAP, softmax="bound")),
    "sinks": Case(replace(CAUSAL, sinks=True, softmax="sink")),
    "64 columns, float16": Case(replace(HALF, head_dim=64, value_dim=64, groups=3)),
    "80 columns": Case(replace(CAUSAL, head_dim=80, value_dim=80)),
    "256 columns": Case(replace(BRAIN, head_dim=256, value_dim=256)),
    "192 columns, values of 128": Case(replace(CAUSAL, head_dim=192)),
}
LATENT = AttentionSpec("bfloat16", 576, 512, groups=16, scale=576**-0.5)
DECODE: Mapping[str, Case] = {
    "bfloat16, 4 queries a head": Case(replace(CAUSAL, groups=4)),
    "pages": Case(
        replace(CAUSAL, groups=8, lengths=True), Cache(page=PAGE), lengths=(1.0, 0.3, 0.01)
    ),
    "pages of whole tiles": Case(
        replace(CAUSAL, groups=4, lengths=True), Cache(page=64), lengths=(1.0, 0.5)
    ),
    "lengths, one of nothing": Case(
        replace(CAUSAL, lengths=True, dead="zero"), lengths=(0.6, 0.0, 1.0)
    ),
    "float16, first keys": Case(replace(HALF, groups=4)),
    "float32": Case(replace(BRAIN, dtype="float32", precision="tf32x3")),
    "online": Case(replace(BRAIN, softmax="online"), spread=40.0),
    "scores of hundreds": Case(replace(BRAIN, groups=4), spread=400.0, is_redone=True),
    "a number for each head": Case(replace(BRAIN, groups=4, softmax="head"), phi=3.0),
    "four rows, a window": Case(replace(CAUSAL, groups=4, before=200), rows=4),
    "sinks": Case(replace(CAUSAL, sinks=True, softmax="sink", groups=4)),
    "slopes": Case(replace(BRAIN, program=SLOPES, groups=4)),
    "a mask that hides tiles": Case(replace(BRAIN, program=ADDED, groups=4), rows=2),
    "float8 cache": Case(replace(CAUSAL, groups=4), Cache("float8_e4m3fn", scales=True)),
    "float8 cache, online": Case(
        replace(CAUSAL, groups=4, softmax="online"),
        Cache("float8_e4m3fn", scales=True),
        spread=40.0,
    ),
    "latent": Case(LATENT, Cache(shares_values=True)),
    "latent, 128 heads": Case(replace(LATENT, groups=128), Cache(shares_values=True)),
    "latent, 128 heads in large blocks": Case(
        replace(LATENT, groups=128, tile=MANY_ROWS), Cache(shares_values=True)
    ),
    "latent, scores of hundreds in large blocks": Case(
        replace(LATENT, groups=64, tile=MANY_ROWS),
        Cache(shares_values=True),
        spread=400.0,
        is_redone=True,
    ),
    "latent, online": Case(
        replace(LATENT, softmax="online"), Cache(shares_values=True), spread=40.0
    ),
    "latent, pages": Case(
        replace(LATENT, lengths=True), Cache(page=64, shares_values=True), lengths=(1.0, 0.7)
    ),
}

RUNNING: Mapping[str, Case] = {
    "many rows": Case(replace(CAUSAL, softmax="running", groups=4), shift=300.0, is_redone=True),
    "few rows": Case(
        replace(CAUSAL, softmax="running", groups=4), rows=2, shift=300.0, is_redone=True
    ),
}
"""Of a φ that calls leave to later ones."""

CROWDED: Mapping[str, Case] = {name: DECODE[name] for name in ("pages", "latent")}
"""Of many decodes at once."""

GRADIENTS: Mapping[str, Case] = {
    "bfloat16, causal, 4 queries a head": Case(replace(CAUSAL, groups=4)),
    "float16": Case(replace(HALF, after=0)),
    "float32": Case(replace(BRAIN, dtype="float32", precision="tf32x3")),
    "a window": Case(replace(CAUSAL, before=100)),
    "lengths": Case(replace(CAUSAL, lengths=True, dead="zero"), lengths=(0.6, 1.0)),
    "trained slopes": Case(replace(BRAIN, program=SLOPES)),
    "a mask that hides tiles": Case(replace(BRAIN, program=ADDED, groups=4), keys=1100),
    "soft-cap": Case(replace(BRAIN, program=CAP, softmax="bound")),
    "sinks": Case(replace(CAUSAL, sinks=True, softmax="sink")),
    "64 columns, float16": Case(replace(HALF, head_dim=64, value_dim=64, groups=3)),
    "80 columns": Case(replace(CAUSAL, head_dim=80, value_dim=80)),
    "192 columns, values of 128": Case(replace(CAUSAL, head_dim=192)),
}

Launch = Callable[[Case, "Given", torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Given:
    """Operands of a case; k and v are [batch, heads, keys, columns] whatever the cache."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    named: Mapping[str, Any]
    """Inputs, lengths, phi and sinks."""
    scales: tuple[torch.Tensor, ...] = ()


def prefill(case: Case) -> float:
    """The error of the kernel of many rows, over what roundings explain."""

    def launch(
        case: Case, given: Given, out: torch.Tensor, lse: torch.Tensor, redone: torch.Tensor
    ) -> None:
        is_aligned = fits_tma(given.k) and fits_tma(given.v)
        tile = tile_for(case.spec, architecture(), is_aligned=is_aligned)
        kernel = build_attention(case.spec, tile)
        kernel(given.q, given.k, given.v, out, **given.named, lse=lse, redone=redone)

    batch, heads, rows, keys = SIZES
    return error_of(case, (batch, heads, rows, case.keys or keys), launch)


def decode(case: Case) -> float:
    """The same of the kernel of few rows; infinite where a second launch gives other bits."""
    bits: list[torch.Tensor] = []

    def launch(
        case: Case, given: Given, out: torch.Tensor, lse: torch.Tensor, redone: torch.Tensor
    ) -> None:
        held = Held.of(given.k, given.v, case.cache)
        scales = dict(zip(("k_scale", "v_scale"), given.scales, strict=False))
        for _ in range(2):
            out.fill_(torch.nan)
            redone.zero_()
            run_decode(
                case.spec, case.cache, given.q, held.k, held.v, out, lse, table=held.table,
                redone=redone, **given.named, **scales,
            )  # fmt: skip
            bits.append(out.clone())

    batch, heads, rows, keys = DECODE_SIZES
    error = error_of(case, (batch, heads, case.rows or rows, keys), launch)
    same = torch.equal(bits[0].nan_to_num(7.0), bits[1].nan_to_num(7.0))
    return error if same else math.inf


def crowded(case: Case) -> float:
    """The error of one of many decodes, on two streams and by replays of a graph beside them;
    infinite where another gives other bits, as CTAs would that add up what is not there yet, or
    meet at counters of others."""
    given = operands(case, CROWDED_SIZES)
    held = Held.of(given.k, given.v, case.cache)
    redone = torch.zeros(1, dtype=torch.int64, device="cuda")
    (batch, heads, rows, _), columns = given.q.shape, case.spec.value_dim

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.full((batch, heads, rows, columns), torch.nan, device="cuda")
        out, lse = out.to(given.q.dtype), out[..., 0].clone()
        run_decode(case.spec, case.cache, given.q, held.k, held.v, out, lse, table=held.table,
                   redone=redone, **given.named)  # fmt: skip
        return out, lse

    first = call()
    replay, here, beside = (
        gpu_checks.captured(call),
        torch.cuda.current_stream(),
        torch.cuda.Stream(),
    )
    beside.wait_stream(here)
    apart = [torch.zeros((), dtype=torch.int64, device="cuda") for _ in range(3)]
    for _ in range(CROWDED_LAUNCHES):
        for run, stream, count in zip(
            (call, call, replay), (beside, here, here), apart, strict=True
        ):
            with torch.cuda.stream(stream):
                for wanted, found in zip(first, run(), strict=True):
                    count += (found != wanted).sum()
    here.wait_stream(beside)
    return compared(case, given, *first) if not sum(map(int, apart)) else math.inf


def running(case: Case) -> float:
    """The largest error of three replays of a graph; infinite where the first computes no row
    twice, another does, or these give other bits."""
    batch, heads, rows, keys = SIZES
    given = operands(case, (batch, heads, case.rows or rows, keys))
    site, named = f"{SITE}, running", given.named
    phi = running_phi(site, given.q.device, given.q.shape[1])

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ops.overlapc.attention(
            given.q, given.k, given.v, named["inputs"], named["lengths"], None, named["sinks"],
            str(case.spec), site,
        )  # fmt: skip

    call()
    replay = gpu_checks.captured(call)
    phi.zero_()
    redone, results, errors = [redone_of(site) or 0], [], []
    for _ in range(3):
        out, lse = replay()
        redone.append(redone_of(site) or 0)
        results.append(out.clone())
        errors.append(compared(case, given, out, lse))
        out.fill_(torch.nan)
    grown = [after > before for before, after in pairwise(redone)]
    is_right = grown == [case.is_redone, False, False] and torch.equal(*results[1:])
    return max(errors) if is_right else math.inf


def gradients(case: Case) -> float:
    """The largest error of a gradient, by kernels, over a few roundings of its largest element."""
    batch, heads, rows, keys = GRADIENT_SIZES
    given = operands(case, (batch, heads, rows, case.keys or keys))
    others = [*given.named["inputs"], given.named["sinks"]]
    leaves = [one for one in (given.q, given.k, given.v, *others) if _is_number(one)]
    for leaf in leaves:
        leaf.requires_grad_()
    rest = (given.named["inputs"], given.named["lengths"])
    before = calls_of(SITE)[BACKWARD]
    out, _ = torch.ops.overlapc.attention(
        given.q, given.k, given.v, *rest, None, given.named["sinks"], str(case.spec), SITE
    )
    slopes = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, slopes)
    if calls_of(SITE)[BACKWARD] == before:
        raise WrongResult(f"no kernel made the gradients: {case.spec}")
    wide = {id(leaf): leaf.detach().double().requires_grad_() for leaf in leaves}
    q, k, v, *others = (wide.get(id(one), one) for one in (given.q, given.k, given.v, *others))
    wanted, _ = attention_by_torch(case.spec, q, k, v, others[:-1], rest[1], others[-1])
    exact = torch.autograd.grad(wanted, list(wide.values()), slopes.double())
    allowed = GRADIENT_STEPS * STEPS[case.spec.dtype]
    pairs = zip(found, exact, strict=True)
    return max(
        (((a.double() - b).abs().max() / (allowed * b.abs().max())).item() for a, b in pairs)
    )


def _is_number(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point()


CHECKS: Mapping[str, tuple[Callable[[Case], float], Mapping[str, Case]]] = {
    "prefill": (prefill, PREFILL),
    "decode": (decode, DECODE),
    "crowded": (crowded, CROWDED),
    "running": (running, RUNNING),
    "gradients": (gradients, GRADIENTS),
}
"""Every kernel of attention: what checks it, and on what. A new one has to be added here."""


def values(deadline: Deadline, kind: str, name: str) -> dict[str, Any]:
    """One kind of kernel on one case, results poisoned beforehand."""
    check, cases = CHECKS[kind]
    torch.manual_seed(0)
    error = check(cases[name])
    if not error <= 1:
        raise WrongResult(f"{error:.3g} of what roundings explain: {cases[name].spec}")
    return {"row": f"{kind}: {name}", "largest error": error}


def error_of(case: Case, sizes: tuple[int, int, int, int], launch: Launch) -> float:
    """The error of a launch over what is allowed; infinite where what is redone is not as it should
    be, or NaN is elsewhere than in float64."""
    given, spec = operands(case, sizes), case.spec
    shape = (*given.q.shape[:3], spec.value_dim)
    out = torch.full(shape, torch.nan, dtype=given.q.dtype, device="cuda")
    lse = torch.full(shape[:3], torch.nan, dtype=getattr(torch, spec.sums_dtype), device="cuda")
    redone = torch.zeros(1, dtype=torch.int32, device="cuda")
    launch(case, given, out, lse, redone)
    if (redone.item() > 0) != case.is_redone:
        return math.inf
    return compared(case, given, out, lse)


def compared(case: Case, given: Given, out: torch.Tensor, lse: torch.Tensor) -> float:
    """The error of a result over what is allowed; infinite where NaN is elsewhere."""
    wanted, sums, allowed = reference(case, given)
    if not torch.equal(out.isnan(), wanted.isnan()):
        return math.inf
    error = ((out.double() - wanted).abs() / allowed).nan_to_num(0.0).max().item()
    # Sums of rounded weights: of one part in 2^8 at most, the logarithm loses as much.
    ok = torch.isclose(lse.double(), sums.double(), rtol=1e-4, atol=1e-2, equal_nan=True)
    return error if bool(ok.all()) else math.inf


def operands(case: Case, sizes: tuple[int, int, int, int]) -> Given:
    """Normal random ones."""
    spec, (batch, heads, rows, keys) = case.spec, sizes
    dtype, every = getattr(torch, spec.dtype), heads * spec.groups
    q = torch.randn(batch, every, rows, spec.head_dim, device="cuda") * case.spread
    k = torch.randn(batch, heads, keys, spec.head_dim, device="cuda")
    v = torch.randn(batch, heads, keys, spec.value_dim, device="cuda")
    held = getattr(torch, case.cache.of(spec))
    if case.shift:
        q[..., 0], k[..., 0] = case.shift / spec.scale, 1.0
    k, v = k.to(held), v.to(held)
    if case.is_odd:
        k, v = (torch.nn.functional.pad(side, (0, 1))[..., :-1] for side in (k, v))
    if case.cache.shares_values:
        v = k[..., : spec.value_dim]
    shares = (case.lengths * batch)[:batch]
    lengths = [round(share * keys) for share in shares]
    scales = (torch.rand(heads, device="cuda") + 0.5, torch.rand(heads, device="cuda") + 0.5)
    named = {
        "inputs": [_input(item, batch, every, rows, keys) for item in spec.inputs],
        "lengths": torch.tensor(lengths, dtype=torch.int32, device="cuda") if shares else None,
        "phi": torch.full((every,), case.phi, device="cuda") if spec.takes_phi else None,
        "sinks": torch.randn(every, device="cuda") if spec.sinks else None,
    }
    return Given(q.to(dtype), k, v, named, scales if case.cache.scales else ())


def _input(item: Input, batch: int, heads: int, rows: int, keys: int) -> torch.Tensor:
    """Truths of which some rows have none, the least number but in a fourth of the keys, or slopes
    that fall."""
    if item.dtype == "bool":
        kept = torch.rand(batch, 1, rows, keys, device="cuda") < 0.5
        kept[:, :, 0] = False
        return kept
    if item.shape == "matrix":
        hidden = torch.rand(batch, 1, rows, keys, device="cuda") < 0.5
        hidden[..., : keys // 4] = hidden[..., keys // 2 :] = True
        hidden[..., keys // 3] = False
        least = torch.finfo(torch.bfloat16).min
        return torch.zeros_like(hidden, dtype=torch.bfloat16).masked_fill(hidden, least)
    slopes = torch.rand(heads, 1, 1, device="cuda") * 0.1
    return slopes * torch.arange(1 - keys, 1, device="cuda")


@dataclass(frozen=True)
class Held:
    """Keys and values as a cache holds them, with the table of its pages."""

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor | None = None

    @classmethod
    def of(
        cls, k: torch.Tensor, v: torch.Tensor, cache: Cache, order: torch.Tensor | None = None
    ) -> Held:
        """From [batch, heads, keys, columns]; pages of all sequences in ``order``, or random.

        What the last page of a sequence has beyond its keys are zeros: a length has to tell.
        """
        if not cache.page:
            return cls(k, v)
        batch, heads, keys, _ = k.shape
        pages = -(-keys // cache.page)
        if order is None:
            order = torch.randperm(batch * pages, device=k.device)
        sides = []
        for side in (k, v):
            room = side.new_zeros(batch, heads, pages * cache.page, side.shape[3])
            room[:, :, :keys] = side
            cut = room.unflatten(2, (pages, cache.page)).transpose(1, 2).flatten(0, 1)
            held = torch.empty_like(cut, memory_format=torch.contiguous_format)
            held[order] = cut
            sides.append(held)
        if cache.shares_values:
            sides[1] = sides[0][..., : v.shape[3]]
        return cls(sides[0], sides[1], order.view(batch, pages).int())


def reference(case: Case, given: Given) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result and logarithms of sums in float64, and the error that roundings may lead to."""
    spec = case.spec
    k, v = given.k.double(), given.v.double()
    if given.scales:
        k, v = (side * scale.double()[:, None, None]
                for side, scale in zip((k, v), given.scales, strict=True))  # fmt: skip
    q, named = given.q.double(), given.named
    rest = [tensor.double() if tensor.is_floating_point() else tensor for tensor in named["inputs"]]
    others = (rest, named["lengths"], named["sinks"])
    wanted, sums = attention_by_torch(spec, q, k, v, *others)
    # Of means of positive numbers: what errors of weights and of scores come to at most.
    means, _ = attention_by_torch(spec, q, k, v.abs(), *others)
    largest = (q.abs() @ k.abs().repeat_interleave(spec.groups, 1).mT).amax(-1, keepdim=True)
    of_scores = 16 * 2.0**-23 * (1 + spec.scale * largest + _added(spec, q, k, rest))
    step = STEPS[spec.dtype]
    allowed = means * (of_scores + 1.5 * step) + step * wanted.abs() + 1e-30
    return wanted, sums, allowed


def _added(
    spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, inputs: list[torch.Tensor]
) -> torch.Tensor:
    """How large scores of nothing are: what masks add, where they do not leave keys out."""
    _, scores, _ = masked_scores(spec, torch.zeros_like(q), torch.zeros_like(k), inputs, None)
    return scores.masked_fill(scores < -1e9, 0.0).abs().amax(-1, keepdim=True)
