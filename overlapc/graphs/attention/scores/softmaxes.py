"""Softmax in every spelling: by its name, by exponentials over their sum, by a log-sum-exp.

A number added to the sum (``exp(x) / (1 + exp(x).sum())``, "softmax off by one") is the exponential
of a sink.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import fx

from overlapc.graphs.attention.products.above import between as calls_between
from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import Call, is_full_index, tensor_of
from overlapc.graphs.attention.reading.tensors import ORDERED, is_dim, is_kept
from overlapc.graphs.attention.reading.varying import is_varying
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.reading.written import read_rows

EXPONENTIALS = ("exp", "exp2")
PRODUCTS = ("matmul", "bmm")
"""Whose result has the rows of its first operand where that has them."""


@dataclass(frozen=True)
class Softmax:
    """Weights that one softmax gives."""

    node: fx.Node
    """What gives the weights, or with ``product`` their product with values."""
    reader: fx.Node
    """Who reads the scores."""
    scores: fx.Node
    """As they are spelled there."""
    dim: int
    """It is over, counted from the end: -1, the last dimension; 0: more than one, or it overwrites
    scores."""
    nodes: tuple[fx.Node, ...]
    """The calls that it is spelled by."""
    is_by_exp: bool = False
    """Exponentials of the scores as they stand are divided by their sum: those of a finite mask are
    zero, and a row of such is NaN."""
    factor: float = 1.0
    """Of the scores: its exponentials are of another base."""
    sink: float | None = None
    """A number beside the scores, times ``factor``: its exponential is added to their sum."""
    is_nan_where_dead: bool = False
    """Both are less a maximum of scores that is infinite where no key is kept."""
    product: fx.Node | None = None
    """Of the exponentials and values, where that is divided by their sums in place of them."""
    is_less_logarithm: bool = False
    """Scores less the logarithm of their sum are exponents: that is lost in a finite mask, and a
    row of such has weights of one."""


def read_powers(versions: Versions) -> None:
    """Let powers of a constant that is a tensor, or of a number that is an input, be exponentials,
    as those of a number are."""
    for node, call in list(versions.calls.items()):
        exponent = call.get("exponent") if call.name == "pow" and not call.in_place else None
        value, own = tensor_of(exponent), call.get("input")
        is_base = tensor_of(own) is not None or is_varying(own)
        if value is None or not is_base or value.ndim < 2:
            continue
        base = number(versions, own)
        if base is not None and 0 < base != 1:
            given = {**call.given, "input": exponent, "base": base}
            versions.calls[node] = replace(call, name="exp", given=given)


def read_softmax(versions: Versions, call: Call) -> Softmax | None:
    """Read the softmax whose weights a call gives; None where it gives none."""
    if call.name in ("softmax", "softmin"):
        scores = call.get("input")
        if not isinstance(scores, fx.Node):
            return None
        dim = 0 if call.in_place else _dim(call.node, call.get("dim"))
        factor = -1.0 if call.name == "softmin" else 1.0
        return Softmax(call.node, call.node, scores, dim, (call.node,), factor=factor)
    if call.name in ("div", "mul"):
        return _divided(versions, call)
    if call.name == "exp" and (found := _by_logarithm(versions, call)) is not None:
        return found if _logarithm(call) == 1 else None
    return None


def _divided(versions: Versions, call: Call) -> Softmax | None:
    """``exp(x) / exp(x).sum(-1, keepdim=True)``, or ``exp(x) @ v`` divided by that."""
    divided, by = _quotient(versions, call)
    if by is None:
        return None
    top = _call(versions, call.node, divided)
    exp, product = top, None
    if top is not None and top.name in PRODUCTS and not top.in_place:
        exp, product = _call(versions, top.node, top.get("input")), top.node
    added, total, between = _sum_and_more(versions, *by)
    if exp is None or exp.name not in EXPONENTIALS or total is None:
        return None
    again = _call(versions, total.node, total.get("input"))
    if again is None or again.name not in EXPONENTIALS or not _is_same_exp(versions, exp, again):
        return None
    scores, dim = exp.get("input"), _dim(again.node, total.get("dim"))
    if not isinstance(scores, fx.Node) or not _keeps(by[1], call.node, dim):
        return None
    if product is not None and dim != -1:  # as many columns of values as keys
        return None
    between = tuple(dict.fromkeys((*between, by[0])))
    nodes = tuple(dict.fromkeys((exp.node, again.node, total.node, *between, call.node)))
    found = Softmax(
        call.node, exp.node, scores, dim, nodes, True, _logarithm(exp), product=product
    )  # fmt: skip
    return found if added is None else _with_sink(versions, found, exp, *added)


def _quotient(versions: Versions, call: Call) -> tuple[object, tuple[fx.Node, object] | None]:
    """What a call divides, and by what, beside who reads that."""
    sides = call.get("input"), call.get("other")
    if call.name == "div":
        return sides[0], None if call.get("rounding_mode") else (call.node, sides[1])
    for one, other in (sides, sides[::-1]):
        inverse = _call(versions, call.node, other)
        if inverse is not None and inverse.name == "reciprocal" and not inverse.in_place:
            return one, (inverse.node, inverse.get("input"))
        if inverse is not None and inverse.name == "div" and inverse.get("input") == 1:
            return one, (inverse.node, inverse.get("other"))
        is_power = inverse is not None and inverse.name == "pow" and not inverse.in_place
        if inverse is not None and is_power and inverse.get("exponent") == -1:
            return one, (inverse.node, inverse.get("input"))
    return None, None


def _sum(
    versions: Versions, reader: fx.Node, source: object
) -> tuple[Call | None, tuple[fx.Node, ...]]:
    """The sum that is divided by, and the views by which it keeps its dimension."""
    found, between = _call(versions, reader, source), []
    while found is not None and not found.in_place and found.name in ORDERED:
        if found.name == "getitem" and not is_full_index(found.get("index")):
            return None, ()
        if not _is_of_dtype(found.node, found.get("input")):  # a view of the same bits
            return None, ()
        between.append(found.node)
        found = _call(versions, found.node, found.get("input"))
    if found is None or found.name != "sum" or found.in_place or found.get("dtype") is not None:
        return None, ()
    return found, tuple(between)


def _is_of_dtype(node: fx.Node, source: object) -> bool:
    value, own = tensor_of(node), tensor_of(source)
    return value is not None and own is not None and value.dtype == own.dtype


def _sum_and_more(
    versions: Versions, reader: fx.Node, source: object
) -> tuple[tuple[fx.Node, object] | None, Call | None, tuple[fx.Node, ...]]:
    """What is added to the sum that is divided by, beside who reads it, and as of ``_sum``."""
    total, between = _sum(versions, reader, source)
    call = _call(versions, reader, source)
    if total is not None or call is None or call.name != "add" or call.get("alpha", 1) != 1:
        return None, total, between
    pair = call.get("input"), call.get("other")
    for one, other in (pair, pair[::-1]):
        total, between = _sum(versions, call.node, one)
        if total is not None:
            return (call.node, other), total, (*between, call.node)
    return None, None, ()


def _with_sink(
    versions: Versions, found: Softmax, exp: Call, reader: fx.Node, added: object
) -> Softmax | None:
    """Return a softmax to whose sum ``added`` is added: a positive number, or what one is once all
    exponents are less the same; None where it is neither."""
    value = number(versions, added)
    if value is not None:
        return replace(found, sink=math.log(value)) if value > 0 else None
    other = _call(versions, reader, added)
    less, scores = _call(versions, exp.node, exp.get("input")), None
    if other is None or other.name not in EXPONENTIALS or _logarithm(other) != _logarithm(exp):
        return None
    if less is not None and less.name == "sub":
        scores = less.get("input")
    is_less = less is not None and less.get("alpha", 1) == 1
    if less is None or not is_less or not isinstance(scores, fx.Node):
        return None
    shift = less.get("other")
    minuend = _less(versions, other, shift, less.node)
    if minuend is None or not _keeps(shift, scores, found.dim):
        return None
    seen, last = versions.read(less.node, scores), versions.read(less.node, shift)
    if seen is None or last is None:
        return None
    ends = (_call(versions, other.node, other.get("input")), other, less)
    nodes = (*calls_between(versions, seen, last), *(one.node for one in ends if one is not None))
    is_bounded = (call := versions.calls.get(last)) is not None and call.get("min") is not None
    return replace(
        found, scores=scores, reader=less.node, sink=minuend * found.factor,
        is_nan_where_dead=not is_bounded, nodes=tuple(dict.fromkeys((*found.nodes, *nodes))),
    )  # fmt: skip


def _less(versions: Versions, exp: Call, shift: object, reader: fx.Node) -> float | None:
    """The number of which an exponent is what is left less ``shift``, as ``reader`` sees that."""
    call = _call(versions, exp.node, exp.get("input"))
    if call is None or call.in_place or not isinstance(shift, fx.Node):
        return None
    if call.name == "neg":
        value, taken = 0.0, call.get("input")
    elif call.name == "sub" and call.get("alpha", 1) == 1:
        value, taken = number(versions, call.get("input")), call.get("other")
    else:
        return None
    return value if _is_same_read(versions, (call.node, taken), (reader, shift)) else None


def _logarithm(exp: Call) -> float:
    """The natural logarithm of what exponentials are powers of."""
    return math.log(2 if exp.name == "exp2" else exp.get("base", math.e))


def _is_same_exp(versions: Versions, one: Call, other: Call) -> bool:
    if one.node is other.node:
        return True
    if _logarithm(one) != _logarithm(other):
        return False
    return _is_same_read(versions, *((call.node, call.get("input")) for call in (one, other)))


def _is_same_read(versions: Versions, *reads: tuple[fx.Node, object]) -> bool:
    """Whether two who read a tensor, each beside what it reads, see what one node wrote."""
    seen = [read_rows(versions, at, x) if isinstance(x, fx.Node) else None for at, x in reads]
    return seen[0] is not None and seen[0] is seen[1]


def _by_logarithm(versions: Versions, call: Call) -> Softmax | None:
    """``exp(x - logsumexp(x))``, or ``exp`` of ``log_softmax``."""
    inner = _call(versions, call.node, call.get("input"))
    if inner is None or inner.in_place:
        return None
    scores = inner.get("input")
    if not isinstance(scores, fx.Node):
        return None
    nodes = (inner.node, call.node)
    if inner.name == "log_softmax":
        dim = _dim(inner.node, inner.get("dim"))
        return Softmax(call.node, inner.node, scores, dim, nodes)
    if inner.name != "sub" or inner.get("alpha", 1) != 1:
        return None
    total = _call(versions, inner.node, inner.get("other"))
    if total is not None and total.name == "log" and not total.in_place:
        return _by_logarithm_of_sum(versions, call, inner, total)
    if total is None or total.name != "logsumexp":
        return None
    source = total.get("input")
    dim = _dim(source, total.get("dim"))
    is_own = _is_same_read(versions, (total.node, source), (inner.node, scores))
    if not is_own or not _keeps(inner.get("other"), scores, dim):
        return None
    return Softmax(call.node, inner.node, scores, dim, (total.node, *nodes), is_less_logarithm=True)


def _by_logarithm_of_sum(versions: Versions, call: Call, inner: Call, log: Call) -> Softmax | None:
    """``exp(x - log(exp(x).sum(-1, keepdim=True)))``"""
    scores = inner.get("input")
    total, between = _sum(versions, log.node, log.get("input"))
    exp = _call(versions, total.node, total.get("input")) if total is not None else None
    if total is None or exp is None or exp.name not in EXPONENTIALS or exp.in_place:
        return None
    source = exp.get("input")
    if not isinstance(source, fx.Node) or _logarithm(exp) != 1:
        return None
    is_own = _is_same_read(versions, (exp.node, source), (inner.node, scores))
    dim = _dim(exp.node, total.get("dim"))
    if not is_own or not _keeps(inner.get("other"), scores, dim):
        return None
    nodes = (exp.node, total.node, *between, log.node, inner.node, call.node)
    return Softmax(call.node, inner.node, scores, dim, nodes, is_by_exp=True)


def _call(versions: Versions, reader: fx.Node, source: object) -> Call | None:
    seen = versions.read(reader, source) if isinstance(source, fx.Node) else None
    return versions.calls.get(seen) if seen is not None else None


def _dim(node: object, dim: object) -> int:
    """As of ``Softmax.dim``, what ``dim`` says of a node's tensor."""
    value = tensor_of(node)
    dims = range(-1, -value.ndim - 1, -1) if value is not None else ()
    return next((own for own in dims if value is not None and is_dim(value, dim, own)), 0)


def _keeps(reduced: object, whole: object, dim: int) -> bool:
    """Whether a tensor is as one that was reduced over ``dim``, which it keeps."""
    value, own = tensor_of(reduced), tensor_of(whole)
    return dim != 0 and value is not None and own is not None and is_kept(value, own, dim)
