"""Pointwise calls on scores that are no sum with a mask, traced to what kernels are made of.

However a function is spelled, what torch's dispatcher sees of it are ATen calls, and of those a
kernel's text is made. They are seen on small tensors without memory that stand for the scores.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from overlapc.graphs.attention.reading.constants import number
from overlapc.graphs.attention.reading.spelling import OPERATORS_IN_PLACE, Call, tensor_of
from overlapc.graphs.attention.reading.tensors import Expression, is_cast, keeps_rows
from overlapc.graphs.attention.reading.varying import is_varying
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.runtime.attention.masks import AtenCall, CannotLower, Dtype, Ref, why_not_lowered

STANDING_FOR = (1, 1, 3, 5)
"""Scores ``[batch, heads, rows, keys]`` while tracing: a size of one broadcasts, others differ."""

aten = torch.ops.aten

OF_TENSORS = ("max", "min", "maximum", "minimum")
"""Calls that take two tensors, and no number in place of one."""

TOTAL = ("tanh", "sigmoid", "mul", "add", "sub", "rsub", "neg", "abs", "relu", "clamp", "clamp_min",
         "clamp_max", "hardtanh", "maximum", "minimum", "leaky_relu", "silu")  # fmt: skip
"""Calls of which finite scores and numbers give finite scores, as nearly as numbers go."""


@dataclass(frozen=True)
class Function:
    """A pointwise function of scores, and of tensors beside them."""

    calls: tuple[AtenCall, ...]
    """``Ref("value", 0)`` is the score before, each call gives one more, the last the score after;
    inputs are indices into ``inputs``."""
    inputs: tuple[Expression, ...] = ()
    name: str = ""
    """Of the call that makes it one, for a person."""

    @property
    def is_total(self) -> bool:
        """Finite scores give finite ones, as nearly as numbers go, whatever is in tensors beside
        that scores are multiplied by: no minus infinity, and no NaN."""
        return all(map(_is_total, self.calls))

    def scaled(self, factor: float) -> Function:
        """Return it with its result multiplied by a number."""
        if factor == 1:
            return self
        last = Ref("value", len(self.calls))
        call = AtenCall("aten.mul.Tensor", (last, factor))
        return Function((*self.calls, call), self.inputs, self.name)


def _is_total(call: AtenCall) -> bool:
    name = call.op.split(".")[1]
    given = (*call.arguments, *(argument for _, argument in call.named))
    numbers = [x for x in given if isinstance(x, int | float)]
    reads_beside = any(isinstance(x, Ref) and x.kind == "input" for x in given)
    if not all(map(math.isfinite, numbers)) or (reads_beside and name != "mul"):
        return False
    return name in TOTAL or (name == "div" and isinstance(given[1], int | float) and given[1] != 0)


OF_ALL_KEYS = ("topk", "kthvalue", "sort", "argsort", "msort", "median", "quantile", "mode")
"""Calls that order scores."""

Beside = Callable[[Call, fx.Node], Expression | None]
"""What a call takes beside scores, as it broadcasts to what the softmax reads."""


def trace_function(
    versions: Versions, base: fx.Node, nodes: Sequence[fx.Node], beside: Beside
) -> Function:
    """Return what ``nodes``, in their order, make of the scores that ``base`` gives.

    Raises ``CannotLower`` where no kernel can be made of it.
    """
    name = versions.calls[nodes[-1]].name
    with _disable_current_modes(), torch.no_grad():
        score = torch.empty(STANDING_FOR, device="meta")
        trace = _Trace(versions, beside, {base: score}, _Recorder(score))
        for node in nodes:
            trace.take(node)
        last = trace.values[nodes[-1]]
    found = Function(tuple(trace.recorder.calls), tuple(trace.inputs), name)
    is_score = tuple(last.shape) == STANDING_FOR and last.dtype == torch.float32
    if not is_score or trace.recorder.known.get(id(last)) != Ref("value", len(found.calls)):
        raise CannotLower(f"{name} gives no scores")
    why = why_not_lowered(found.calls, [part.value for part in found.inputs])
    if why:
        raise CannotLower(why)
    return found


class _Trace:
    """Nodes run one after another, each on what stands for its operands."""

    def __init__(
        self,
        versions: Versions,
        beside: Beside,
        values: dict[fx.Node, torch.Tensor],
        recorder: _Recorder,
    ) -> None:
        self.versions = versions
        self.beside = beside
        self.values = values
        self.recorder = recorder
        self.inputs: list[Expression] = []

    def take(self, node: fx.Node) -> None:
        """Run a node."""
        call = self.versions.calls[node]
        if is_cast(self.versions, node) or keeps_rows(self.versions, node):
            # Scores are float32 throughout, and of the dimensions that the softmax reads.
            self.values[node] = self._operand(call, call.get("input"))
            return
        if call.name in OF_ALL_KEYS:
            raise CannotLower(f"{call.name} compares keys of a row with each other")
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: self._operand(call, arg))
        try:
            with self.recorder:
                value = _out_of_place(node, call, args, dict(kwargs))
        except (RuntimeError, TypeError, ValueError, LookupError) as error:
            # What torch says is about the few scores that stand for all, not about the program.
            why = f"{call.name} is not computed of one score at a time"
            raise CannotLower(why) from error
        if not isinstance(value, torch.Tensor):
            raise CannotLower(f"{call.name} gives no tensor")
        self.values[node] = value

    def _operand(self, call: Call, argument: Any) -> Any:
        seen = self.versions.read(call.node, argument)
        if seen is None:
            raise CannotLower(f"{call.name} reads what was written through another view")
        if seen in self.values:
            return self.values[seen]
        known = number(self.versions, argument)
        if known is not None:
            is_tensor = call.name in OF_TENSORS and tensor_of(argument) is not None
            return self._number(known) if is_tensor else known
        is_tensor = tensor_of(argument) is not None
        found = self.beside(call, argument) if is_tensor or is_varying(argument) else None
        if found is None:
            raise CannotLower(f"{call.name} takes what is no tensor, or was written to")
        value = torch.empty(standing_for(found.value), dtype=found.value.dtype, device="meta")
        self.recorder.know(value, Ref("input", len(self.inputs)))
        self.inputs.append(found)
        return value

    def _number(self, known: float) -> torch.Tensor:
        value = torch.empty((), device="meta")
        self.recorder.know(value, known)
        return value


def standing_for(value: torch.Tensor) -> tuple[int, ...]:
    """The shape that an input of scores has while tracing: ones where it broadcasts."""
    sizes = STANDING_FOR[4 - value.ndim :] if value.ndim else ()
    if value.ndim > 4:
        raise CannotLower("it takes a tensor of more than four dimensions")
    pairs = zip(value.shape, sizes, strict=True)
    return tuple(1 if statically_known_true(own == 1) else size for own, size in pairs)


def _out_of_place(
    node: fx.Node, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> object:
    """Run a node's call as one that gives a new tensor."""
    if "out" in kwargs:
        raise CannotLower(f"{call.name} writes to another tensor")
    target: Any = node.target
    if call.in_place:
        kwargs.pop("inplace", None)
    if node.op == "call_method":
        name = target.removesuffix("_") if call.in_place else target
        return _there(call, getattr(args[0], name, None))(*args[1:], **kwargs)
    name = getattr(target, "__name__", "")
    if name in OPERATORS_IN_PLACE:
        target = getattr(operator, name[1:])
    elif call.in_place and name.endswith("_"):
        target = getattr(torch, name[:-1], None) or getattr(torch.nn.functional, name[:-1], None)
    return _there(call, target)(*args, **kwargs)


