"""One run of a generated decode attention in the interpreter, with everything about it checked.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from overlapc.codegen.attention import decode
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import DecodeKernel, Workspace, build_decode
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.builder import TEMPLATES, load
from overlapc.codegen.epilogue import Call, Epilogue, Input, Ref
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.codegen.templates.cached_tiles import widened
from overlapc.errors import KernelError
from tests.codegen.attention_cases import loads_of
from tests.codegen.drawn_memory import apart
from tests.codegen.drawn_precision import rounding_to_tf32
from tests.codegen.hidden_masks import HidingMask
from tests.codegen.shuffled_grid import shuffled_grid

correct_interpreter()

STEPS = {"float32": 2.0**-23, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Of the dtypes' roundings."""
GUARD = 64
REDONE_BEFORE = 2**31 - 1
"""Rows of the launches before: with one row more a counter of 32 bits is below zero."""
"""Elements around the result, and around the partial sums, that nothing may touch."""


@dataclass(frozen=True)
class Case:
    """Sizes and contents of one call."""

    batch: int = 2
    heads: int = 1
    rows: int = 1
    keys: int = 100
    splits: int = 3
    lengths: tuple[int, ...] = ()
    mask: str = ""
    """"", "bool", "padding" (of the first 40 keys of the first sequence), "bias" (of rows and
    keys), "slopes" (of heads, by a vector of keys)."""
    hiding: dict[str, Any] | None = None
    """Fields of a ``HidingMask`` that is given instead; tiles of which it hides all hold NaN."""
    factor: float = 1.0
    """Multiplied into the scores."""
    offset: float = 0.0
    """Added to the scores."""
    block_m: int = 16
    block_n: int = 16
    layout: str = "bhsd"
    """"bhsd" contiguous, "bshd" with heads inside, "strided" with gaps everywhere."""
    scale_per_head: bool = False
    is_apart: bool = False
    """Of a cache that shares values, what follows them of each key is in memory of its own."""
    sinks: float = 0.0
    """Their mean."""
    wants_lse: bool = True
    redone: int | None = None
    """How many rows must be computed again; None: any number."""
    seed: int = 0
    architecture: str = ""
    """Of the device that the kernel takes this one for."""

    def hiding_mask(self, heads: int) -> HidingMask | None:
        """The mask of ``hiding`` over the scores of so many query heads."""
        if self.hiding is None:
            return None
        sizes = (self.batch, heads, self.rows, self.keys)
        return HidingMask(sizes, seed=self.seed, **self.hiding)


@dataclass
class Run:
    """A call that was made ready, and what it must give."""

    kernel: DecodeKernel
    case: Case
    sides: list[torch.Tensor]
    named: dict[str, Any]
    workspace: Workspace
    around: torch.Tensor
    wanted: torch.Tensor
    wanted_lse: torch.Tensor
    allowed: torch.Tensor
    allowed_lse: torch.Tensor

    @property
    def out(self) -> torch.Tensor:
        return self.sides[3]

    def launch(self, seed: int) -> None:
        """Call the kernel, its programs in a random order, on poisoned results."""
        self.around.fill_(torch.nan)
        self.workspace.partials.fill_(torch.nan)
        if self.named["lse"] is not None:
            self.named["lse"].fill_(torch.nan)
        self.named["redone"].fill_(REDONE_BEFORE)
        device = patch.object(decode, "sm_of", lambda _: self.case.architecture)
        with shuffled_grid(random.Random(seed)), device, rounding_to_tf32():
            self.kernel(*self.sides, splits=self.case.splits, workspace=self.workspace,
                        **self.named)  # fmt: skip

    def check(self) -> None:
        """Raise AssertionError unless everything is as it must be after a launch."""
        out, wanted = self.out.double(), self.wanted
        assert torch.equal(out.isnan(), wanted.isnan()), "NaN is not where it has to be"
        if self.case.mask == "bool" and min(self.case.batch, self.case.rows) > 1:
            assert wanted.isnan().any(), "the reference has no row of nothing"
        error = ((out - wanted).abs() / self.allowed).nan_to_num(0.0).max().item()
        assert error <= 1, f"the result is off by {error:.3g} of what is allowed"
        lse = self.named["lse"]
        if lse is not None:
            found, wanted = lse.double(), self.wanted_lse
            same = (found == wanted) | (found.isnan() & wanted.isnan())
            error = torch.where(same, 0.0, (found - wanted).abs() / self.allowed_lse)
            worst = error.nan_to_num(torch.inf).max().item()
            assert worst <= 1, f"lse is off by {worst:.3g} of what is allowed"
        assert not self.workspace.arrived.any(), "a counter is not back at zero"
        if self.case.redone is not None:
            redone = self.named["redone"].item() - REDONE_BEFORE
            assert redone == self.case.redone, f"{redone} rows were redone, not {self.case.redone}"
        holes = self.around[:GUARD].isnan().all() and self.around[-GUARD:].isnan().all()
        assert holes, "a store fell outside the result"


