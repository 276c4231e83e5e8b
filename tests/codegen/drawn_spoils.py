"""Numbers that are none, put into operands of a drawn attention where eager and kernels agree.

Keys and values that masks hide are taken to be finite: only such are spoiled as each row keeps.
"""

from __future__ import annotations

import math
import random

from tests.codegen.drawn_attentions import Drawn
from tests.codegen.drawn_reference import MASKED, wanted_of

ONE_IN = 8
"""Attentions of which one is spoiled."""


def spoil(drawn: Drawn, chance: random.Random) -> None:
    """Perhaps make one number of queries, keys or values NaN or infinite, in place."""
    if chance.randrange(ONE_IN) or not drawn.sizes[2] or not drawn.sizes[3]:
        return
    which = chance.choice("qkv")
    if which == "q":
        q = drawn.q = drawn.q.clone()
        number = chance.choice((math.nan, math.inf, -math.inf))
        q[tuple(chance.randrange(size) for size in q.shape)] = number
        drawn.features += (f"{number} in q",)
        drawn.is_spoiled = True
        return
    kept = (wanted_of(drawn).scores > -MASKED).all(2).unflatten(1, (-1, drawn.spec.groups)).all(2)
    places = kept.nonzero().tolist()
    if not places:
        return
    side = (drawn.k if which == "k" or drawn.cache.shares_values else drawn.v).clone()
    is_narrow = drawn.cache.dtype != ""
    number = math.nan if is_narrow else chance.choice((math.nan, math.inf, -math.inf))
    side[(*chance.choice(places), chance.randrange(side.shape[3]))] = number
    drawn.features += (f"{number} in {which}",)
    drawn.is_spoiled = True
    if drawn.cache.shares_values:
        drawn.k, drawn.v = side, side[..., : drawn.spec.value_dim]
    else:
        setattr(drawn, which, side)
