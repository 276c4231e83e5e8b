"""What a node's value is known to be while compiling; sizes are hints where they vary."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

try:  # torch >= 2.12 says it without a guard under this name
    from torch.fx.experimental.symbolic_shapes import optimization_hint
except ImportError:  # torch 2.11
    from torch.fx.experimental.symbolic_shapes import (
        size_hint as optimization_hint,  # pyright: ignore[reportAttributeAccessIssue]
    )

BEFORE_AUTOGRAD = "example_value"
"""Where Dynamo's graphs keep what later ones keep under ``val``."""
VALUE_KEYS = ("val", "tensor_meta", "eager_input_vals", BEFORE_AUTOGRAD)
"""What a node's meta says of its value."""


@dataclass(frozen=True)
class TensorFacts:
    """What a node's value is known to be while compiling; sizes are hints where symbolic."""

    shape: tuple[int, ...]
    dtype: str
    """As torch spells it, without ``torch.``."""
    device: str
    """Type of the device, such as ``cuda``."""
    static: bool
    """No size is symbolic."""


def value_of(node: fx.Node) -> Any:
    """Return the fake value of a node, or None where tracing left none."""
    return node.meta.get("val", node.meta.get(BEFORE_AUTOGRAD))


def tensor_facts(node: object) -> TensorFacts | None:
    """Return what is known of the tensor that ``node`` gives; None if it gives no tensor.

    Sizes are read as hints: a comparison on the symbols themselves would install a guard.
    """
    value = value_of(node) if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor):
        return None
    static = all(isinstance(size, int) for size in value.shape)
    return TensorFacts(
        shape=tuple(hint_of(size) for size in value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        device=value.device.type,
        static=static,
    )


# What a symbolic size is taken for where tracing gave no hint: the prefill of one long prompt.
UNKNOWN_SIZE = 4096


def hint_of(size: int | torch.SymInt | fx.Node) -> int:
    """Return what a size is likely to be, without a guard."""
    known: int | torch.SymInt = value_of(size) if isinstance(size, fx.Node) else size
    if isinstance(known, int):
        return known
    return int(optimization_hint(known, fallback=UNKNOWN_SIZE))


def is_contiguous(node: fx.Node) -> bool:
    """Return whether a node's tensor is contiguous for every size."""
    value, expected = value_of(node), 1
    if not isinstance(value, torch.Tensor):
        return False
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if not statically_known_true(stride == expected):
            return False
        expected = expected * size
    return True


def fake_mode(node: fx.Node) -> Any:
    """Return the mode that a node's fake value belongs to, as a context; none if it is no fake."""
    value = value_of(node)
    leaves = value if isinstance(value, list | tuple) else [value]
    modes = [leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor)]
    return modes[0] if modes else nullcontext()
