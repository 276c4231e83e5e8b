"""What the masks of a softmax say together, and how torch's attention is told the same.

Eager gives a row whose every key is masked the mean of all values where the mask is finite, and NaN
where it is minus infinity. Torch's attention gives such a row zeros, unless its mask is finite.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from overlapc.graphs.attention.masks.bands import Band, band_of
from overlapc.graphs.attention.masks.finite import is_finite
from overlapc.graphs.attention.masks.made import (
    PASSED,
    is_sum_infinite,
    least_of,
    only_leaves_out,
)
from overlapc.graphs.attention.masks.own_keys import keeps_own_keys
from overlapc.graphs.attention.products.above import is_of_products
from overlapc.graphs.attention.reading.boxes import MADE
from overlapc.graphs.attention.reading.constants import constant, spelling_of
from overlapc.graphs.attention.reading.negations import NEGATIONS
from overlapc.graphs.attention.reading.remembering import recalled
from overlapc.graphs.attention.reading.tensors import (
    PERMUTATIONS,
    Expression,
)
from overlapc.graphs.attention.reading.varying import has_varying
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias, Fill
from overlapc.graphs.collectives import Refusal
from overlapc.planning.attention.fills import FINITE_FILL, WEAKEST_FILL
from overlapc.planning.attention.library_calls import FAINT

HALF_MIN = torch.finfo(torch.float16).min


@dataclass(frozen=True)
class Mask:
    """The masks of one attention, in the order in which they are applied."""

    parts: tuple[Bias | Fill, ...]
    says: str
    """"nothing"; "causal": row i keeps the keys up to i; "given": what its parts say."""
    dead: str
    """What eager gives a row that keeps no key: "nan", or the "mean" of all values, or "zero" where
    torch's attention is called; empty: there is no such row."""
    is_trained: bool
    """A gradient is wanted of it."""
    untold: Refusal | None = None
    """Why torch's attention cannot be told it; a kernel of our own can."""
    only_leaves_out: bool = True
    """It changes no score of a key that a row keeps."""
    may_be_even: bool = False
    """A row that keeps no key may be one of a finite mask, whatever others have; that is not
    expected of a tensor of which nothing is known."""
    comes: str = ""
    """Of one that says "given": it is "given" to the graph, "made" in it, or "constant"."""
    band: Band | None = None
    """What all of it says, where that is a band of keys: a kernel of our own skips the others."""


def read_mask(
    versions: Versions,
    parts: tuple[Bias | Fill, ...],
    dtype: torch.dtype,
    rows: object,
    keys: object,
    *,
    may_be_even: bool = False,
) -> Mask | Refusal:
    """Tell what the masks of a softmax over ``[..., rows, keys]`` scores of ``dtype`` say.

    ``may_be_even``: others before them hide keys by finite numbers. A row that those leave no key
    has what is hidden here by less: no key of it may be left out.
    """
    untold = None
    for index, part in enumerate(parts):
        refusal = _why_not(part, dtype)
        if refusal:
            return refusal
        untold = untold or _why_untold(part, dtype, is_last=index + 1 == len(parts))
    is_trained = torch.is_grad_enabled() and any(
        isinstance(part, Bias) and part.tensor.value.requires_grad for part in parts
    )
    told = recalled(
        _spelling(versions, parts, dtype, rows, keys),
        lambda: _told(_constant(versions, parts, dtype), rows, keys),
    )
    if told is None or told.may_be_lost:
        for part in parts:
            if half := why_half(versions, part):
                return half
    if told is None:
        dead, is_even = _of_hiding(versions, parts, dtype, rows, keys)
        leaves_out = all(only_leaves_out(versions, part) for part in parts)
        comes = "given" if all(_is_input(versions, part) for part in parts) else "made"
        return Mask(parts, "given", dead, is_trained, untold, leaves_out, is_even, comes)
    if told.is_nothing and untold is None:
        return Mask((), "nothing", "", False)
    if told.is_causal and untold is None and not may_be_even:
        return Mask((), "causal", "", False)
    is_even = told.may_be_even or (told.may_be_lost and dtype == torch.float16)
    dead = told.dead or ("mean" if told.is_faint and torch.is_grad_enabled() else "")
    band = told.band if untold is None and not dead and not may_be_even else None
    return Mask(
        parts, "given", dead, is_trained, untold, told.only_leaves_out, is_even,
        "constant", band,
    )  # fmt: skip