def run(
    spec: str, cache: str, case: Case, mutate: Sequence[tuple[str, str]] = (), launches: int = 1
) -> None:
    """Raise AssertionError unless the kernel computes the attention of random data.

    ``mutate`` are texts of templates and what to put in their place: mutants that must be caught.
    """
    made = prepare(spec, cache, case, mutate)
    for launch in range(launches):
        made.launch(case.seed + launch)
        made.check()


def bits(
    spec: str, cache: str, case: Case, mutate: Sequence[tuple[str, str]] = (), orders: int = 4
) -> None:
    """Raise AssertionError unless every order of programs gives the same bits."""
    made = prepare(spec, cache, case, mutate)
    made.launch(0)
    made.check()
    first = made.out.clone()
    for order in range(1, orders):
        made.launch(order)
        assert torch.equal(made.out, first), "another order of programs gives other bits"


def bytes_read(
    spec: str, cache: str, case: Case, mutate: Sequence[tuple[str, str]] = ()
) -> tuple[int, int]:
    """Bytes that one launch loads from K and from V where it is not K's."""
    made = prepare(spec, cache, case, mutate)
    counted = [0, 0]
    ranges = []
    for side in made.sides[1:3]:
        storage = side.untyped_storage()
        ranges.append((storage.data_ptr(), storage.data_ptr() + storage.nbytes()))
    builder: Any = interpreter_builder
    original = builder.create_masked_load

    def counting(pointers: Any, mask: Any, *others: Any) -> Any:
        result = original(pointers, mask, *others)
        places = pointers.data[mask.data.astype(bool)]
        for index, (low, high) in enumerate(ranges):
            inside = ((places >= low) & (places < high)).sum()
            counted[index] += int(inside) * made.sides[1 + index].element_size()
        return result

    builder.create_masked_load = counting
    try:
        made.launch(0)
    finally:
        builder.create_masked_load = original
    made.check()
    return counted[0], counted[1]


def mask_read(
    spec: str, cache: str, case: Case, mutate: Sequence[tuple[str, str]] = ()
) -> float:  # fmt: skip
    """How often each number that a row of a head has of the mask is loaded by one launch."""
    made = prepare(spec, cache, case, mutate)
    (mask,) = made.named["inputs"]
    with loads_of(mask=mask) as counts:
        made.launch(0)
    made.check()
    heads = case.heads * AttentionSpec.parse(spec).groups
    return counts["mask"] / (case.batch * heads * case.rows * case.keys)


