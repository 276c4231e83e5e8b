"""One backward of a generated attention in the interpreter, against autograd of eager in float64.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from overlapc.codegen.attention.backward import AttentionBackward, build_backward
from overlapc.codegen.attention.backward_module import backward_text
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.builder import TEMPLATES, cache_dir
from overlapc.codegen.interpreting import correct_interpreter
from tests.codegen import attention_oracle as oracle
from tests.codegen import decode_cases
from tests.codegen.attention_cases import (
    Case,
    difference,
    loads_of,
    looking_through_masks,
    mutated,
    operands,
    poisoned,
)
from tests.codegen.hidden_masks import HidingMask
from tests.codegen.shuffled_grid import shuffled_grid

correct_interpreter()

ROUNDING = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
"""Of the largest gradient: roundings of weights, of gradients of scores and of the result. Chosen.
"""
SIDES = ("q", "k", "v")
FEW = ("one", "scalar")


def run(
    text: str,
    *,
    sums: bool = False,
    shared: tuple[int, ...] = (),
    hiding: Mapping[str, Any] | None = None,
    far: float = 0.0,
    one_loop: bool = False,
    sink: float | None = None,
    mutate: tuple[str, str] | None = None,
    **named: Any,
) -> float:
    """Raise AssertionError unless the gradients are those of float64; the largest error.

    ``sums``: logarithms of sums have a gradient as well; ``shared``: dimensions in which the first
    input has one element for all, of two or more. ``hiding`` are fields of a ``HidingMask``, the
    scores' only one; keys and values of tiles of which it hides all are NaN then, but where rows
    are NaN. Scores are ``far`` from zero, and every sink is ``sink``. ``one_loop`` is of the tile.
    ``mutate`` is a text of a template or of a module and what to put in its place. The rest are
    fields of ``Case``.
    """
    spec, case = AttentionSpec.parse(text), Case(**named)
    spread = max(case.spread, far)
    mask = mask_of(spec, case, hiding)
    spec = replace(spec, program=mask.program) if mask else spec
    given, left = prepare(spec, case, shared, sums=sums, mask=mask, far=far, sink=sink)
    wanted = by_autograd(spec, given, left["slopes"], left["lse_gradient"])
    if mask and not left["lse"].isneginf().any():
        given = poisoned(given, mask, spec, case)
    floats = [index for index, item in enumerate(spec.inputs) if item.dtype != "bool"]
    backward = made(spec, case.tile, floats, mutate, one_loop=one_loop)
    with looking_through_masks():
        results, of_inputs, around = gradients(backward, given, left)
    errors = {name: error_of(results[name], wanted[name], spec.dtype, spread) for name in results}
    for index in floats:
        found, own = of_inputs[index], spec.inputs[index].dtype
        assert found is not None
        rougher = max(own, spec.dtype, key=ROUNDING.__getitem__)
        error = error_of(found, wanted[str(index)], rougher, spread)
        # Sums over all scores are of some that cancel.
        errors[f"input {index}"] = error / (4 if spec.inputs[index].shape in FEW else 1)
    assert max(errors.values()) <= 1.0, f"errors in units of what is allowed: {errors}"
    for name, result in results.items():
        beside = around[name].isnan().sum() - result.isnan().sum()
        assert beside == around[name].numel() - result.numel(), "a store beside it"
    return max(errors.values())


def beside_eager(
    text: str, *, few_rows: bool = False, mutate: tuple[str, str] | None = None, **named: Any
) -> None:
    """Raise AssertionError if an error of the result, of gradients or of what all values together
    have as one (as of a bias of theirs) is twice what eager's is in the same dtype, or more.

    The forward is the kernel of ``few_rows``, or of many. ``mutate`` is of the one of few, or of
    the backward.
    """
    spec, case = AttentionSpec.parse(text), Case(**named)
    given, left = prepare(spec, case, ())
    if few_rows:
        changes = [mutate] if mutate else []
        left["out"], left["lse"] = forward_of_few_rows(spec, given, changes)
        mutate = None
    backward = made(spec, case.tile, range(len(spec.inputs)), mutate)
    found, _, _ = gradients(backward, given, left)
    slopes, dtype = left["slopes"], given["q"].dtype
    found |= {"out": left["out"]}
    exact, eager = ({**by_autograd(spec, given, slopes, None, dtype=own),
                     "out": oracle.attention(spec, **given, dtype=own)[0]}
                    for own in (torch.float64, dtype))  # fmt: skip
    for values in (found, exact, eager):
        values["all values"] = values["v"].double().sum(2)
    ratios = {name: difference(found[name], exact[name]) / difference(eager[name], exact[name])
              for name in found}  # fmt: skip
    assert max(ratios.values()) < 2.0, f"wrong values: errors in units of eager's: {ratios}"


def bits(
    text: str,
    *,
    orders: int = 2,
    shared: tuple[int, ...] = (),
    hiding: Mapping[str, Any] | None = None,
    **named: Any,
) -> None:
    """Raise AssertionError unless every order of programs gives the same bits."""
    spec, case = AttentionSpec.parse(text), Case(**named)
    mask = mask_of(spec, case, hiding)
    spec = replace(spec, program=mask.program) if mask else spec
    given, left = prepare(spec, case, shared, mask=mask)
    floats = [index for index, item in enumerate(spec.inputs) if item.dtype != "bool"]
    backward = made(spec, case.tile, floats)

    def all_of() -> list[torch.Tensor]:
        with looking_through_masks():
            results, of_inputs, _ = gradients(backward, given, left)
        return [*results.values(), *(found for found in of_inputs if found is not None)]

    first = all_of()
    for order in range(orders):
        with shuffled_grid(random.Random(order)):
            again = all_of()
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)), "other bits"


def mask_of(spec: AttentionSpec, case: Case, hiding: Mapping[str, Any] | None) -> HidingMask | None:
    """The mask of fields ``hiding`` over the scores of a case."""
    sizes = (case.batch, case.heads * spec.groups, case.rows, case.keys)
    return HidingMask(sizes, seed=case.seed, **hiding) if hiding else None


def numbers_read(text: str, *, hiding: Mapping[str, Any], **named: Any) -> tuple[int, int]:
    """How many numbers of queries and of keys all launches of one backward load."""
    spec, case = AttentionSpec.parse(text), Case(**named)
    mask = mask_of(spec, case, hiding)
    assert mask is not None
    spec = replace(spec, program=mask.program)
    given, left = prepare(spec, case, (), mask=mask)
    floats = [0] if mask.fill else []
    backward = made(spec, case.tile, floats)
    with looking_through_masks(), loads_of(q=given["q"], k=given["k"]) as counts:
        gradients(backward, given, left)
    return counts["q"], counts["k"]


def prepare(
    spec: AttentionSpec,
    case: Case,
    shared: tuple[int, ...],
    *,
    sums: bool = False,
    mask: HidingMask | None = None,
    far: float = 0.0,
    sink: float | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Operands of the forward, and what the backward takes beside them."""
    given = operands(spec, case)
    if mask:
        given["inputs"] = [mask.tensor]
    if sink is not None:
        given["sinks"].fill_(sink)
    if far:
        given["q"][..., 0], given["k"][..., 0] = far / spec.scale, 1.0
    if not mask and spec.inputs and str(spec.inputs[0]) == "matrix:float32":
        sizes = (case.batch, case.heads * spec.groups, case.rows, case.keys)
        own = [1 if index in shared else size for index, size in enumerate(sizes)]
        given["inputs"][0] = torch.randn(own)
    out, lse = forward(spec, given, case.tile)
    slopes = torch.randn(out.shape).to(out.dtype).transpose(1, 2).contiguous().transpose(1, 2)
    of_sums = torch.randn(lse.shape) if sums else None
    return given, {"out": out, "lse": lse, "slopes": slopes, "lse_gradient": of_sums}