def _is_input(versions: Versions, part: Bias | Fill) -> bool:
    """Whether a mask is an input of the graph, perhaps in another view or dtype, or negated."""
    node = part.tensor.node if isinstance(part, Bias) else part.condition.node
    while (call := versions.calls.get(node)) is not None:
        if call.name not in (*PASSED, *PERMUTATIONS, *NEGATIONS):
            return False
        node = call.get("input")
    return isinstance(node, fx.Node) and node.op in ("placeholder", "get_attr")


@dataclass(frozen=True)
class Told:
    """Of masks that depend on no input, what ``Mask`` says of them."""

    is_nothing: bool
    is_causal: bool
    dead: str
    is_faint: bool
    """A row has no number above ``FAINT``: its gradients are those of one that keeps no key."""
    only_leaves_out: bool
    may_be_even: bool
    may_be_lost: bool
    """A row has no number in which float16 does not lose a score."""
    band: Band | None


def _told(said: torch.Tensor | None, rows: object, keys: object) -> Told | None:
    if said is None:
        return None
    is_off = said <= WEAKEST_FILL
    dead, is_even = _of_known(said)
    leaves_out = not said.masked_fill(is_off, 0.0).any()
    is_causal = leaves_out and _is_causal(is_off, rows, keys)
    has_band = leaves_out and not dead and not is_causal
    return Told(
        is_nothing=not said.any(),
        is_causal=is_causal,
        dead=dead,
        is_faint=bool((said <= FAINT).all(-1).any()),
        only_leaves_out=leaves_out,
        may_be_even=is_even,
        may_be_lost=bool((said <= HALF_MIN).all(-1).any()),
        band=band_of(is_off, rows, keys) if has_band else None,
    )


def _spelling(
    versions: Versions, parts: tuple[Bias | Fill, ...], dtype: torch.dtype, rows: Any, keys: Any
) -> Hashable | None:
    """What is equal for masks that say the same; None where they depend on inputs, or may."""
    every: list[Hashable] = [
        dtype,
        *(size if isinstance(size, int) else "" for size in (rows, keys)),
    ]
    for part in parts:
        source = part.tensor if isinstance(part, Bias) else part.condition
        writer = source.writer(versions)
        own = None if writer is None else spelling_of(versions, writer)
        if own is None or has_varying([args for _, args in source.calls]):
            return None
        is_kept = isinstance(part, Fill) and part.is_kept
        number = part.factor if isinstance(part, Bias) else part.value
        every.append((type(part), number, is_kept, own, repr(source.calls)))
    return "mask", *every


def _of_hiding(
    versions: Versions, parts: tuple[Bias | Fill, ...], dtype: torch.dtype, rows: Any, keys: Any
) -> tuple[str, bool]:
    """As of ``_of_known``, of masks that are not all constants: by those that may hide keys."""
    hiding = tuple(part for part in parts if not is_finite(versions, part, -FAINT))
    known = _constant(versions, hiding, dtype) if len(hiding) < len(parts) else None
    if known is not None:
        return _of_known(known)
    if keeps_own_keys(versions, hiding, rows, keys):
        return "", False
    least = [least_of(versions, part) for part in hiding]
    is_infinite = -math.inf in least or is_sum_infinite(hiding, least, dtype)
    is_even = any(value > -math.inf for value in least)
    return "nan" if is_infinite else "mean", is_even


def _of_known(said: torch.Tensor) -> tuple[str, bool]:
    """What masks are that add ``said`` to scores: ``dead`` and ``may_be_even`` of a ``Mask``."""
    is_empty = (said <= WEAKEST_FILL).all(-1)
    dead = "nan" if (said == -math.inf).all(-1).any() else "mean" if is_empty.any() else ""
    return dead, bool((is_empty & said.isfinite().any(-1)).any())


