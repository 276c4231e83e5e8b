"""Products of two tensors whose spelling says for each dimension what becomes of it, with a letter
for each: einsum, linear, inner, tensordot, and a sum of what is multiplied element by element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_letters

import torch
from torch import fx

from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import (
    CASTS,
    Expression,
    expression,
    insertion,
    is_same,
)
from overlapc.graphs.attention.reading.versions import Versions

MOST_FACTORS = 4
"""By which products of elements are multiplied before they are summed: chosen."""
LABELLED = ("einsum", "linear", "inner", "tensordot", "sum")


@dataclass(frozen=True)
class Side:
    """An operand."""

    node: fx.Node
    """As the graph spells it, without dimensions of one that the product's spelling adds."""
    tensor: Expression
    labels: str
    """One letter a dimension."""


@dataclass(frozen=True)
class Contraction:
    """What two tensors give, summed over all labels that are not in ``out``."""

    one: Side
    other: Side
    out: str
    inner: tuple[fx.Node, ...] = ()
    """Calls before the last that it is spelled by, with nothing but its elements."""
    added: fx.Node | None = None


def contraction(versions: Versions, call: Call) -> Contraction | None:
    """Read a call of one of ``LABELLED``; None where it is no product of two tensors."""
    if call.name == "einsum":
        return _of_einsum(versions, call)
    if call.name == "sum":
        return _of_sum(versions, call)
    one, other = call.get("input"), call.get("weight" if call.name == "linear" else "other")
    a, b = tensor_of(one), tensor_of(other)
    if a is None or b is None or min(a.ndim, b.ndim) < 1:
        return None
    names = ascii_letters[: a.ndim + b.ndim]
    left, right = names[: a.ndim], names[a.ndim :]
    summed = _summed(call, a.ndim, b.ndim)
    if summed is None:
        return None
    for i, j in zip(*summed, strict=True):
        right = right.replace(right[j], left[i])
    out = "".join(label for label in left + right if not (label in left and label in right))
    bias = call.get("bias")
    if bias is not None and not isinstance(bias, fx.Node):
        return None
    return _found(versions, call, [(one, left), (other, right)], out, added=bias)


def _summed(call: Call, a: int, b: int) -> tuple[list[int], list[int]] | None:
    """Dimensions of both that are summed over, in pairs."""
    if call.name in ("linear", "inner"):
        return [a - 1], [b - 1]
    dims = call.get("dims", 2)
    if isinstance(dims, int):
        return list(range(a - dims, a)), list(range(dims))
    if not isinstance(dims, list | tuple) or len(dims) != 2:
        return None
    one, other = ([part] if isinstance(part, int) else list(part) for part in dims)
    if len(one) != len(other) or not all(isinstance(dim, int) for dim in (*one, *other)):
        return None
    return [dim % a for dim in one], [dim % b for dim in other]


def _found(
    versions: Versions,
    call: Call,
    sides: Sequence[tuple[object, str]],
    out: str,
    inner: tuple[fx.Node, ...] = (),
    added: fx.Node | None = None,
) -> Contraction | None:
    read = []
    for node, labels in sides:
        found = expression(versions, call.node, node, as_memory=True)
        if not isinstance(node, fx.Node) or found is None or len(found.shape) != len(labels):
            return None
        read.append(Side(node, found, labels))
    return Contraction(read[0], read[1], out, inner, added) if len(read) == 2 else None


def _of_einsum(versions: Versions, call: Call) -> Contraction | None:
    operands = [value for key, value in call.given.items() if key != "equation"]
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = list(operands[0])
    values = [tensor_of(node) for node in operands]
    if len(values) != 2 or any(value is None for value in values):
        return None
    dims = [value.ndim for value in values if value is not None]
    labels = _labels(call.get("equation"), dims)
    if labels is None:
        return None
    one, other, out = labels
    return _found(versions, call, [(operands[0], one), (operands[1], other)], out)


def _labels(equation: object, dims: list[int]) -> tuple[str, str, str] | None:
    """The labels of both operands and of the result, one letter a dimension."""
    if not isinstance(equation, str) or equation.count("->") > 1:
        return None
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    sides = inputs.split(",")
    if len(sides) != 2:
        return None
    if not arrow:
        out = _usual_result(inputs)
    spare = [letter for letter in ascii_letters if letter not in equation]
    hidden = [n - len(side.replace("...", "")) for side, n in zip(sides, dims, strict=True)]
    width = max(hidden)
    if width > len(spare) or any(n not in (0, width) for n in hidden):
        return None
    names = "".join(spare[:width])
    one, other, out = (text.replace("...", names) for text in (*sides, out))
    if any(len(set(text)) != len(text) for text in (one, other, out)):
        return None
    if len(one) != dims[0] or len(other) != dims[1]:
        return None
    return one, other, out


