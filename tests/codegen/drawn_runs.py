"""One drawn attention in the interpreter: laid out, launched, and everything about it checked.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch

from overlapc.codegen.attention import decode
from overlapc.codegen.attention.decode import Workspace, build_decode
from overlapc.codegen.attention.descriptors import fits_tma
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.interpreting import correct_interpreter
from tests.codegen import attention_cases, decode_cases
from tests.codegen.attention_cases import looking_through_masks
from tests.codegen.drawn_attentions import DECODE, Drawn, draw
from tests.codegen.drawn_memory import GUARD, Watch, laid_out
from tests.codegen.drawn_precision import rounding_to_tf32
from tests.codegen.drawn_reference import Wanted, phi_of, step_of, wanted_of
from tests.codegen.drawn_spoils import spoil
from tests.codegen.shuffled_grid import shuffled_grid

correct_interpreter()

REDONE_BEFORE = 5
NOTHING = torch.zeros(0)
NOT_WORSE = 1.5
"""The error, against that of online softmax in the same kernel."""


@dataclass
class Memory:
    """Operands as they lie, but for the result."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    named: dict[str, Any]


@dataclass
class Result:
    out: torch.Tensor
    lse: torch.Tensor
    """Empty where none was asked for."""
    redone: int


def run(kind: str, seeds: Sequence[int], mutate: tuple[str, str] | None = None) -> dict[str, int]:
    """``check_each`` of the forward kernels of ``kind``."""
    return check_each(check, kind, seeds, mutate)


def check_each(
    check: Callable[[Drawn, tuple[str, str] | None], int], kind: str, seeds: Sequence[int],
    mutate: tuple[str, str] | None,
) -> dict[str, int]:  # fmt: skip
    """Raise AssertionError unless kernels of ``kind`` are right on the attentions of these seeds;
    how many of them had each feature, and rows that were redone, which ``check`` counts.

    ``mutate`` is a text of a template or of a module, and what to put in its place.
    """
    counts: Counter[str] = Counter()
    for seed in seeds:
        drawn = draw(kind, seed)
        try:
            counts["redone"] += check(drawn, mutate) > 0
        except AssertionError as error:
            raise AssertionError(f"{error}\n{drawn.text}") from None
        counts.update(drawn.features)
    return dict(counts)


def check(drawn: Drawn, mutate: tuple[str, str] | None = None) -> int:
    """Raise AssertionError unless the kernel of ``drawn`` gives what it must; rows redone."""
    chance = random.Random(drawn.seed)
    spoil(drawn, chance)
    wanted = wanted_of(drawn)
    memory = in_memory(drawn, chance)
    if drawn.tile.by_tma and not (fits_tma(memory.k) and fits_tma(memory.v)):
        drawn.tile = replace(drawn.tile, by_tma=False)
    own = drawn.spec.softmax
    if not drawn.has_lse:
        wanted = replace(wanted, lse=NOTHING, allowed_lse=NOTHING)
    found = launch(drawn, memory, chance, math.nan, own, mutate)
    again = launch(drawn, memory, chance, 7.0, own, mutate)
    online = launch(drawn, memory, chance, math.nan, "online", mutate)
    assert same_bits(found.out, again.out), "another order of programs gives other bits"
    assert same_bits(found.lse, again.lse), "another order gives other bits of lse"
    assert found.redone == again.redone, "another order redoes other rows"
    compare(online, wanted, "online: ")
    compare(found, wanted, "")
    assert wanted.least_redone <= found.redone <= wanted.most_redone, (
        f"{found.redone} rows were redone, not {wanted.least_redone} to {wanted.most_redone}"
    )
    assert online.redone == 0, "online softmax has redone rows"
    step = step_of(drawn.spec)
    phi = phi_of(drawn)
    far = 1.0
    if phi is not None:
        finite = wanted.lse[wanted.lse.abs() < 1e30]
        far += 2 * phi.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
        far += finite.abs().max().item() if finite.numel() else 0.0
    for what, one, other, right in (
        ("result", found.out, online.out, wanted.out), ("lse", found.lse, online.lse, wanted.lse),
    ):  # fmt: skip
        error, least = _rms(one, right), _rms(other, right)
        # Online softmax has a row's greatest weight as one; else it is a factor and a divisor.
        size = far if what == "lse" else 2 * _rms(wanted.size, torch.zeros_like(right))
        slack = step * size
        assert not error > NOT_WORSE * least + slack + 1e-30, (
            f"{what}: error {error:.3g}, of online softmax {least:.3g}"
        )
    return found.redone


