"""Masks that hide no key, as nearly as numbers go."""

from __future__ import annotations

import torch
from torch import fx

from overlapc.graphs.attention.products.above import is_of_products, scaled
from overlapc.graphs.attention.reading.constants import constant
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import PERMUTATIONS
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias, Fill

HANDING_ON = (*PERMUTATIONS, "cat", "pad", "view", "reshape", "view_as", "reshape_as", "getitem",
              "gather", "flatten", "unflatten", "unsqueeze", "squeeze", "expand", "contiguous",
              "clone", "mul", "div", "add", "sub", "neg", "roll", "narrow",
              "index_select")  # fmt: skip
"""Calls of which finite tensors give finite ones, as nearly as numbers go."""
WITH_NUMBERS = ("mul", "div", "add", "sub", "pad")
"""Those of them whose numbers are numbers of what they give, and no places or sizes."""
WRITING = ("mul", "div", "add", "sub", "neg")
"""Those of them that give the same in place, of what stood there before."""


def is_finite(versions: Versions, mask: Bias | Fill, below: float) -> bool:
    """Return whether a mask is of products, finite constants, and what is made of them.

    It hides nothing then, where constants and the numbers that it is multiplied by on the way are
    also ``below`` one that takes scores away.
    """
    if not isinstance(mask, Bias) or not all(
        versions.read(*read) is read[1] for read in mask.tensor.read
    ):
        return False
    if abs(mask.factor) >= below:
        return False
    waiting, seen = [(mask.tensor.node, below / max(1.0, abs(mask.factor)))], set()
    while waiting:
        node, most = waiting.pop()
        call, value = versions.calls.get(node), tensor_of(node)
        if call is not None and call.name == "setitem":  # it gives no tensor, and writes one
            return False
        if value is None or value.dtype == torch.bool or node in seen:
            continue  # a size, or what hides nothing
        seen.add(node)
        given = call.given.values() if call is not None and call.name in WITH_NUMBERS else ()
        if any(isinstance(one, int | float) and abs(one) >= most for one in given):
            return False
        if is_of_products(versions, node, most):
            continue
        known = constant(versions, node)
        if known is not None:
            if not bool((known.abs() < most).all()):
                return False
        elif call is None or call.name not in _passed(call) or len(seen) > 40:
            return False
        else:
            given_nodes = [s for s in node.all_input_nodes if not _is_index(call, s)]
            sources = [versions.read(node, source) for source in given_nodes]
            if any(source is None for source in sources):
                return False
            most /= max(1.0, abs(scaled(versions, call)[1]))
            waiting.extend((source, most) for source in sources if source is not None)
    return True


def _is_index(call: Call, source: fx.Node) -> bool:
    """Whether whole numbers are places, and none that is added or multiplied."""
    value = tensor_of(source)
    is_whole = value is not None and not value.dtype.is_floating_point
    return is_whole and call.name not in WITH_NUMBERS and call.get("input") is not source


def _passed(call: Call) -> tuple[str, ...]:
    """Names of calls that give finite tensors of finite ones as this one does."""
    return WRITING if call.in_place else HANDING_ON