def _usual_result(inputs: str) -> str:
    """What an equation without a result gives: labels that stand once, in the alphabet's order."""
    letters = inputs.replace("...", "").replace(",", "")
    once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
    return ("..." if "..." in inputs else "") + "".join(once)


def _of_sum(versions: Versions, call: Call) -> Contraction | None:
    """``(a * b).sum(dim)`` of tensors that broadcast to each other."""
    times = multiplied(versions, call)
    value = tensor_of(times.node) if times is not None else None
    dim = call.get("dim")
    if isinstance(dim, list | tuple) and len(dim) == 1:
        dim = dim[0]
    is_plain = not call.get("keepdim") and call.get("dtype") is None and call.get("out") is None
    if times is None or value is None or not isinstance(dim, int) or not is_plain:
        return None
    if value.ndim > len(ascii_letters):
        return None
    names = ascii_letters[: value.ndim]
    sides = [_without_ones(versions, times, times.get(name), value) for name in ("input", "other")]
    out = names.replace(names[dim % value.ndim], "")
    read = [side for side in sides if side is not None]
    return Contraction(read[0], read[1], out, (times.node,)) if len(read) == 2 else None


def multiplied(versions: Versions, call: Call) -> Call | None:
    """Return the call of what a sum is taken of, where that multiplies two tensors that broadcast
    to each other."""
    times = _read_by(versions, call)
    if call.name != "sum" or times is None or times.in_place:
        return None
    return times if _broadcasts(times) else None


def sums_products(versions: Versions, call: Call) -> bool:
    """Return whether a sum is of products of elements, whatever else they are multiplied by."""
    times = _read_by(versions, call) if call.name == "sum" else None
    for _ in range(MOST_FACTORS):
        if times is None or times.name not in ("mul", "div", "neg", *CASTS):
            return False
        if _broadcasts(times):
            return True
        times = _read_by(versions, times)
    return False


def _read_by(versions: Versions, call: Call) -> Call | None:
    source = call.get("input")
    seen = versions.read(call.node, source) if isinstance(source, fx.Node) else None
    return versions.calls.get(seen) if seen is not None else None


def _broadcasts(times: Call) -> bool:
    """Whether a call multiplies two tensors of which one is smaller than their product, and no
    vector."""
    value = tensor_of(times.node)
    sides = [tensor_of(times.get(name)) for name in ("input", "other")]
    if times.name != "mul" or value is None or any(x is None or x.ndim < 2 for x in sides):
        return False
    return any(not is_same((x.numel(),), (value.numel(),)) for x in sides if x is not None)


def _without_ones(
    versions: Versions, times: Call, node: object, whole: torch.Tensor
) -> Side | None:
    """A factor without the dimensions by which it broadcasts to a product of elements."""
    if not isinstance(node, fx.Node):
        return None
    found = expression(versions, times.node, node, as_memory=True)
    if found is None:
        return None
    own, added = node, _added(versions, times.node, node)
    kept = list(range(whole.ndim - len(found.shape), whole.ndim))
    if added:
        own = versions.calls[node].get("input")
        found = expression(versions, node, own, as_memory=True)
        kept = [dim for at, dim in enumerate(kept) if at not in added]
    if found is None or len(kept) != len(found.shape):
        return None
    sizes = zip(kept, found.shape, strict=True)
    ones = [at for at, (dim, size) in enumerate(sizes) if not is_same((size,), (whole.shape[dim],))]
    if any(not is_same((found.shape[at],), (1,)) for at in ones):
        return None
    labels = "".join(ascii_letters[dim] for at, dim in enumerate(kept) if at not in ones)
    return Side(own, found.then(torch.squeeze, tuple(ones)) if ones else found, labels)


def _added(versions: Versions, reader: fx.Node, node: fx.Node) -> tuple[int, ...]:
    """Positions of dimensions of one that the call of ``node`` adds; none where it does more."""
    index, value = insertion(versions, node), tensor_of(node)
    if index is None or value is None or versions.read(reader, node) is not node:
        return ()
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    before, after = index[:at], index[at + 1 :]
    found = [position for position, part in enumerate(before) if part is None]
    behind = range(value.ndim - len(after), value.ndim)
    return (*found, *(dim for dim, part in zip(behind, after, strict=True) if part is None))