def compare(found: Result, wanted: Wanted, what: str) -> None:
    """Raise AssertionError unless values are within what roundings allow, and infinite or NaN
    where eager's are."""
    for name, one, right, allowed in (
        ("result", found.out, wanted.out, wanted.allowed),
        ("lse", found.lse, wanted.lse, wanted.allowed_lse),
    ):
        one = one.double()
        differs = (one.isfinite() != right.isfinite()).sum().item()
        assert not differs, f"{what}{name}: {differs} elements are finite, or eager's are, not both"
        same = (one == right) | (one.isnan() & right.isnan()) | right.isfinite()
        # Of infinite values a weight may make either; of an infinite score eager's are NaN.
        same |= (right == math.inf) | (name == "result")
        assert same.all(), f"{what}{name}: NaN is not where it has to be"
        error = ((one - right).abs() / allowed).nan_to_num(0.0, 0.0, 0.0)
        worst = error.max().item() if error.numel() else 0.0
        assert worst <= 1, f"{what}{name} is off by {worst:.3g} of what is allowed"


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))


def _rms(found: torch.Tensor, right: torch.Tensor) -> float:
    error = (found.double() - right)[right.isfinite() & (right.abs() < 1e30)]
    return error.square().mean().sqrt().item() if error.numel() else 0.0


def in_memory(drawn: Drawn, chance: random.Random) -> Memory:
    """Operands with strides of their own, and NaN wherever nothing may be read."""
    aligned = drawn.tile.by_tma
    q = laid_out(drawn.q, chance, math.nan)
    k, v, table = _cache(drawn, chance) if drawn.kind == DECODE else (
        *(laid_out(side, chance, math.nan, is_aligned=aligned) for side in _cut(drawn)), None
    )  # fmt: skip
    named: dict[str, Any] = {
        "inputs": [laid_out(tensor, chance, math.nan) for tensor in drawn.inputs],
        "lengths": drawn.lengths if drawn.lengths is None else laid_out(drawn.lengths, chance, 0),
        "sinks": drawn.sinks,
    }
    if drawn.kind == DECODE:
        scales = drawn.scales or (None, None)
        named |= {"table": table, "k_scale": scales[0], "v_scale": scales[1]}
    return Memory(q, k, v, named)