def gradients(
    backward: AttentionBackward, given: dict[str, Any], left: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor | None], dict[str, torch.Tensor]]:
    """Those of q, k and v, of inputs, and all that the first lie in: poisoned before."""
    results, around = {}, {}
    of_sinks = torch.full_like(given["sinks"], torch.nan) if "sinks" in given else None
    for name in SIDES:
        results[name], around[name] = inside_of(given[name])
    of_inputs = [
        torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else None
        for tensor in given["inputs"]
    ]
    backward(
        *(given[name] for name in SIDES), **left, inputs=given["inputs"],
        lengths=given.get("lengths"), sinks=given.get("sinks"), input_gradients=of_inputs,
        sinks_gradient=of_sinks, **{f"{name}_gradient": result for name, result in results.items()},
    )  # fmt: skip
    if of_sinks is not None:
        results["sinks"] = around["sinks"] = of_sinks
    return results, of_inputs, around


def forward(
    spec: AttentionSpec, given: dict[str, Any], tile: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result and the logarithms of sums by the generated kernel, poisoned before."""
    out, lse = poisoned_results(spec, given)
    redone = torch.zeros(1, dtype=torch.int32)
    build_attention(spec, AttentionTile(*tile, 4, 1))(**given, out=out, lse=lse, redone=redone)
    return out, lse


def forward_of_few_rows(
    spec: AttentionSpec, given: dict[str, Any], changes: Sequence[tuple[str, str]] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by the kernel that decodes, of two parts; ``changes`` are as of ``mutant``."""
    out, lse = poisoned_results(spec, given)
    kernel = build_decode(spec, Cache(), AttentionTile(16, 16, 4, 1))
    if changes:
        kernel = decode_cases.mutant(kernel, changes)
    kernel(**given, out=out, lse=lse, redone=torch.zeros(1, dtype=torch.int32), splits=2,
           workspace=kernel.workspace(given["q"], 2))  # fmt: skip
    return out, lse


def poisoned_results(
    spec: AttentionSpec, given: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a forward writes its result and the logarithms of sums."""
    batch, every, rows, _ = given["q"].shape
    out = torch.full((batch, rows, every, spec.value_dim), torch.nan, dtype=given["q"].dtype)
    logarithms = getattr(torch, spec.sums_dtype)
    return out.transpose(1, 2), torch.full((batch, every, rows), torch.nan, dtype=logarithms)


def by_autograd(
    spec: AttentionSpec,
    given: dict[str, Any],
    slopes: torch.Tensor,
    of_sums: torch.Tensor | None,
    dtype: torch.dtype = torch.float64,
) -> dict[str, torch.Tensor]:
    """Gradients of eager in ``dtype``."""
    leaves = {
        name: given[name].detach().to(dtype).requires_grad_()
        for name in (*SIDES, "sinks")
        if name in given
    }
    inputs = [oracle._wide(tensor) for tensor in given["inputs"]]
    for index, tensor in enumerate(inputs):
        if tensor.is_floating_point():
            leaves[str(index)] = tensor.detach().clone().requires_grad_()
            inputs[index] = leaves[str(index)]
    sides = {name: leaf for name, leaf in leaves.items() if name in given}
    out, lse = oracle.attention(spec, **{**given, **sides, "inputs": inputs}, dtype=dtype)
    loss = (out * slopes.to(dtype)).sum()
    if of_sums is not None:
        loss = loss + (lse * of_sums.double()).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def inside_of(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A poisoned tensor of the same shape with gaps between rows, and all that it lies in."""
    batch, heads, rows, dim = tensor.shape
    around = torch.full((batch, rows + 2, heads, dim + 3), torch.nan, dtype=tensor.dtype)
    return around.transpose(1, 2)[:, :, 1:-1, 1:-2], around


def error_of(found: torch.Tensor, wanted: torch.Tensor, dtype: str, spread: float = 1.0) -> float:
    """In units of what is allowed, which goes by the largest gradient and by the scores."""
    size = wanted.nan_to_num(0.0, 0.0, 0.0).abs().max().item() if wanted.numel() else 0.0
    allowed = ROUNDING[dtype] * (1 + size) * max(1.0, spread)
    if found.numel() == 1:  # a sum over all scores, most of which cancels
        allowed *= 2
    return difference(found, wanted) / allowed if found.numel() else 0.0


def made(
    spec: AttentionSpec,
    tile: tuple[int, int],
    of_inputs: Sequence[int],
    mutate: tuple[str, str] | None = None,
    *,
    one_loop: bool = False,
) -> AttentionBackward:
    own = AttentionTile(*tile, 4, 1, one_loop=one_loop)
    built = build_backward(spec, lambda spec, part: own, of_inputs)
    if mutate is None:
        return built
    texts = [backward_text(spec, part, own) for part in built.modules]
    used = [path for path in TEMPLATES.glob("*.py") if path.stem not in ("attention", "decode")]
    modules = mutated(texts, mutate, cache_dir() / "kernels", used)
    return replace(built, modules=dict(zip(built.modules, modules, strict=True)))