def prepare(text: str, cache_text: str, case: Case, mutate: Sequence[tuple[str, str]] = ()) -> Run:
    """Random operands, with NaN wherever nothing may be read, and the result in float64."""
    spec, cache = AttentionSpec.parse(text), Cache.parse(cache_text)
    hiding = case.hiding_mask(case.heads * spec.groups)
    spec = replace(spec, program=hiding.program if hiding else program_of(case))
    torch.manual_seed(case.seed)
    tile = AttentionTile(case.block_m, case.block_n, 4, 2)
    kernel = build_decode(spec, cache, tile)
    if mutate:
        kernel = mutant(kernel, mutate)
    dtype = getattr(torch, spec.dtype)
    query_heads = case.heads * spec.groups
    lengths = torch.tensor(case.lengths or (case.keys,) * case.batch, dtype=torch.int32)
    q = spread(torch.randn(case.batch, query_heads, case.rows, spec.head_dim) * case.factor, dtype,
               case.layout)  # fmt: skip
    k = torch.randn(case.batch, case.heads, case.keys, spec.head_dim)
    v = k[..., : spec.value_dim] if cache.shares_values else torch.randn(
        case.batch, case.heads, case.keys, spec.value_dim
    )  # fmt: skip
    kept = getattr(torch, cache.of(spec))
    k, v = k.to(kept), v.to(kept)
    if case.offset:
        # Along one element of every query and key, so that all scores are shifted.
        q[..., 0], k[..., 0] = case.offset / spec.scale, 1.0
    stored_k, stored_v, table = stored(spec, cache, case, k, v, lengths)
    inputs = [hiding.tensor] if hiding else inputs_of(case, query_heads)
    shape = (case.batch, query_heads, case.rows, spec.value_dim)
    around = torch.full((torch.Size(shape).numel() + 2 * GUARD,), torch.nan, dtype=dtype)
    out = around[GUARD:-GUARD].view(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
    count = case.heads if case.scale_per_head else 1
    scales = [torch.rand(count) + 0.5 if cache.scales else None for _ in range(2)]
    sinks = None
    if spec.sinks:
        sinks = torch.randn(query_heads) + case.sinks
    phi = torch.randn(query_heads) + case.offset if spec.takes_phi else None
    named = {
        "inputs": inputs,
        "lengths": apart(lengths) if spec.lengths else None,
        "table": table,
        "k_scale": scales[0],
        "v_scale": scales[1],
        "phi": phi,
        "sinks": sinks,
        "lse": torch.full(shape[:3], torch.nan, dtype=getattr(torch, spec.sums_dtype))
        if case.wants_lse
        else None,
        "redone": torch.zeros(1, dtype=torch.int64),
    }
    used = lengths if spec.lengths else torch.full((case.batch,), case.keys)
    result = reference(spec, case, q, k, v, inputs, used, scales, sinks)
    wanted, wanted_lse, allowed, allowed_lse = result
    workspace = kernel.workspace(q, case.splits)
    return Run(kernel, case, [q, stored_k, stored_v, out], named, workspace, around, wanted,
               wanted_lse, allowed, allowed_lse)  # fmt: skip


def spread(x: torch.Tensor, dtype: torch.dtype, layout: str) -> torch.Tensor:
    """The values of ``x`` in a layout, with NaN in its gaps."""
    x = x.to(dtype)
    if layout == "bhsd":
        return x.contiguous()
    if layout == "bshd":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    batch, heads, rows, dim = x.shape
    wide = torch.full((rows, 2, batch, dim, heads, 2), torch.nan).to(dtype)
    part = wide[:, 1, :, :, :, 0].permute(1, 3, 0, 2)
    part.copy_(x)
    return part


def stored(
    spec: AttentionSpec, cache: Cache, case: Case, k: torch.Tensor, v: torch.Tensor,
    lengths: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """K and V as the kernel takes them: NaN from each sequence's length on, in pages if paged."""
    k, v = (k[..., spec.value_dim :] if case.is_apart else k).clone(), v.clone()
    shares_memory = cache.shares_values and not case.is_apart
    if hiding := case.hiding_mask(case.heads * spec.groups):
        hidden = hiding.hidden_tiles(case.block_n, spec.groups)
        k[hidden] = v[hidden] = torch.nan
    for b in range(case.batch if spec.lengths else 0):
        k[b, :, lengths[b] :] = v[b, :, lengths[b] :] = torch.nan
    if not cache.page:
        k = spread(k, k.dtype, case.layout)
        if shares_memory:
            return k, k[..., : spec.value_dim], None
        return k, spread(v, v.dtype, case.layout), None
    pages = -(-case.keys // cache.page)
    order = torch.randperm(2 * case.batch * pages)
    order, unused = order[: case.batch * pages], order[-1]
    # Beyond the pages that hold keys the table will say what no memory has.
    table = order.view(case.batch, pages).int()
    out = []
    for side in (k, v):
        shape = (2 * case.batch * pages, case.heads, cache.page, side.shape[-1])
        paged = spread(torch.full(shape, torch.nan), side.dtype, case.layout)
        for b, page in product(range(case.batch), range(pages)):
            part = side[b, :, page * cache.page : (page + 1) * cache.page]
            paged[table[b, page], :, : part.shape[1]] = part
        out.append(paged)
    if shares_memory:
        out[1] = out[0][..., : spec.value_dim]
    for b in range(case.batch if spec.lengths else 0):
        table[b, -(-int(lengths[b]) // cache.page) :] = 2**30
        if spec.before is not None and spec.align == "bottom_right":
            # And before those of all windows, pages of NaN.
            oldest = max(int(lengths[b]) - case.rows - spec.before, 0)
            table[b, : oldest // cache.page] = unused
    return out[0], out[1], table


PRODUCT = Call("aten.mm.default", (Ref("gemm", 0), Ref("gemm", 1)))


def program_of(case: Case) -> str:
    """The scores of a case as an epilogue's text."""
    match case.mask:
        case "bool" | "padding":
            fill = Call("aten.where.ScalarOther", (Ref("input", 0), Ref("value", 0), -float("inf")))
            return str(Epilogue((Input("matrix", "bool"),), (PRODUCT, fill)))
        case "bias":
            add = Call("aten.add.Tensor", (Ref("value", 0), Ref("input", 0)))
            return str(Epilogue((Input("matrix", "float32"),), (PRODUCT, add)))
        case "slopes":
            add = Call("aten.add.Tensor", (Ref("value", 0), Ref("input", 0)))
            return str(Epilogue((Input("vector", "float32"),), (PRODUCT, add)))
    return ""


def inputs_of(case: Case, query_heads: int) -> list[torch.Tensor]:
    """What the program of a case reads."""
    match case.mask:
        case "bool":
            kept = torch.rand(case.batch, 1, case.rows, case.keys) < 0.5
            kept[0, 0, 0] = case.batch == 1 or case.rows == 1  # else a row of nothing
            return [kept]
        case "padding":
            kept = torch.ones(case.batch, 1, case.rows, case.keys, dtype=torch.bool)
            kept[0, ..., :40] = False
            return [kept]
        case "bias":
            return [torch.randn(case.batch, 1, case.rows, case.keys)]
        case "slopes":
            slopes = -torch.rand(query_heads)[:, None, None]
            return [slopes * torch.arange(case.keys, 0, -1)]
    return []


def reference(
    spec: AttentionSpec, case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    inputs: list[torch.Tensor], lengths: torch.Tensor, scales: list[torch.Tensor | None],
    sinks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """The attention in float64, log-sum-exp, and the errors of both that roundings may lead to."""
    q, k, v = (side.double() for side in (q, k, v))
    if scales[0] is not None and scales[1] is not None:
        k, v = k * scales[0].double()[:, None, None], v * scales[1].double()[:, None, None]
    k, v = (side.repeat_interleave(spec.groups, 1) for side in (k, v))
    scores = q @ k.mT * spec.scale
    size = (q.abs() @ k.abs().mT * spec.scale).amax(-1, keepdim=True)
    hiding = case.hiding_mask(q.shape[1])
    if hiding:
        scores = hiding.applied(scores)
    elif case.mask in ("bool", "padding"):
        scores = scores.masked_fill(~inputs[0], -torch.inf)
    elif inputs:
        scores = scores + inputs[0].double()
        size = size + inputs[0].double().abs().amax(-1, keepdim=True)
    key = torch.arange(case.keys)
    for b in range(case.batch):
        own = torch.arange(case.rows)[:, None]
        if spec.align == "bottom_right":
            own = own + int(lengths[b]) - case.rows
        off = (key >= lengths[b])[None, :].expand(case.rows, -1).clone()
        if spec.before is not None:
            off |= key < own - spec.before
        if spec.after is not None:
            off |= key > own + spec.after
        scores[b].masked_fill_(off, -torch.inf)
    if sinks is not None:
        column = sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), -1)
        v = torch.cat((v, torch.zeros(*v.shape[:2], 1, v.shape[-1], dtype=torch.float64)), -2)
    weights = scores.softmax(-1)
    if spec.dead == "zero":
        weights = weights.nan_to_num(0.0)
    wanted = weights @ v
    step = STEPS[spec.dtype]
    # Of scores as sums in float32 and as exponents; of weights, as they are rounded; of the result.
    of_scores = 16 * 2.0**-23 * (1 + size)
    allowed = (weights @ v.abs()) * (of_scores + 1.5 * step) + step * wanted.abs() + 1e-30
    # A sum is off by what its scores and the roundings of its weights are, relative to itself.
    lse = scores.logsumexp(-1)
    allowed_lse = of_scores[..., 0] + 1.5 * step + 2.0**-22 * lse.nan_to_num(0, 0, 0).abs()
    # The logarithm of how many masks a row is made of is lost in the least number.
    allowed_lse = allowed_lse.masked_fill(lse.isfinite() & (lse < -1e30), torch.inf)
    return wanted, lse, allowed, allowed_lse


def mutant(kernel: DecodeKernel, changes: Sequence[tuple[str, str]]) -> DecodeKernel:
    """The kernel on a template in which texts are replaced."""
    # One file of all: its own functions take the place of those that it imports.
    files = "decode.py", "cached_tiles.py", "decode_parts.py", "hidden.py"
    text = "".join((TEMPLATES / name).read_text() for name in files)
    for old, new in changes:
        assert text.count(old) == 1, f"there is no single {old!r} to mutate"
        text = text.replace(old, new)
    path = kernel.path.with_name(f"mutant_{abs(hash(tuple(changes)))}.py")
    path.write_text(text)
    module = ModuleType(path.stem)
    module.__dict__.update(kernel.module.__dict__)
    module.__dict__["KERNEL"] = load(path).attention_decode
    return replace(kernel, module=module)


CALLS = {"run": run, "bits": bits, "bytes_read": bytes_read, "mask_read": mask_read}


def call(name: str, spec: str, cache: str, case: dict[str, Any], **named: Any) -> Any:
    """Do one of ``CALLS`` on a case given as plain values: tests send it to another process."""
    return CALLS[name](spec, cache, Case(**case), **named)


@triton.jit
def _widen_all(bytes_of, out):
    at = tl.arange(0, 256)
    tl.store(out + at, widened(tl.load(bytes_of + at), tl.float16, False))


def numbers_of_bytes_differ() -> list[int]:
    """Bytes whose number in the kernel is not that of float8_e4m3fn."""
    codes = torch.arange(256, dtype=torch.uint8)
    found = torch.zeros(256, dtype=torch.float16)
    _widen_all[(1,)](codes, found)
    wanted = codes.view(torch.float8_e4m3fn).to(torch.float16)
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    return codes[~same].tolist()


def misfits(changes: list[dict[str, Any]]) -> list[str]:
    """The errors of calls that would fit, but for one change each."""
    return [misfit(change) for change in changes]


def misfit(change: dict[str, Any]) -> str:
    """The error of one."""
    spec = AttentionSpec("float32", 32, 32, groups=2, after=0, align="bottom_right", lengths=True)
    made = prepare(str(spec), str(Cache(page=16)), Case(heads=2, keys=96, mask="bias"))
    sides, splits = list(made.sides), 3
    (name, value), *_ = change.items()
    match name:
        case "table":
            made.named["table"] = None
        case "lengths":
            made.named["lengths"] = made.named["lengths"].long()
        case "arrived":
            made.workspace = replace(made.workspace, arrived=made.workspace.arrived[:value])
        case "partials":
            made.workspace = replace(made.workspace, partials=made.workspace.partials[:value])
        case "arrived dtype":
            dtyped = made.workspace.arrived.to(getattr(torch, value))
            made.workspace = replace(made.workspace, arrived=dtyped)
        case "partials dtype":
            dtyped = made.workspace.partials.to(getattr(torch, value))
            made.workspace = replace(made.workspace, partials=dtyped)
        case "arrived device":
            moved = made.workspace.arrived.to(value)
            made.workspace = replace(made.workspace, arrived=moved)
        case "arrived step":
            wide = made.workspace.arrived.repeat_interleave(value)
            made.workspace = replace(made.workspace, arrived=wide[::value])
        case "device":
            there = made.named[value]
            moved = [side.to("meta") for side in there] if value == "inputs" else there.to("meta")
            made.named[value] = moved
        case "splits":
            splits = value
        case "k":
            sides[1] = sides[1][:, :1]
        case "q":
            sides[0] = sides[0].half()
    try:
        made.kernel(*sides, splits=splits, workspace=made.workspace, **made.named)
    except KernelError as error:
        return str(error)
    return "no error"
