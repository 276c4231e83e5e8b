"""Whether masks alone tell which keys a row sees, whatever queries and keys are."""

from __future__ import annotations

from overlapc.codegen.epilogue import Call, Epilogue, Ref

KEEPING = ("add", "sub", "mul", "neg", "tanh", "clone")
"""Names of calls that make no minus infinity of numbers, and none of those from one: what a mask
made infinite is so for every product, and nothing else is."""
CHOOSING = ("where",)


def masks_tell(program: Epilogue | None) -> bool:
    """Whether there are masks, and a score that is minus infinity where the product is zero is so
    for every product that is a number: a kernel need not read keys to learn what they hide."""
    if program is None or not program.inputs:
        return False
    return all(map(_tells, program.calls[1:]))


def _tells(call: Call) -> bool:
    name = call.op.split(".")[1]
    if name == "div":
        return not _is_score(call.arguments[1])
    if name in CHOOSING:
        return not _is_score(call.arguments[0])
    return name in KEEPING


def _is_score(argument: object) -> bool:
    return isinstance(argument, Ref) and argument.kind == "value"
