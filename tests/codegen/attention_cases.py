"""One run of a generated attention in the interpreter, with everything about it checked.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from overlapc.codegen.attention import looking
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.descriptors import fits_tma
from overlapc.codegen.attention.kernel import AttentionKernel, build_attention
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.builder import TEMPLATES, load
from overlapc.codegen.epilogue import Input
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.codegen.templates.launch_order import dealt
from tests.codegen import attention_oracle as oracle
from tests.codegen.drawn_memory import apart
from tests.codegen.hidden_masks import HidingMask

correct_interpreter()

OTHERS = ("cached", "decode", "gradient")
"""What files of templates begin with that the forward of many rows does not use."""
TILE = AttentionTile(16, 16, 4, 1)
REDONE_BEFORE = 2**31 - 1
"""Rows of the launches before: with one row more a counter of 32 bits is below zero."""
ROUNDING = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
"""Of the largest value: some roundings of weights, and the one of the result. Chosen."""
SUMMED = {"float32": 1e-6, "float16": 5e-4, "bfloat16": 4e-3}
"""Of sums of weights, which are rounded before they are summed."""


@dataclass(frozen=True)
class Case:
    """Sizes and contents of one call, and its tile."""

    batch: int = 2
    heads: int = 1
    """Of keys."""
    rows: int = 20
    keys: int = 45
    seed: int = 0
    spread: float = 1.0
    """Multiplied into queries."""
    lengths: tuple[int, ...] = ()
    """Given where the spec takes them."""
    kept: float = 0.7
    """Which part of truths is true."""
    tile: tuple[int, int] = (16, 16)
    layout: str = "odd"
    """"odd": each of q, k and v has strides of its own; "dense": [batch, heads, rows, dim];
    "aligned": odd, of which the TMA unit reads k and v, and NaN between their rows."""


def run(
    text: str,
    *,
    scaled: Mapping[int, float] | None = None,
    phi: float = 0.0,
    redone: int | str | None = 0,
    values: float = 1.0,
    first_sink: float | None = None,
    hidden: int | Mapping[int, int] = 0,
    far: float = 0.0,
    ones: int = 0,
    by_tma: bool = False,
    ahead: bool = False,
    hiding: Mapping[str, Any] | None = None,
    mutate: tuple[str, str] | None = None,
    **named: Any,
) -> float:
    """Raise AssertionError unless the kernel gives what float64 does; the largest error.

    ``scaled`` multiplies queries of single rows and ``values`` those; ``first_sink`` is that of the
    first head; masks keep none of the first ``hidden`` keys (of single rows, and all others, where
    it says which), and scores are ``far`` from zero; ``by_tma`` lays keys and values out for the
    TMA unit, which loads them; ``ahead`` is that of the tile; ``redone`` is how many rows are to be
    computed twice (None: at least one; "any"). ``hiding`` are fields of a ``HidingMask``, the
    scores' only one; keys and values of tiles of which it hides all are NaN then. ``mutate`` is a
    text of a template or of the module and what to put in its place. The rest are fields of
    ``Case``.
    """
    named |= {"layout": "aligned"} if by_tma else {}
    spec, case = AttentionSpec.parse(text), Case(**named)
    batch, every, rows, keys = case.batch, case.heads * spec.groups, case.rows, case.keys
    mask = HidingMask((batch, every, rows, keys), seed=case.seed, **hiding) if hiding else None
    spec = replace(spec, program=mask.program) if mask else spec
    kernel = build_attention(
        spec, AttentionTile(*case.tile, 4, 1, ones, by_tma=by_tma, ahead=ahead)
    )
    kernel = mutant(kernel, mutate) if mutate else kernel
    given = operands(spec, case)
    given["v"] *= values
    if mask:
        given["inputs"] = [mask.tensor]
    hide(given["inputs"], hidden)
    if far:
        given["q"][..., 0], given["k"][..., 0] = far / spec.scale, 1.0
    for row, factor in (scaled or {}).items():
        given["q"][:, :, row] *= factor
    if first_sink is not None:
        given["sinks"][0] = first_sink
    if spec.takes_phi:
        given["phi"] = torch.full((every,), phi)
    # Rows and columns around the result, so that a store outside it is seen.
    around = torch.full((batch, rows + 2, every, spec.value_dim + 3), torch.nan)
    around = around.to(getattr(torch, spec.dtype))
    out = around.transpose(1, 2)[:, :, 1:-1, 1:-2]
    lse = torch.full((batch, every, rows), torch.nan, dtype=getattr(torch, spec.sums_dtype))
    counter = torch.tensor([REDONE_BEFORE])
    if mask:
        program, tensor = mask.for_oracle
        wanted, sums = oracle.attention(replace(spec, program=program),
                                        **{**given, "inputs": [tensor]})  # fmt: skip
    else:
        wanted, sums = oracle.attention(spec, **given)
    largest = given["v"].double().abs().amax() if keys else 0.0
    with looking_through_masks():
        kernel(**poisoned(given, mask, spec, case), out=out, lse=lse, redone=counter)
    error = difference(out, wanted)
    assert error <= ROUNDING[spec.dtype] * (1 + largest), f"error {error}"
    # The logarithm of how many masks a row is made of is lost in the least number, or the largest.
    # One that is infinite is NaN in the kernel, as all weights are.
    lost = (sums.isfinite() & (sums.abs() > 1e30)) | (sums.isposinf() & lse.isnan())
    lse, sums = lse.masked_fill(lost, 0.0), sums.masked_fill(lost, 0.0)
    size = 1 + sums.nan_to_num(0, 0, 0).abs().max()
    assert difference(lse, sums) <= SUMMED[spec.dtype] * size, "wrong logarithms of sums"
    inside = out.isnan().sum()
    assert around.isnan().sum() - inside == around.numel() - out.numel(), "a store beside it"
    count = counter.item() - REDONE_BEFORE
    is_right = count > 0 if redone is None else redone in ("any", count)
    assert is_right, f"{count} rows were redone"
    return error


@contextmanager
def looking_through_masks() -> Iterator[None]:
    """Of however few keys, and whatever it costs."""
    free = dict.fromkeys(looking.OPERATIONS_A_BYTE, 0)
    with patch.multiple(looking, LEAST_KEYS=0, OPERATIONS_A_BYTE=free):
        yield


def poisoned(
    given: Mapping[str, Any], mask: HidingMask | None, spec: AttentionSpec, case: Case
) -> dict[str, Any]:
    """Operands of which nothing is a number that no kernel has to read; written in place."""
    hidden = torch.zeros(case.batch, 1, case.keys, 1, dtype=torch.bool)
    if mask is not None:
        hidden = hidden | mask.hidden_tiles(case.tile[1], spec.groups)[..., None]
    if "lengths" in given:
        hidden = hidden | (
            torch.arange(case.keys)[:, None] >= given["lengths"].reshape(-1, 1, 1, 1)
        )
    for name in "kv":
        given[name].masked_fill_(hidden, torch.nan)
    return dict(given)


def hide(inputs: list[torch.Tensor], hidden: int | Mapping[int, int]) -> None:
    """Let masks keep no key before ``hidden``, or those rows none and all others all; 0: as they
    are."""
    for mask in inputs if hidden else ():
        if isinstance(hidden, int):
            mask[..., :hidden] = False
            continue
        mask.fill_(True)
        for row, first in hidden.items():
            mask[..., row, :first] = False


def keys_read(text: str, *, hidden: Mapping[int, int], **sizes: int) -> int:
    """How many numbers of K one call loads."""
    spec = AttentionSpec.parse(text)
    kernel = build_attention(spec, TILE)
    given = operands(spec, Case(**sizes, kept=1.0))
    hide(given["inputs"], hidden)
    with loads_of(k=given["k"]) as counts:
        out = given["v"].new_empty((*given["q"].shape[:3], spec.value_dim))
        kernel(**given, out=out, redone=torch.zeros(1, dtype=torch.int32))
    assert torch.equal(out.isnan(), oracle.attention(spec, **given)[0].isnan())
    return counts["k"]


@contextmanager
def loads_of(**tensors: torch.Tensor) -> Iterator[Counter[str]]:
    """Count how many numbers of each tensor kernels load."""
    places: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        places[name] = (storage.data_ptr(), storage.data_ptr() + storage.nbytes())
    builder: Any = interpreter_builder
    original: Any = builder.create_masked_load
    counts: Counter[str] = Counter()

    def counting(pointers: Any, mask: Any, *others: Any) -> Any:
        loaded = pointers.data[mask.data.astype(bool)]
        for name, (low, high) in places.items():
            counts[name] += int(((loaded >= low) & (loaded < high)).sum())
        return original(pointers, mask, *others)

    with patch.object(builder, "create_masked_load", counting):
        yield counts


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest error; infinite where one is NaN or infinite and the other is not."""
    found = found.double()
    same = (found == wanted) | (found.isnan() & wanted.isnan())
    return torch.where(same, 0.0, (found - wanted).abs()).nan_to_num(math.inf).max().item()