def _there(call: Call, function: Any) -> Any:
    """A function that was asked for by name: ``copy_`` and ``zero_`` have no other form."""
    if function is None:
        raise CannotLower(f"{call.name}_ gives no new tensor")
    return function


class _Recorder(TorchDispatchMode):
    """Writes down the ATen calls of what runs under it, on tensors that it knows."""

    def __init__(self, score: torch.Tensor) -> None:
        super().__init__()
        self.calls: list[AtenCall] = []
        self.known: dict[int, Ref | float] = {}
        self._alive: list[torch.Tensor] = []
        self.know(score, Ref("value", 0))

    def know(self, tensor: torch.Tensor, what: Ref | float) -> None:
        """Let a tensor stand for something; it is kept, so that no other gets its ``id``."""
        self.known[id(tensor)] = what
        self._alive.append(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if not isinstance(result, torch.Tensor):
            raise CannotLower(f"{func} gives no tensor")
        if func is aten.scalar_tensor.default:
            self.know(result, float(args[0]))
            return result
        if func is aten._to_copy.default:
            kwargs = {key: value for key, value in kwargs.items() if key == "dtype"}
        places = tuple(map(self._place, args))
        named = tuple(sorted((key, self._place(value)) for key, value in kwargs.items()))
        self.calls.append(_as_lowered(AtenCall(str(func), places, named)))
        self.know(result, Ref("value", len(self.calls)))
        return result

    def _place(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            known = self.known.get(id(argument))
            if known is None:
                raise CannotLower("it makes a tensor of its own")
            return known
        if isinstance(argument, torch.dtype):
            return Dtype(str(argument).removeprefix("torch."))
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        raise CannotLower(f"it takes {argument!r}")


def _is_number(argument: object) -> bool:
    return not isinstance(argument, Ref)


def _as_lowered(call: AtenCall) -> AtenCall:
    """A choice in the one spelling that is lowered, by which of its sides are numbers, and the
    larger or smaller of two with a number last."""
    if call.op in ("aten.maximum.default", "aten.minimum.default"):
        return AtenCall(call.op, tuple(sorted(call.arguments, key=_is_number)))
    if call.op in ("aten.masked_fill.Scalar", "aten.masked_fill.Tensor"):
        scores, mask, value = call.arguments
        call = AtenCall("aten.where.self", (mask, value, scores))
    if call.op != "aten.where.self":
        return call
    _, one, other = call.arguments
    if not isinstance(one, Ref) and not isinstance(other, Ref):
        raise CannotLower("it chooses between two numbers")
    if not isinstance(one, Ref):
        return AtenCall("aten.where.ScalarSelf", call.arguments)
    if not isinstance(other, Ref):
        return AtenCall("aten.where.ScalarOther", call.arguments)
    return call
