"""What is known on the way from a softmax up to a product, and of what stands beside scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import fx

from overlapc.graphs.attention.products.above import leads_to_product, product_above
from overlapc.graphs.attention.products.places import Places
from overlapc.graphs.attention.reading.boxes import MADE, made_where
from overlapc.graphs.attention.reading.spelling import Call, tensor_of
from overlapc.graphs.attention.reading.tensors import Expression, expression, is_same
from overlapc.graphs.attention.reading.varying import is_varying
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.reading.written import read_rows
from overlapc.graphs.attention.scores.functions import Function
from overlapc.graphs.attention.scores.sinks import Sinks
from overlapc.graphs.attention.scores.steps import Fill, Step
from overlapc.graphs.collectives import Refusal
from overlapc.planning.attention.fills import WEAKEST_FILL

HIDDEN = "Scores are written through another view of them."


@dataclass
class Walk:
    """How far one has come: what was done to scores below what is walked to."""

    versions: Versions
    frame: tuple[int | torch.SymInt, ...]
    factor: float = 1.0
    """Of what is walked to, up to the next function."""
    reach: float = math.inf
    """What a number is infinite beyond once it was multiplied by all of that factor."""
    steps: list[Step] = field(default_factory=list)
    """From the softmax on."""
    nodes: list[fx.Node] = field(default_factory=list)
    sinks: Sinks | None = None
    even: float | None = None
    """The one number that all sinks are, in terms of what the softmax reads; None where there are
    none, or they are a tensor."""
    is_column: bool = True
    """Sinks are a column of what the softmax reads."""
    is_first: bool = False
    """It stands before the keys."""
    is_shifted: bool = False
    between: int = 0
    """Steps below the lowest shift that has any."""
    places: Places = field(default_factory=Places)
    """Of rows and keys, in what is walked to."""
    parted: fx.Node | None = None
    """The view below which rows and keys are one dimension each, where what is walked to has them
    in more: in the same order, so that what is beside is regrouped as the view regroups."""

    @property
    def dim(self) -> int:
        """The dimension of keys."""
        return self.places.keys

    @property
    def is_free(self) -> bool:
        """What all scores of a row share changes nothing: softmax comes after, and masks."""
        has_sinks = self.sinks is not None or self.even is not None
        return not has_sinks and not any(
            isinstance(step, Function) or (isinstance(step, Fill) and step.value > WEAKEST_FILL)
            for step in self.steps
        )


def is_scores(walk: Walk, reader: fx.Node, argument: object) -> bool:
    """Return whether an argument is scores of all rows and keys, which a product leads down to."""
    own, result = tensor_of(argument), tensor_of(reader)
    if not isinstance(argument, fx.Node) or own is None or result is None:
        return False
    seen = read_rows(walk.versions, reader, argument)
    is_whole = is_same(tuple(own.shape), tuple(result.shape))
    return seen is not None and is_whole and leads_to_product(walk.versions, seen, walk.dim)


def mask_of(walk: Walk, call: Call, argument: object) -> Expression | None:
    """A tensor added to scores, or that says which of them stay, as it broadcasts to ``frame``."""
    value = tensor_of(call.node)
    if not isinstance(argument, fx.Node) or value is None:
        return None
    if is_varying(argument):
        found = _number(walk.versions, call, argument)
    else:
        found = expression(walk.versions, call.node, argument)
    if found is None:
        return None
    joined = tensor_of(walk.parted)
    if joined is not None:
        found = found.then(torch.broadcast_to, tuple(value.shape))
        found, value = found.then(torch.reshape, tuple(joined.shape)), joined
    return beside(walk, found, value)


def _number(versions: Versions, call: Call, argument: fx.Node) -> Expression | None:
    """A Python number that varies from call to call, as a tensor where scores are."""
    for source in call.node.all_input_nodes:
        product = (
            product_above(versions, call.node, source) if tensor_of(source) is not None else None
        )
        own = made_where(versions, product) if product is not None else None
        if own is not None:
            dtype = torch.promote_types(own.value.dtype, torch.float32)
            return own.then(MADE, ()).then(torch.Tensor.to, dtype).then(torch.mul, argument)
    return None


def beside(walk: Walk, found: Expression, value: torch.Tensor) -> Expression:
    """A tensor that broadcasts to scores ``value``, as it broadcasts to ``frame``."""
    batch = walk.places.batch(value.shape)
    if walk.places != Places() and found.shape:
        found = _usual(found, walk.places, value.ndim)
    if is_same(batch, walk.frame):
        return found
    if len(found.shape) < 2 or all(is_same((size,), (1,)) for size in found.shape[:-2]):
        ones = tuple(range(len(found.shape) - 2))
        return found.then(torch.squeeze, ones) if ones else found
    return found.shaped(batch, walk.frame)


def _usual(one: Expression, places: Places, dims: int) -> Expression:
    """A tensor beside scores of so many dimensions, as it broadcasts to ``[..., rows, keys]``."""
    if places.are_last:
        is_vector = len(one.shape) == 1
        return one.then(torch.unsqueeze, -1) if is_vector else one.transposed()
    for _ in range(dims - len(one.shape)):
        one = one.then(torch.unsqueeze, 0)
    return one.permuted(places.order(dims))


def no_scores(call: Call, why: str = "") -> Refusal:
    """Return that what stands on the way is no function of scores that can be taken up."""
    reason = f"{call.name} stands between product and softmax, which torch's attention cannot do"
    return Refusal(call.node, "score_function", f"{reason}{why}.")


def overwritten(call: Call) -> Refusal:
    """Return that scores are written over what else may be read."""
    reason = f"{call.name} writes scores over a tensor that is not theirs."
    return Refusal(call.node, "mutated_operand", reason)