def operands(spec: AttentionSpec, case: Case) -> dict[str, Any]:
    """Normal random q, k, v, and what the spec takes beside them."""
    torch.manual_seed(case.seed)
    dtype = getattr(torch, spec.dtype)
    batch, every = case.batch, case.heads * spec.groups
    q = torch.randn(batch, case.rows, every, spec.head_dim) * case.spread
    k = torch.randn(batch, case.keys, case.heads, spec.head_dim + 3)[..., :-3]
    v = torch.randn(case.heads, batch, spec.value_dim, case.keys).permute(1, 0, 3, 2)
    found: dict[str, Any] = {
        "q": q.to(dtype).transpose(1, 2),
        "k": k.to(dtype).transpose(1, 2),
        "v": v.to(dtype),
        "inputs": [an_input(item, case, every) for item in spec.inputs],
    }
    if case.layout == "dense":
        found |= {name: found[name].contiguous() for name in "qkv"}
    elif case.layout == "aligned":
        found |= {name: aligned(found[name]) for name in "kv"}
    if spec.sinks:
        found["sinks"] = torch.randn(every).to(dtype)
    if spec.lengths:
        found["lengths"] = apart(torch.tensor(case.lengths, dtype=torch.int32))
    return found


def aligned(side: torch.Tensor) -> torch.Tensor:
    """The same as ``fits_tma`` has it, head by head between rows of one key, NaN beside each."""
    batch, heads, keys, dim = side.shape
    around = side.new_full((batch, keys + 1, heads, -(-dim // 8) * 8 + 8), torch.nan)
    found = around.transpose(1, 2)[:, :, :-1, :dim]
    found.copy_(side)
    assert fits_tma(found)
    return found


def an_input(item: Input, case: Case, heads: int) -> torch.Tensor:
    """Random values of an input of scores of so many heads of queries."""
    shape = {
        "matrix": (case.batch, 1, case.rows, case.keys),
        "column": (heads, case.rows, 1),
        "vector": (case.batch, 1, 1, case.keys),
        "one": (heads, 1, 1),
        "scalar": (),
    }[item.shape]
    if item.dtype == "bool":
        return torch.rand(shape) < case.kept
    return torch.randn(shape).to(getattr(torch, item.dtype))


def mutant(kernel: AttentionKernel, change: tuple[str, str]) -> AttentionKernel:
    """The kernel with one text of its module or of the templates replaced."""
    # Without the other kernels of attention, which say some things alike.
    used = [path for path in TEMPLATES.glob("*.py") if not path.stem.startswith(OTHERS)]
    (module,) = mutated([kernel.path.read_text()], change, kernel.path.parent, used)
    return replace(kernel, module=module)


def mutated(
    modules: list[str], change: tuple[str, str], folder: Path, used: list[Path]
) -> list[ModuleType]:
    """Generated modules with one text of one of them, or of the templates ``used``, replaced."""
    old, new = change
    sources = {path.stem: path.read_text() for path in used}
    assert sum(old in text for text in (*modules, *sources.values())) == 1, "no single such text"
    name = f"mutant_{abs(hash(change))}"
    package = f"overlapc.codegen.{name}"
    spec = importlib.util.spec_from_loader(package, loader=None, is_package=True)
    assert spec is not None
    root = importlib.util.module_from_spec(spec)
    folder = folder / "mutants" / name
    folder.mkdir(parents=True, exist_ok=True)
    root.__path__ = [str(folder)]
    for stem, text in sources.items():
        text = text.replace(old, new).replace("overlapc.codegen.templates", package)
        (folder / f"{stem}.py").write_text(text)
    sys.modules[package] = root
    found = []
    for index, text in enumerate(modules):
        path = folder.with_name(f"{name}_{index}.py")
        path.write_text(text.replace(old, new).replace("overlapc.codegen.templates", package))
        found.append(load(path))
    return found


def errors_by_phi(
    text: str, distances: list[float], *, is_decode: bool, spread: float = 1.0, keys: int = 1024
) -> list[tuple[float, int]]:
    """Of φ at each distance below the rows' maxima: the error beside that of online softmax, both
    root mean squares against float64, and how many of 32 rows were redone."""
    spec = AttentionSpec.parse(text)
    given = operands(spec, Case(1, heads=32, rows=1, keys=keys, spread=spread))
    wanted, _ = oracle.attention(spec, **given)
    q, k = given["q"].double(), given["k"].double()
    highest = (spec.scale * q @ k.transpose(-1, -2)).amax((0, 2, 3)).float()

    def error_of(policy: str, phi: torch.Tensor | None) -> tuple[float, int]:
        own = replace(spec, softmax=policy)
        out = torch.full(wanted.shape, torch.nan, dtype=given["q"].dtype)
        redone = torch.zeros(1, dtype=torch.int32)
        if is_decode:
            kernel = build_decode(own, Cache(), AttentionTile(16, 256, 4, 1))
            splits = {"splits": 2, "workspace": kernel.workspace(given["q"], 2)}
            kernel(**given, **splits, out=out, phi=phi, redone=redone)
        else:
            kernel = build_attention(own, AttentionTile(16, 256, 4, 1))
            kernel(**given, out=out, phi=phi, redone=redone)
        return (out.double() - wanted).square().mean().sqrt().item(), int(redone.item())

    least, _ = error_of("online", None)
    found = [error_of("head", highest - distance) for distance in distances]
    return [(error / least, redone) for error, redone in found]


def dealt_out(blocks: int, units: int, together: int) -> list[tuple[int, int]]:
    """(turn, unit) of every CTA of a launch, in the order in which they begin."""
    found = torch.full((blocks * units, 2), -1, dtype=torch.int32)
    _deal[(blocks * units,)](found, blocks, units, together)
    return [(turn, unit) for turn, unit in found.tolist()]


@triton.jit
def _deal(found, blocks, units, together):
    turn, unit = dealt(  # pyright: ignore[reportGeneralTypeIssues]
        tl.program_id(0), blocks, units, together
    )
    tl.store(found + 2 * tl.program_id(0), turn)
    tl.store(found + 2 * tl.program_id(0) + 1, unit)