def _cut(drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values, NaN from the end of each sequence on."""
    k, v = drawn.k, drawn.v
    if drawn.lengths is not None:
        k, v = k.clone(), v.clone()
        for own, length in enumerate(drawn.lengths.tolist()):
            k[own, :, length:] = v[own, :, length:] = math.nan
    return k, v


def _cache(
    drawn: Drawn, chance: random.Random
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Keys and values as a decode kernel takes them, and a table of pages."""
    k, v = _cut(drawn)
    spec, cache, table = drawn.spec, drawn.cache, None
    if cache.shares_values and drawn.is_apart:
        k = k[..., spec.value_dim :]
    elif cache.shares_values:
        v = k
    if cache.page:
        table, k, v = _paged(drawn, chance, k, v)
    k = laid_out(k, chance, math.nan)
    if cache.shares_values and not drawn.is_apart:
        return k, k[..., : spec.value_dim], table
    return k, laid_out(v, chance, math.nan), table


def _paged(
    drawn: Drawn, chance: random.Random, k: torch.Tensor, v: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pages in any order among others of NaN, and a table that beyond a sequence names none."""
    page, (batch, _, rows, keys) = drawn.cache.page, drawn.sizes
    each = keys // page
    order = list(range(2 * batch * each))
    chance.shuffle(order)
    table = torch.tensor(order[: batch * each], dtype=torch.int32).view(batch, each)
    sides = []
    for side in (k, v):
        paged = torch.full((2 * batch * each, side.shape[1], page, side.shape[3]), math.nan)
        paged = paged.to(side.dtype)
        for own in range(batch):
            for index in range(each):
                paged[int(table[own, index])] = side[own, :, index * page : (index + 1) * page]
        sides.append(paged)
    for own in range(batch if drawn.lengths is not None else 0):
        assert drawn.lengths is not None
        length = int(drawn.lengths[own])
        table[own, -(-length // page) :] = 2**30
        if order and drawn.spec.before is not None and drawn.spec.align == "bottom_right":
            oldest = max(length - rows - drawn.spec.before, 0)
            table[own, : oldest // page] = order[-1]
    return table, sides[0], sides[1]


def launch(
    drawn: Drawn, memory: Memory, chance: random.Random, poison: float, softmax: str,
    mutate: tuple[str, str] | None = None,
) -> Result:  # fmt: skip
    """Call the kernel on poisoned results, its programs in a random order, under watch."""
    spec = replace(drawn.spec, softmax=softmax, bound=drawn.spec.bound * (softmax == "bound"))
    batch, every, rows, _ = drawn.sizes
    shape = (batch, every, rows, spec.value_dim)
    out = laid_out(torch.full(shape, poison, dtype=drawn.q.dtype), chance, math.nan)
    # In the dtype that ops ask for: from one rounded to float32 weights are not made again.
    sums = getattr(torch, spec.sums_dtype)
    logs = torch.full((batch * every * rows + 2 * GUARD,), poison, dtype=sums)
    lse = logs[GUARD:-GUARD].view(batch, every, rows)
    redone = torch.full((1,), REDONE_BEFORE, dtype=torch.int64)
    named = {**memory.named, "lse": lse if drawn.has_lse else None, "redone": redone}
    watch = Watch()
    if spec.takes_phi:
        assert drawn.phi is not None
        named["phi"] = drawn.phi.clone()
        watch.add(named["phi"], is_written=spec.moves_phi)
    for tensor in (memory.q, memory.k, memory.v, *memory.named["inputs"], drawn.lengths,
                   drawn.sinks, memory.named.get("table"), *(drawn.scales or ())):  # fmt: skip
        watch.add(tensor)
    for tensor in (out, lse, redone):
        watch.add(tensor, is_written=True)
    sides = memory.q, memory.k, memory.v, out
    looking = looking_through_masks() if drawn.looks else nullcontext()
    device = patch.object(decode, "sm_of", lambda _: drawn.architecture)
    order = shuffled_grid(random.Random(chance.random()))
    with looking, device, order, watch.watching(), rounding_to_tf32():
        if drawn.kind == DECODE:
            _decode(replace(drawn, spec=spec), sides, named, watch, mutate)
        else:
            kernel = build_attention(spec, _tile(drawn, softmax))
            (attention_cases.mutant(kernel, mutate) if mutate else kernel)(*sides, **named)
    return Result(out, lse if drawn.has_lse else NOTHING, int(redone.item()) - REDONE_BEFORE)


def _tile(drawn: Drawn, softmax: str) -> Any:
    return replace(drawn.tile, ahead=drawn.tile.ahead and softmax != "online")


def _decode(
    drawn: Drawn, sides: tuple[torch.Tensor, ...], named: dict[str, Any], watch: Watch,
    mutate: tuple[str, str] | None,
) -> None:  # fmt: skip
    kernel = build_decode(drawn.spec, drawn.cache, drawn.tile)
    if mutate:
        kernel = decode_cases.mutant(kernel, [mutate])
    made = kernel.workspace(sides[0], drawn.splits)
    around = torch.full((made.partials.numel() + 2 * GUARD,), math.nan)
    partials = around[GUARD : GUARD + made.partials.numel()]
    workspace = Workspace(partials, made.arrived, made.moves)
    watch.add(partials, is_written=True)
    watch.add(made.arrived, is_written=True)
    watch.add(made.moves, is_written=True)
    kernel(*sides, splits=drawn.splits, workspace=workspace, **named)
    assert not made.arrived.any(), "a counter is not back at zero"
    assert made.moves is None or not made.moves.any(), "moves of φ are not back at zero"
