"""Weights that are made zeros behind their softmax: of keys that are hidden before it, which they
are already where a row keeps any, and of rows that are NaN because they keep none.

Either way a row that keeps no key gives zeros then, and not what its fill alone would give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx

from overlapc.graphs.attention.masks.combined import Mask
from overlapc.graphs.attention.masks.finite import is_finite
from overlapc.graphs.attention.reading.constants import UNMADE, number
from overlapc.graphs.attention.reading.negations import without_negation
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import CASTS, expression, is_same
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.asking import asks_for_no_key
from overlapc.graphs.attention.scores.functions import Function
from overlapc.graphs.attention.scores.softmaxes import Softmax
from overlapc.graphs.attention.scores.steps import Bias, Fill, Step
from overlapc.graphs.attention.scores.upward import Scores
from overlapc.graphs.attention.scores.walk import Walk, beside
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.edges import is_random
from overlapc.planning.attention.fills import WEAKEST_FILL

DEEPEST = 12
"""Calls by which two conditions are compared: chosen."""


@dataclass(frozen=True)
class Zeroing:
    """Weights that become zeros."""

    node: fx.Node
    """Who makes them so."""
    condition: fx.Node | None
    """Where, a tensor that ``node`` reads; None: where they are NaN."""
    is_kept: bool
    """They stay where the condition is true."""
    nodes: tuple[fx.Node, ...]
    is_product: bool = False
    """By a product with zeros, which leaves NaN."""


@dataclass(frozen=True)
class Zeroed:
    """Masks that say of weights what they are behind all that makes some of them zeros."""

    masks: tuple[Bias | Fill, ...]
    are_nans_zeros: bool
    """Rows that minus infinity leaves no key give zeros, and no NaN."""

    def told(self, mask: Mask) -> Mask:
        """Return what ``masks`` say, of rows without a key as well."""
        is_zero = self.are_nans_zeros and mask.dead == "nan"
        return replace(mask, dead="zero") if is_zero else mask


def read_zeroing(
    versions: Versions, softmax: Softmax, weights: fx.Node, readers: Sequence[fx.Node]
) -> Zeroing | None:
    """Read what ``readers``, all that read weights ``[..., rows, keys]`` of a softmax, do to them;
    None where it is anything else."""
    calls = [versions.calls.get(reader) for reader in readers]
    if len(calls) == 2 and all(calls):
        return _of_nan(versions, weights, [call for call in calls if call is not None])
    call = calls[0] if len(calls) == 1 else None
    if call is None:
        return None
    node = call.node
    if call.name == "nan_to_num" and call.get("nan", call.get("0")) in (None, 0):
        return Zeroing(node, None, False, (node,))
    if call.name == "mul":
        sides = call.get("input"), call.get("other")
        for one, other in (sides, sides[::-1]):
            is_own = isinstance(one, fx.Node) and versions.read(node, one) is weights
            if is_own and _is_boolean(versions, node, other):
                return Zeroing(node, other, True, (node,), is_product=True)
        return None
    filled = _filled(versions, call)
    if filled is None or versions.read(node, filled[0]) is not weights:
        return None
    _, condition, is_kept = filled
    value, own = tensor_of(node), tensor_of(weights)
    if value is None or own is None or value.dtype != own.dtype:
        return None
    if asking := asks_for_no_key(versions, softmax, node, condition, is_kept):
        return Zeroing(node, None, False, (*asking, node))
    return Zeroing(node, condition, is_kept, (node,))


def _filled(versions: Versions, call: Call) -> tuple[fx.Node, fx.Node, bool] | None:
    """What a call puts zeros into, by which condition, and whether it stays where that is true."""
    if call.name == "masked_fill":
        whole, condition, fill, is_kept = (*map(call.get, ("input", "mask", "value")), False)
    elif call.name == "where":
        condition, (one, other) = call.get("condition"), (call.get("input"), call.get("other"))
        is_kept = _are_zeros(versions, call, other)
        whole, fill = (one, other) if is_kept else (other, one)
    else:
        return None
    if not isinstance(whole, fx.Node) or not isinstance(condition, fx.Node):
        return None
    return (whole, condition, is_kept) if _are_zeros(versions, call, fill) else None


def _are_zeros(versions: Versions, reader: Call, fill: object) -> bool:
    """Whether what a call reads is zero, or was made of zeros."""
    call = versions.calls.get(fill) if isinstance(fill, fx.Node) else None
    if call is None or call.name not in ("zeros_like", "full_like"):
        return number(versions, fill) == 0
    is_unwritten = versions.read(reader.node, call.node) is call.node
    return is_unwritten and (call.name == "zeros_like" or call.get("fill_value") == 0)


def _of_nan(versions: Versions, weights: fx.Node, calls: list[Call]) -> Zeroing | None:
    """``w.masked_fill(w.isnan(), 0)`` in either spelling."""
    calls.sort(key=lambda call: versions.index[call.node])
    asking, call = calls
    filled = _filled(versions, call)
    is_alone = list(dict.fromkeys(versions.readers[asking.node])) == [call.node]
    if asking.name != "isnan" or filled is None or filled[2] or not is_alone:
        return None
    whole, condition, _ = filled
    seen = versions.read(call.node, condition), versions.read(call.node, whole)
    if seen != (asking.node, weights):
        return None
    return Zeroing(call.node, None, False, (asking.node, call.node))


def _is_boolean(versions: Versions, reader: fx.Node, source: object) -> bool:
    """Whether a tensor holds ones and zeros, as booleans or in another dtype."""
    value = tensor_of(source)
    if not isinstance(source, fx.Node) or value is None:
        return False
    node = versions.read(reader, source)
    if value.dtype == torch.bool:
        return node is not None
    call = versions.calls.get(node) if node is not None else None
    if node is None or call is None or call.in_place or call.name not in CASTS:
        return False
    return _is_boolean(versions, node, call.get("input"))


def with_zeros(versions: Versions, scores: Scores, zeroings: Sequence[Zeroing]) -> Zeroed | Refusal:
    """Return the masks of scores with minus infinity where weights are made zeros as well.

    A refusal where these are not the weights of just the keys that the masks hide.
    """
    masks, are_nans_zeros = list(scores.masks), False
    for zeroing in zeroings:
        name = versions.calls[zeroing.node].name
        if scores.sinks is not None:
            return _changed(zeroing, f"{name} makes weights zeros beside a sink.")
        if zeroing.condition is None:
            if not all(_is_finite(versions, step) for step in scores.program):
                reason = f"{name} makes rows zeros that are NaN, and those of a function of scores "
                reason += "may be: of tanh or products it is read, masked after that."
                return _changed(zeroing, reason)
            are_nans_zeros = True
            continue
        at = [i for i, mask in enumerate(masks) if _is_of(versions, scores, mask, zeroing)]
        others = [mask for i, mask in enumerate(masks) if i not in at]
        hide_none = all(is_finite(versions, one, -WEAKEST_FILL) for one in others)
        if len(at) == 1 and not scores.program and not hide_none:
            reason = f"{name} makes weights zeros where a mask hides, and another may hide what is "
            reason += "left: of products, or constants above -1e9, it is read."
            return _changed(zeroing, reason)
        if len(at) != 1 or scores.program:
            reason = f"{name} makes weights zeros of other keys than one mask hides before."
            return _changed(zeroing, reason)
        fill = masks[at[0]]
        assert isinstance(fill, Fill)
        if not (zeroing.is_product and fill.value == -math.inf):
            are_nans_zeros = True
        masks[at[0]] = replace(fill, value=-math.inf)
    return Zeroed(tuple(masks), are_nans_zeros)


def _is_finite(versions: Versions, step: Step) -> bool:
    """Whether a step before a function leaves scores finite that are, so that no row is NaN."""
    if isinstance(step, Function):
        return step.is_total
    if isinstance(step, Fill):
        return math.isfinite(step.value)
    return is_finite(versions, step, math.inf)


def _changed(zeroing: Zeroing, reason: str) -> Refusal:
    return Refusal(zeroing.node, "weights_changed", reason)


def _is_of(versions: Versions, scores: Scores, mask: Bias | Fill, zeroing: Zeroing) -> bool:
    """Whether a mask hides just where weights are made zeros."""
    if not isinstance(mask, Fill) or mask.value > WEAKEST_FILL or not scores.places.is_usual:
        return False
    assert zeroing.condition is not None
    found = expression(versions, zeroing.node, zeroing.condition)
    value, own = tensor_of(zeroing.node), tensor_of(scores.nodes[-1])
    if found is None or value is None or own is None:
        return False
    is_as_large = is_same(tuple(value.shape), tuple(own.shape))
    reads = [mask.condition.read, found.read]
    if not is_as_large or any(len(read) != 1 for read in reads):
        return False
    beside_weights = beside(Walk(versions, scores.frame, places=scores.places), found, value)
    if mask.condition.has_symbols or beside_weights.has_symbols:
        return False
    if mask.condition.calls != beside_weights.calls:  # it broadcasts otherwise
        return False
    (one, kept), (other, is_kept) = (
        without_negation(versions, *read[0], keeps)
        for read, keeps in zip(reads, (mask.is_kept, zeroing.is_kept), strict=True)
    )
    return one is not None and kept == is_kept and _is_alike(versions, one, other, DEEPEST)


def _is_alike(versions: Versions, one: object, other: object, deep: int) -> bool:
    """Whether two nodes are one, or the same calls of the same tensors and numbers."""
    if one is other or not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return one is other or (type(one) is type(other) and one == other)
    a, b = versions.calls.get(one), versions.calls.get(other)
    if a is None or b is None or not deep or a.in_place or b.in_place:
        return False
    if a.name != b.name or a.given.keys() != b.given.keys() or "::" in a.name:
        return False
    if is_random(one) or is_random(other) or a.name.startswith(UNMADE):
        return False
    return all(
        _is_alike_read(versions, (one, a.given[key]), (other, b.given[key]), deep - 1)
        for key in a.given
    )


def _is_alike_read(
    versions: Versions, a: tuple[fx.Node, object], b: tuple[fx.Node, object], deep: int
) -> bool:
    one, other = (versions.read(at, x) if isinstance(x, fx.Node) else x for at, x in (a, b))
    return one is not None and _is_alike(versions, one, other, deep)
