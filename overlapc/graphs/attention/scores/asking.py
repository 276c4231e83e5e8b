"""Which rows keep a key, asked of the scores themselves: as torch's decompositions of its attention
do, where rows that keep none give zeros."""

from __future__ import annotations

import math

from torch import fx

from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.negations import without_negation
from overlapc.graphs.attention.reading.spelling import tensor_of
from overlapc.graphs.attention.reading.tensors import is_dim, is_kept, is_same
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.softmaxes import Softmax


def asks_for_no_key(
    versions: Versions, softmax: Softmax, reader: fx.Node, condition: fx.Node, is_kept_where: bool
) -> tuple[fx.Node, ...]:
    """Return the calls by which ``condition``, as ``reader`` reads it, tells the rows whose scores
    are all minus infinity from others, ``[..., rows, 1]``; none where it says anything else.

    ``(s == -inf).all(-1, keepdim=True)`` in every negation, of the very scores that the softmax
    reads. With ``is_kept_where`` it is to be true of the others.
    """
    asked, others = without_negation(versions, reader, condition, is_kept_where)
    call = versions.calls.get(asked) if asked is not None else None
    if call is None or call.in_place or call.name not in ("any", "all"):
        return ()
    source, whole, own = call.get("input"), tensor_of(call.get("input")), tensor_of(call.node)
    if not isinstance(source, fx.Node) or whole is None or own is None or softmax.dim != -1:
        return ()
    if not is_dim(whole, call.get("dim"), -1) or not is_kept(own, whole, -1):
        return ()
    result = tensor_of(reader)
    if result is None or not is_same(tuple(result.shape), tuple(whole.shape)):
        return ()
    compared, is_hidden = without_negation(versions, call.node, source, True)
    # That all are hidden is that none is not.
    if (is_hidden, others) != ((True, False) if call.name == "all" else (False, True)):
        return ()
    equals = versions.calls.get(compared) if compared is not None else None
    if equals is None or equals.in_place or equals.name != "eq":
        return ()
    scores, other = equals.get("input"), equals.get("other", equals.get("0"))
    read = versions.read(softmax.reader, softmax.scores)
    if not isinstance(scores, fx.Node) or number(versions, other) != -math.inf or read is None:
        return ()
    if versions.read(equals.node, scores) is not read:
        return ()
    return _between(versions, reader, condition, equals.node)


def _between(
    versions: Versions, reader: fx.Node, condition: fx.Node, first: fx.Node
) -> tuple[fx.Node, ...]:
    """The calls from the first down to what ``reader`` reads, in their order."""
    nodes, node = [], versions.read(reader, condition)
    while node is not None and node is not first:
        nodes.append(node)
        node = versions.read(node, versions.calls[node].get("input"))
    return (first, *reversed(nodes))
