"""The softmax attentions of a graph, spelled out or as one call."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import fx
from torch._C._functorch import is_functorch_wrapped_tensor

from overlapc.graphs.attention.fused import read_fused
from overlapc.graphs.attention.matching import match
from overlapc.graphs.attention.modules import CLOSED, MODULE
from overlapc.graphs.attention.products.above import may_be_scores
from overlapc.graphs.attention.reading.spelling import Call, read_call, tensor_of
from overlapc.graphs.attention.reading.versions import Outer, Versions
from overlapc.graphs.attention.scores.softmaxes import (
    EXPONENTIALS,
    Softmax,
    read_powers,
    read_softmax,
)
from overlapc.graphs.attention.site import Site
from overlapc.graphs.attention.weights import products_below, weighs_values
from overlapc.graphs.collectives import Refusal
from overlapc.graphs.faults import fault_at

log = logging.getLogger(__name__)

ROOTS = (
    "softmax",
    "softmin",
    *EXPONENTIALS,
    "pow",
    "scaled_dot_product_attention",
    MODULE,
    *CLOSED,
)
"""Calls that an attention has exactly one of."""


def has_attention(graph: fx.Graph) -> bool:
    """Return whether a graph has a site; quick where it has no call of ``ROOTS``."""
    try:
        calls = (read_call(node) for node in graph.nodes)
        has_root = any(call is not None and _is_root(call) for call in calls)
        return has_root and next(find_sites(graph), None) is not None
    except Exception:  # the program is compiled without us
        log.exception("a fault of overlapc: attention is not looked for in a graph")
        return False


def _is_root(call: Call) -> bool:
    is_power = call.name == "pow" and isinstance(call.get("exponent"), fx.Node)
    return call.name in ROOTS or is_power


def find_sites(
    graph: fx.Graph, outer: Outer | None = None, assumed: set[fx.Node] | None = None
) -> Iterator[tuple[fx.Node, Site]]:
    """Yield every softmax attention of a graph, by its softmax or its one call.

    Of a body ``outer`` tells what it is given by the graph that calls it. Numbers that are inputs,
    and are read as what they are likely to be, are added to those ``assumed``.
    """
    versions = Versions(graph, outer, assumed)
    read_powers(versions)
    softmaxes: dict[fx.Node, Softmax | Refusal | None] = {}
    for node, call in versions.calls.items():
        try:
            softmaxes[node] = read_softmax(versions, call)
        except Exception as error:  # nothing is changed: the program is compiled without us
            softmaxes[node] = fault_at(node, error)
    found = [one for one in softmaxes.values() if isinstance(one, Softmax)]
    spelled = {node for one in found for node in one.nodes}
    for node, softmax in softmaxes.items():
        try:
            site = _read_site(versions, versions.calls[node], softmax, node in spelled)
        except Exception as error:  # as above
            site = fault_at(node, error)
        if site is not None:
            yield node, site


def _read_site(
    versions: Versions, call: Call, softmax: Softmax | Refusal | None, is_spelled: bool
) -> Site | None:
    """``is_spelled``: the call is a part of a softmax that was read."""
    if isinstance(softmax, Refusal):
        return softmax
    is_root = softmax is not None or call.name == "scaled_dot_product_attention"
    value = tensor_of(call.node)
    if is_root and value is not None and is_functorch_wrapped_tensor(value):
        reason = "It stands in a transform of torch.func (vmap, grad, jvp), which wraps operands: "
        reason += "over a dimension of batches, or with backward(), it would be read."
        return Refusal(call.node, "transformed", reason)
    if softmax is not None and weighs_values(versions, softmax):
        return match(versions, softmax)
    if call.name in EXPONENTIALS and not is_spelled and _weighs(versions, call):
        reason = "Exponentials of scores weigh values, and no quotient with their sums is read."
        return Refusal(call.node, "unread_softmax", reason)
    if call.name == "scaled_dot_product_attention":
        return read_fused(versions, call)
    if call.name == MODULE and call.node.users:
        reason = "nn.MultiheadAttention is one call here, and is read as what it calls."
        return Refusal(call.node, "multi_head_module", reason)
    if call.name in CLOSED:
        reason = f"{call.name} is a kernel of torch's for more than the attention."
        return Refusal(call.node, "multi_head_module", reason)
    return None


def _weighs(versions: Versions, exp: Call) -> bool:
    """Whether exponentials are of scores, and what is made of them weighs values."""
    source = exp.get("input")
    if not isinstance(source, fx.Node):
        return False
    seen = versions.read(exp.node, source) or source  # as it was before it was written to
    if not may_be_scores(versions, seen):
        return False
    own = Softmax(exp.node, exp.node, seen, 0, (exp.node,))
    return weighs_values(versions, own) and not _are_features(versions, exp.node)


def _are_features(versions: Versions, exp: fx.Node) -> bool:
    """Whether products of exponentials meet products of others, as features of queries meet sums
    over features of keys (Performer): none of them are weights of a softmax."""
    own = products_below(versions, exp)
    for other in (node for node, call in versions.calls.items() if call.name in EXPONENTIALS):
        theirs = products_below(versions, other) if other is not exp else set()
        for above, below in ((own, theirs), (theirs, own)):
            if any(
                versions.read(product, side) in above
                for product in below
                for side in product.all_input_nodes
            ):
                return True
    return False
