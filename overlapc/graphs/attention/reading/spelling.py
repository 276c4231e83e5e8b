"""What a node of a Dynamo graph calls, under one name for function, method, operator, in place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import fx

from overlapc.graphs.values import value_of

ALIASES = {
    "truediv": "div",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "negative": "neg",
    "special_softmax": "softmax",
    "special_log_softmax": "log_softmax",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "_unsafe_view": "view",
    "mm": "matmul",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "concat": "cat",
    "concatenate": "cat",
    "linalg_vector_norm": "vector_norm",
}
"""Names of one op that torch offers several of."""

PARAMETERS = {
    "matmul": "input other",
    "bmm": "input other",
    "baddbmm": "input batch1 batch2",
    "addmm": "input mat1 mat2",
    "inner": "input other",
    "tensordot": "input other dims",
    "linear": "input weight bias",
    "einsum": "equation",
    "softmax": "input dim dtype",
    "log_softmax": "input dim dtype",
    "logsumexp": "input dim keepdim",
    "sum": "input dim keepdim",
    "max": "input dim keepdim",
    "amax": "input dim keepdim",
    "any": "input dim keepdim",
    "all": "input dim keepdim",
    "cat": "input dim",
    "pad": "input pad mode value",
    "full": "0 fill_value",
    "new_full": "input 1 fill_value",
    "full_like": "input fill_value",
    "dropout": "input p training inplace",
    "add": "input other",
    "sub": "input other",
    "mul": "input other",
    "div": "input other",
    "masked_fill": "input mask value",
    "where": "condition input other",
    "transpose": "input dim0 dim1",
    "repeat_interleave": "input repeats dim",
    "getitem": "input index",
    "setitem": "input index value",
    "normalize": "input p dim eps",
    "norm": "input p dim keepdim",
    "vector_norm": "input p dim keepdim",
    "clamp": "input min max",
    "clamp_min": "input min",
    "scaled_dot_product_attention": "query key value attn_mask dropout_p is_causal",
    "multi_head_attention_forward": "query",
    "index_copy": "input dim index source",
    "rms_norm": "input normalized_shape weight eps",
    "chunk": "input chunks dim",
    "pow": "input exponent",
    "mean": "input dim keepdim",
}
"""Positional parameters by canonical name; of other ops the first is ``input``."""

RENAMED = {
    "self": "input",
    "mat2": "other",
    "train": "training",
    "x": "input",
    "y": "other",
    "tensors": "input",
    "a": "input",
    "b": "other",
    "axis": "dim",
    "keepdims": "keepdim",
    "ord": "p",
}
"""What some spellings call a parameter."""

ATTRIBUTES = ("mT", "T", "values")
"""Those that are tensors made of tensors."""

OF_TORCH = ("aten::", "prims::")
ROOTS_OF_TORCH = ("torch", "_operator", "builtins", "math")
"""Modules whose functions are what their names say."""

WRITING = ("inplace", "out", "weight", "max_norm", "running_mean", "running_var")
"""Parameters of functions in Python that are written to, or say that others are."""

OVERWRITING = "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor"
OPERATORS_IN_PLACE = frozenset(OVERWRITING.split())


@dataclass(frozen=True)
class Call:
    """A call of a tensor op."""

    node: fx.Node
    name: str
    """Canonical: ``div`` for ``operator.itruediv``, ``Tensor.div_`` and ``torch.true_divide``."""
    in_place: bool
    """The first operand is overwritten."""
    given: Mapping[str, Any]
    """Arguments by parameter; positional ones without a known name are ``0``, ``1``, ..."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or ``default`` where it was not given."""
        return self.given.get(name, default)


def read_call(node: fx.Node) -> Call | None:
    """Read what a node calls; None where it calls nothing that gives a tensor."""
    if node.op not in ("call_function", "call_method"):
        return None
    name, in_place = _name_of(node)
    args = list(node.args)
    if name == "getattr":
        attribute = str(args[1])
        if attribute not in ATTRIBUTES:
            return None
        return Call(node, ALIASES.get(attribute, attribute), False, {"input": args[0]})
    names = PARAMETERS.get(name, "input").split()
    if (
        name in ("softmax", "softmin", "log_softmax")
        and getattr(node.target, "__module__", "") == "torch.nn.functional"
    ):
        names = ["input", "dim", "_stacklevel", "dtype"]
    if name == "where" and node.op == "call_method":
        names = ["input", "condition", "other"]
    names += [str(index) for index in range(len(args))]
    given = dict(zip(names, args, strict=False))
    given.update({RENAMED.get(key, key): value for key, value in node.kwargs.items()})
    told = told_writes(node)
    given.update({key: told[key] for key in ("inplace", "out") if told.get(key) is not None})
    base = given.get("input")
    if name == "pow" and isinstance(base, int | float) and 0 < base != 1:
        given.update(input=given.get("exponent"), base=base)
        return Call(node, "exp", False, given)  # nobody writes to a number
    return Call(node, name, in_place or given.get("inplace") is True, given)


def told_writes(node: fx.Node) -> dict[str, Any]:
    """Return arguments, by name wherever they stand, that say what a function of torch's that is
    written in Python writes to."""
    target = node.target
    names = _parameters(target) if isinstance(target, FunctionType) else ()
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return {name: given[name] for name in WRITING if name in given and name in names}


@cache
def _parameters(function: FunctionType) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _name_of(node: fx.Node) -> tuple[str, bool]:
    """The canonical name of what a node calls, and whether it is spelled as in place."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.partition("::")[2]
    else:
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.removesuffix("_") if in_place else name
    if name.startswith("__") and name.endswith("__"):  # called by the name of an operator's method
        name = name.strip("_")
        in_place = name in OPERATORS_IN_PLACE
        name = name[1:] if in_place else name
    if getattr(target, "__module__", "") == "_operator":  # and_ has its name from the keyword
        in_place = name in OPERATORS_IN_PLACE and isinstance(value_of(node), torch.Tensor)
        name = name[1:] if name in OPERATORS_IN_PLACE else name
    if whose := _namespace(target):
        return f"{whose}::{name}", in_place
    return ALIASES.get(name, name), in_place


def _namespace(target: Any) -> str:
    """Whose function it is, where it is none of torch's: a name alone says nothing of what it does;
    empty for torch's."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        is_overload = isinstance(target, torch._ops.OpOverload)
        whole = str(target._schema.name if is_overload else target._qualified_op_name)
        return "" if whole.startswith(OF_TORCH) else whole.partition("::")[0]
    root = (getattr(target, "__module__", None) or "torch").partition(".")[0]
    return "" if isinstance(target, str) or root in ROOTS_OF_TORCH else root


def tensor_of(argument: object) -> torch.Tensor | None:
    """Return the fake tensor that an argument of a call stands for; None if it is none."""
    value = value_of(argument) if isinstance(argument, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def is_full_index(index: object) -> bool:
    """Return whether ``x[index]`` only adds dimensions of one."""
    parts = index if isinstance(index, tuple | list) else (index,)
    return all(part is None or part is Ellipsis or part == slice(None) for part in parts)
