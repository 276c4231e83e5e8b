"""Whether two terms of a sum may be sent as one, and what the one is scaled by then."""

from __future__ import annotations

from math import isfinite

import torch
from torch import fx

from overlapc.graphs.collectives import Collective, Refusal
from overlapc.graphs.equality import are_alike
from overlapc.graphs.memory import mutated_between
from overlapc.graphs.sums.distributing import move_alike
from overlapc.graphs.sums.reading import Number, Term, Way, is_addition
from overlapc.graphs.values import value_of

NARROW_RANGE = (torch.float16,)
"""Dtypes with so small a range that what is scaled before it is sent may leave it."""

WIDEST_SCALE = 2.0**20
"""Between what terms are scaled by. Chosen: float32 and bfloat16 have room for more."""


def why_not_one(early: Term, late: Term) -> Refusal | None:
    """Return why two terms of one sum cannot be one collective; None if they can."""
    for term in (early, late):
        if term.way.refusal is not None:
            return Refusal(term.collective.start, *term.way.refusal)
    one, two = early.collective, late.collective
    for name in ("name", "group", "reduce"):
        if getattr(one, name) != getattr(two, name):
            what = {"name": "they are other collectives", "group": "they are of other groups"}
            text = what.get(name, "one is a sum and the other an average")
            return Refusal(two.start, f"other_{name}", text)
    if why := (
        _other_source(one, two)
        or _other_way(early.way, late.way)
        or _left_over(early.way.add, early)
    ):
        return Refusal(two.start, *why)
    if scale_between(early, late) is None:
        text = f"they are scaled by {early.way.factor:g} and {late.way.factor:g}, {SCALED}"
        return Refusal(two.start, "other_scale", text)
    return mutated_between(one.start, two.start)


SCALED = "and what is scaled before it is sent would not be exact or leave its dtype's range"


def _other_source(one: Collective, two: Collective) -> tuple[str, str] | None:
    left, right = value_of(one.source), value_of(two.source)
    if (left.dtype, left.device) != (right.dtype, right.device):
        return "other_dtype", "they send other dtypes, or from other devices"
    # Of other shapes than these another rank may pad its part.
    if not are_alike(one.source, two.source) and (
        one.name != "all_reduce" or sum(not isinstance(size, int) for size in right.shape) > 1
    ):
        return "other_shape", "they send other shapes"
    return None


def _left_over(add: fx.Node, term: Term) -> tuple[str, str] | None:
    """Why what is added to a term cannot take the place of their sum."""
    (other,) = (node for node in add.all_input_nodes if node is not term.read)
    readers = [user for user in add.users if is_addition(user)]
    is_spread = len(readers) == len(add.users) and all(
        are_alike(node, user)
        for user in readers
        for node in user.all_input_nodes
        if node is not add
    )
    if are_alike(other, add) or is_spread:
        return None
    return "broadcast", "what is added to the first of them is broadcast, and their sum read so"


def _other_way(early: Way, late: Way) -> tuple[str, str] | None:
    ways = [[move.how for move in way.moves if move.is_product] for way in (early, late)]
    if ways[0] != ways[1]:
        return "other_scale", "they are scaled by other tensors, or only one of them by one"
    if len(early.moves) != len(late.moves) or not all(map(move_alike, early.moves, late.moves)):
        return "other_part", "other parts of their results are added up, or in another order"
    if early.casts != late.casts:
        return "cast", "they are rounded to other dtypes before"
    return None


def scale_between(early: Term, late: Term) -> Number | None:
    """Return what the early one's source is scaled by beside the late one's; None if by nothing
    that is exact but for rounding."""
    one, other = early.way.factor, late.way.factor
    if not (isfinite(one) and isfinite(other)):
        return None
    if one == other and one:
        return 1
    if one == -other and one:
        return -1
    dtype = value_of(late.collective.source).dtype
    if not dtype.is_floating_point:
        is_whole = isinstance(one, int) and isinstance(other, int) and other and not one % other
        return one // other if is_whole else None  # pyright: ignore[reportOperatorIssue]
    scale = one / other if other else 0.0
    if dtype in NARROW_RANGE or not 1 / WIDEST_SCALE <= abs(scale) <= WIDEST_SCALE:
        return None
    return scale
