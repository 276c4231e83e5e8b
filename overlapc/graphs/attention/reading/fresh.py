"""Calls whose result shares no memory with an operand: as torch's schemas say, not by a list.

Of an op that autograd knows itself a schema marks every result that may share memory with an
operand. Of one that is made of others it marks none: those that are taken for new stand here.
"""

from __future__ import annotations

from functools import cache

import torch
from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel

from overlapc.graphs.attention.reading.spelling import Call

MADE_OF_OTHERS_NAMES = """
    matmul einsum linear inner tensordot softmax softmin log_softmax layer_norm rms_norm
    scaled_dot_product_attention where max tensor new_tensor and_ or_ xor invert
"""
MADE_OF_OTHERS = frozenset(MADE_OF_OTHERS_NAMES.split())
"""Calls that give new memory, and whose schema does not tell."""
UNMARKED = ("lift", "native_dropout", "unsafe_split", "unsafe_split_with_sizes")
"""Ops that may give their operand as it is, or views of it, unlike what their schemas say."""


def is_fresh(call: Call) -> bool:
    """Return whether a call's result shares no memory with an operand; False where it may."""
    if call.name == "einsum":  # of one operand it may be a view
        operands = [value for key, value in call.given.items() if key != "equation"]
        if len(operands) == 1 and isinstance(operands[0], list | tuple):
            operands = list(operands[0])
        return len(operands) > 1
    return call.name in MADE_OF_OTHERS or _is_marked_new(call.name)


@cache
def _is_marked_new(name: str) -> bool:
    """Whether every overload that gives tensors is an op of autograd's with unmarked results."""
    packet = None if name.startswith("_") else getattr(torch.ops.aten, name, None)
    if name in UNMARKED or not isinstance(packet, torch._ops.OpOverloadPacket):
        return False
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    told = [_gives_new(schema) for schema in schemas if _is_of_tensors(schema)]
    return bool(told) and all(told)


def _is_of_tensors(schema: torch._C.FunctionSchema) -> bool:
    """Whether a graph of Dynamo's may call it: no dimension has a name there."""
    gives = any("Tensor" in str(result.type) for result in schema.returns)
    is_written = any(argument.is_out for argument in schema.arguments)
    # torch 2.11 has overloads whose dimension is a name, as text.
    is_by_name = any(
        argument.name == "dim" and "str" in str(argument.type) for argument in schema.arguments
    )
    return gives and not is_written and not is_by_name


def _gives_new(schema: torch._C.FunctionSchema) -> bool:
    overload = f".{schema.overload_name}" if schema.overload_name else ""
    try:
        is_made_of_others = has_kernel(f"{schema.name}{overload}", "CompositeImplicitAutograd")
    except RuntimeError:  # TorchScript alone calls it
        return True
    return not is_made_of_others and all(one.alias_info is None for one in schema.returns)
