"""The derivative of the program between Q @ K^T and softmax: the program backwards, as calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from overlapc.codegen.attention.derivatives import DERIVATIVES, FLAT
from overlapc.codegen.attention.expressions import calls_of_text
from overlapc.codegen.attention.scores import ScoreFunction, after_product
from overlapc.codegen.epilogue import Call, Epilogue, Ref
from overlapc.codegen.function import bind
from overlapc.codegen.promotion import CannotLower

PRODUCT, GRADIENT = Ref("value", 0), Ref("value", 1)
"""What the calls of a derivative begin with: the scaled product, and the gradient of the scores."""
HEADER = '''\
@triton.jit
def derivative(product, gradient, tile, inputs):
    """The gradient of {what} from that of the scores, of float32."""
'''


@lru_cache(maxsize=512)
def derivative(program: Epilogue, of: int | None = None) -> tuple[Call, ...]:
    """Calls on (product, gradient of scores, values of calls) of which the last is the gradient.

    It is that of the scaled product or, with ``of``, what each score adds to that of an input: the
    sum over all that share one of its elements is to be made yet. No call: it is that of scores.
    ``CannotLower`` where an op on the way has no derivative, or none depends on ``of``.
    """
    target = PRODUCT if of is None else Ref("input", of)
    tape = _Tape([_shifted(call) for call in after_product(program)], target)
    found = tape.run()
    if found is None:
        what = "the product of queries and keys" if of is None else f"input {of}"
        raise CannotLower(f"scores have no gradient for {what}")
    return _needed(tape.calls, found)


def derivative_text(program: Epilogue, of: int | None = None) -> str:
    """``derivative(product, gradient, tile, inputs)``; raises ``CannotLower``.

    Arguments are those of ``scores``, and between them the gradient that softmax gives back.
    """
    calls = derivative(program, of)
    what = "the scaled product" if of is None else f"input {of}, for each score,"
    function = ScoreFunction(HEADER.format(what=what), program.inputs, ["product", "gradient"])
    for call in calls:
        function.add(call)
    return function.text()


class _Tape:
    """A program's calls, after which those of its derivative are put down."""

    def __init__(self, calls: list[Call], target: Ref) -> None:
        self.calls = calls
        self.target = target
        self.gradients: dict[Ref, Ref] = {}
        self.active = {target}
        for index, call in enumerate(calls):
            if call.op not in FLAT and self.active.intersection(_refs(call)):
                self.active.add(_value(index))

    def run(self) -> Ref | None:
        last = _value(len(self.calls) - 1) if self.calls else PRODUCT
        if last in self.active:
            self.gradients[last] = GRADIENT
        for index in reversed(range(len(self.calls))):
            if _value(index) in self.gradients and _value(index) in self.active:
                self._back(self.calls[index], _value(index))
        return self.gradients.get(self.target)

    def _back(self, call: Call, result: Ref) -> None:
        given = bind(call)
        texts = DERIVATIVES.get(call.op, {})
        names = {**given, "grad": self.gradients[result], "result": result}
        for name, operand in given.items():
            if operand not in self.active:
                continue
            if name not in texts:
                raise CannotLower(f"{call.op} has no derivative by {name}")
            text = texts[name]
            added = calls_of_text(text if isinstance(text, str) else text(given), names, self._emit)
            if isinstance(added, Ref):
                self._add(operand, added)

    def _add(self, operand: Ref, added: Ref) -> None:
        before = self.gradients.get(operand)
        if before is not None:
            added = self._emit("aten.add.Tensor", before, added)
        self.gradients[operand] = added

    def _emit(self, op: str, *arguments: Any) -> Ref:
        call = Call(op, arguments)
        if call not in self.calls:
            self.calls.append(call)
        return _value(self.calls.index(call))


def _value(index: int) -> Ref:
    """Of the call of that index; the product and the gradient stand before."""
    return Ref("value", index + 2)


def _shifted(call: Call) -> Call:
    """A call of a program, in which no gradient stands among the values."""
    return _renamed(call, lambda ref: Ref("value", ref.index + 1) if ref.index else ref)


def _needed(calls: Sequence[Call], last: Ref) -> tuple[Call, ...]:
    """The calls that a value takes, itself the last, with new numbers."""
    needed, waiting = set(), [last]
    while waiting:
        ref = waiting.pop()
        if ref.kind == "value" and ref.index > 1 and ref not in needed:
            needed.add(ref)
            waiting += _refs(calls[ref.index - 2])
    order = sorted(ref.index for ref in needed)
    numbers = {0: 0, 1: 1, **{index: place + 2 for place, index in enumerate(order)}}
    return tuple(
        _renamed(calls[index - 2], lambda ref: Ref("value", numbers[ref.index])) for index in order
    )


def _renamed(call: Call, rename: Any) -> Call:
    def place(argument: Any) -> Any:
        is_value = isinstance(argument, Ref) and argument.kind == "value"
        return rename(argument) if is_value else argument

    named = tuple((name, place(argument)) for name, argument in call.named)
    return Call(call.op, tuple(map(place, call.arguments)), named)


def _refs(call: Call) -> list[Ref]:
    arguments: Iterable[Any] = (*call.arguments, *(argument for _, argument in call.named))
    return [argument for argument in arguments if isinstance(argument, Ref)]
