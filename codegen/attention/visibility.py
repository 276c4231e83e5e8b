"""Whether masks alone tell which keys a row sees, whatever queries and keys are."""

from __future__ import annotations

import math

from overlapc.codegen.epilogue import Call, Epilogue, Ref

KEEPING = ("add", "sub", "mul", "neg", "tanh", "clone")
"""Names of calls that make no minus infinity of numbers, and none of those from one: what a mask
made infinite is so for every product, and nothing else is."""
CHOOSING = ("where",)
OF_KEYS = ("matrix", "vector")
"""Shapes of inputs that differ from key to key."""
FINITE, INFINITE = "finite", "infinite"
FARTHEST = 4096.0
"""As ``LOST`` in ``templates/gradient_shares.py``."""


def masks_tell(program: Epilogue | None) -> bool:
    """Whether there are masks, and a score that is minus infinity where the product is zero is so
    for every product that is a number: a kernel need not read keys to learn what they hide."""
    if program is None or not program.inputs:
        return False
    return all(map(_tells, program.calls[1:]))


def hides(program: Epilogue | None) -> str:
    """By what scores at a product of zero tell that a row gives a key no weight.

    ``infinite``: minus infinity. ``finite``: a number as low as ``templates/hidden.py`` says, too:
    there may be one, and nothing but masks is done to scores once there is one. Empty: nothing
    that differs from key to key.
    """
    if program is None or not masks_tell(program):
        return ""
    if not any(item.shape in OF_KEYS for item in program.inputs):
        return ""
    return FINITE if _ends_in_masks(program) and any(map(_may_lower, program.calls)) else INFINITE


def hides_in_gradients(program: Epilogue | None, *, of_input: bool = False) -> str:
    """As ``hides``, where what hides a key makes its gradients zero, or that of an input of scores:
    minus infinity that is multiplied makes them no number."""
    hiding = hides(program)
    if hiding != INFINITE or program is None or _ends_in_masks(program):
        return hiding
    has_infinite = of_input or any(map(_multiplies_scores, program.calls))
    return "" if has_infinite else hiding


def may_be_far(program: Epilogue | None) -> bool:
    """Whether scores may lie so far from zero, by masks, that the logarithm of a sum of their
    exponentials has lost the sum; products are taken to be nearer."""
    if program is None:
        return False
    given = [
        side for call in program.calls for side in (*call.arguments, *dict(call.named).values())
    ]
    numbers = [side for side in given if isinstance(side, int | float)]
    return bool(program.inputs) or any(FARTHEST < abs(number) < math.inf for number in numbers)


def _tells(call: Call) -> bool:
    name = call.op.split(".")[1]
    if name == "div":
        return not _is_score(call.arguments[1])
    if name in CHOOSING:
        return not _is_score(call.arguments[0])
    return name in KEEPING


def _ends_in_masks(program: Epilogue) -> bool:
    """Whether nothing but masks is done from the first input on."""
    first = next((i for i, call in enumerate(program.calls) if _reads_input(call)), None)
    return all(map(is_mask, program.calls[first:]))


def _may_lower(call: Call) -> bool:
    """Whether a mask may make a finite number of a score that it was not."""
    if call.op.split(".")[1] not in CHOOSING:
        return _reads_input(call)
    return any(not _is_score(side) and side != -math.inf for side in call.arguments[1:])


def is_mask(call: Call) -> bool:
    """Whether a call adds an input to scores, or puts a number in their place where one says so."""
    name = call.op.split(".")[1]
    if name == "add":
        return len([side for side in call.arguments if _is_score(side)]) == 1 and (
            _reads_input(call)
        )
    return name in CHOOSING and any(map(_is_score, call.arguments[1:]))


def _multiplies_scores(call: Call) -> bool:
    return call.op.split(".")[1] == "mul" and all(map(_is_score, call.arguments[:2]))


def _reads_input(call: Call) -> bool:
    return any(isinstance(side, Ref) and side.kind == "input" for side in call.arguments)


def _is_score(argument: object) -> bool:
    return isinstance(argument, Ref) and argument.kind == "value"