def _why_not(part: Bias | Fill, dtype: torch.dtype) -> Refusal | None:
    if isinstance(part, Bias):
        own = part.tensor.value.dtype
        if not own.is_floating_point or (own == torch.float64 and dtype != own):
            reason = f"A mask of {own} is added to scores of {dtype}."
            return Refusal(part.tensor.node, "mask_dtype", reason)
        if not math.isfinite(part.factor):
            return Refusal(part.tensor.node, "weak_fill", "A mask is scaled by no finite number.")
        return None
    node = part.condition.node
    if part.condition.value.dtype != torch.bool:
        return Refusal(node, "mask_dtype", "A condition is no tensor of booleans.")
    if math.isfinite(part.value) or part.value == -math.inf:
        return None
    return Refusal(node, "weak_fill", f"Scores are filled with {part.value:g}, which is no score.")


def why_half(versions: Versions, part: Bias | Fill) -> Refusal | None:
    """Return that a row of a mask alone would give other numbers than eager's."""
    if not isinstance(part, Bias) or not _is_half(versions, part.tensor):
        return None
    reason = (
        "Scores are lost in a mask of float16, and are not in torch's attention: it is taken in "
    )
    reason += "bfloat16, or where a condition fills scores with minus infinity."
    return Refusal(part.tensor.node, "half_mask", reason)


def _is_half(versions: Versions, added: Expression) -> bool:
    """Whether a tensor is a mask of float16. A product that is added is none, but more of the
    scores: eager has rounded both, and a kernel is nearer to what they are."""
    if added.value.dtype != torch.float16:
        return False
    node = added.writer(versions)
    return node is None or not is_of_products(versions, node)


def _why_untold(part: Bias | Fill, dtype: torch.dtype, is_last: bool) -> Refusal | None:
    if isinstance(part, Bias):
        return None
    is_lost = part.value <= FINITE_FILL or (part.value <= WEAKEST_FILL and is_last)
    if part.value == -math.inf or (is_lost and dtype != torch.float16):
        return None
    reason = f"A fill of {part.value:g} may be a score like others, which no mask can say: "
    reason += "minus infinity is none"
    if dtype == torch.float16:
        reason += ", and in bfloat16 its least number is none"
    reason += "."
    return Refusal(part.condition.node, "weak_fill", reason)


def _constant(
    versions: Versions, parts: tuple[Bias | Fill, ...], dtype: torch.dtype
) -> torch.Tensor | None:
    """What the masks add to a score of zero, where inputs do not matter to it."""
    wide = torch.promote_types(dtype, torch.float32)  # what the sum is made in
    said = torch.zeros((), dtype=wide)
    for part in parts:
        source = part.tensor if isinstance(part, Bias) else part.condition
        value = _content(versions, source)
        if value is None:
            return None
        for function, args in source.calls:
            value = function(value, *args)
        if isinstance(part, Bias):
            said = said + value.to(wide) * part.factor
        else:
            kept = value if part.is_kept else ~value
            said = torch.where(kept, said, torch.tensor(part.value, dtype=wide))
    return said


def _content(versions: Versions, source: Expression) -> torch.Tensor | None:
    """What a mask's node holds, where it is a constant, or the mask has nothing of it."""
    if has_varying([args for _, args in source.calls]):
        return None
    if source.calls and source.calls[0][0] is MADE:
        return torch.empty(())
    writer = source.writer(versions)
    return None if writer is None else constant(versions, writer)


def _is_causal(is_off: torch.Tensor, rows: object, keys: object) -> bool:
    """Whether a mask that only leaves keys out leaves row i those up to i."""
    if not isinstance(rows, int) or rows != keys or is_off.ndim < 2:
        return False
    if tuple(is_off.shape[-2:]) != (rows, keys) or rows == 1:
        return False
    later = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    return bool((is_off == later).all())
