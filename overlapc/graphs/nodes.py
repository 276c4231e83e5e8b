"""Questions to an FX graph: its canonical text, what a node computes, and where it came from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._functorch._aot_autograd.logging_utils import get_aot_graph_name
from torch._library.fake_class_registry import FakeScriptObject
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

try:  # torch >= 2.12 says it without a guard under this name
    from torch.fx.experimental.symbolic_shapes import optimization_hint
except ImportError:  # torch 2.11
    from torch.fx.experimental.symbolic_shapes import (
        size_hint as optimization_hint,  # pyright: ignore[reportAttributeAccessIssue]
    )

aten = torch.ops.aten

# Views that keep the order of elements, so that an elementwise collective may be moved across them.
ORDERED_VIEWS = frozenset(
    {
        aten.reshape.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.flatten.using_ints,
        aten.alias.default,
    }
)


BEFORE_AUTOGRAD = "example_value"
"""Where Dynamo's graphs keep what later ones keep under ``val``."""


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

COMMON_SIZE = 1920
"""What every symbol is taken for where ranks have to decide alike: chosen, with many divisors."""

_is_common: ContextVar[bool] = ContextVar("sizes common to all ranks", default=False)


@contextmanager
def common_sizes() -> Iterator[None]:
    """Let hints be the same on all ranks: `COMMON_SIZE` for every symbol.

    Real ones are those of the call that was compiled first, and a graph that a rank finds in its
    cache was compiled for another call than its peers'.
    """
    token = _is_common.set(True)
    try:
        yield
    finally:
        _is_common.reset(token)


def hint_of(size: int | torch.SymInt | fx.Node) -> int:
    """Return what a size is likely to be, without a guard."""
    known: int | torch.SymInt = value_of(size) if isinstance(size, fx.Node) else size
    if isinstance(known, int):
        return known
    if _is_common.get():
        expression = known.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, COMMON_SIZE)))
    return int(optimization_hint(known, fallback=UNKNOWN_SIZE))


def copy_facts(old: fx.Node, new: fx.Node) -> None:
    """Give ``new`` the value, source line and module path of ``old``."""
    new.meta = dict(old.meta)


def through(node: fx.Node, keep: Callable[[fx.Node], bool]) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """Walk up from ``node`` through nodes that ``keep`` accepts, by their first argument.

    Returns the first node that it does not accept, and those from it down to ``node``.
    """
    passed: list[fx.Node] = []
    while keep(node):
        passed.append(node)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        node = source
    return node, tuple(reversed(passed))


def is_random(node: fx.Node) -> bool:
    """Return whether a node computes random numbers, or a few pointwise steps above it does."""
    waiting, seen = [node], 0
    while waiting and seen < 8:
        node, seen = waiting.pop(), seen + 1
        target = node.target
        if "random" in str(target) or "dropout" in str(target) or "bernoulli" in str(target):
            return True
        if isinstance(target, torch._ops.OpOverload):
            if torch.Tag.nondeterministic_seeded in target.tags:
                return True
            if torch.Tag.pointwise in target.tags or target.namespace == "prims":
                waiting.extend(node.all_input_nodes)
    return False


def descendants(nodes: Iterable[fx.Node], without: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """Return every node that depends on one of ``nodes`` but by ``without``, and these."""
    left_out = set(without)
    reached = set(nodes)
    waiting = list(reached)
    while waiting:
        for user in waiting.pop().users:
            if user not in reached and user not in left_out:
                reached.add(user)
                waiting.append(user)
    return reached


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


def add_call(
    graph: fx.Graph,
    target: Any,
    args: tuple[Any, ...],
    like: fx.Node,
    kwargs: Mapping[str, Any] | None = None,
) -> fx.Node:
    """Add a call where the graph inserts now, with its value, and the origin of ``like``."""
    node = graph.call_function(target, args, dict(kwargs or {}))
    node.meta = {key: value for key, value in like.meta.items() if key not in VALUE_KEYS}
    values = fx.map_arg((args,), value_of)[0]
    with fake_mode(like):
        key = BEFORE_AUTOGRAD if BEFORE_AUTOGRAD in like.meta else "val"
        node.meta[key] = target(*values, **fx.map_arg(node.kwargs, value_of))
    return node


VALUE_KEYS = ("val", "tensor_meta", "eager_input_vals", BEFORE_AUTOGRAD)
"""What a node's meta says of its value."""


def fake_mode(node: fx.Node) -> Any:
    """Return the mode that a node's fake value belongs to, as a context; none if it is no fake."""
    value = value_of(node)
    leaves = value if isinstance(value, list | tuple) else [value]
    modes = [leaf.fake_mode for leaf in leaves if isinstance(leaf, FakeTensor)]
    return modes[0] if modes else nullcontext()


def is_ancestor(before: fx.Node, after: fx.Node) -> bool:
    """Return whether ``after`` depends on ``before`` through edges; ``before`` stands first."""
    between = set()
    node = after
    while node is not before:
        node = node.prev
        between.add(node)
    reached, waiting = set(), [after]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source is before:
                return True
            if source in between and source not in reached:
                reached.add(source)
                waiting.append(source)
    return False


def graph_kind() -> str:
    """Return which graph of a model Inductor compiles now: forward, backward or inference."""
    name = get_aot_graph_name()
    return next(kind for kind in ("backward", "inference", "forward") if kind in f"{name} forward")


def where(node: fx.Node) -> str:
    """Return the module path and the user's source line that ``node`` came from."""
    module = _module_path(node)
    line = source_line(node)
    return " ".join(part for part in (module, f"({line})" if line else "") if part) or node.name


def _module_path(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    path = re.sub(r"\['([^']*)'\]", r".\1", str(path)).replace("._modules.", ".")
    return re.sub(r"^L\.(self|fn|mod|s)\b\.?", "", path).strip(".")


def place_of(node: fx.Node) -> str:
    """Return the user's line that ``node`` came from, and the name of the layer that is called.

    Equal for the same layer of all blocks of a model, and in the graphs of all ranks, of which one
    alone may have compiled another: outer lines would not be, where a graph breaks.
    """
    _, _, layer = _module_path(node).rpartition(".")
    return f"{source_line(node)} {layer}".strip()


def source_line(node: fx.Node) -> str:
    """Return ``file:line`` of the innermost frame that is the user's: not torch's own."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if "/torch/" not in frame[0]] or frames
    return f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


def text(graph: fx.Graph) -> str:
    """Return the graph in one line a node, with values numbered in order: equal iff alike.

    Names that Dynamo or AOTAutograd chose do not occur, so the text is stable from run to run.
    """
    numbers = {node: f"%{index}" for index, node in enumerate(graph.nodes)}
    return "\n".join(_line(node, numbers) for node in graph.nodes) + "\n"


def fingerprint(graph: fx.Graph) -> str:
    """Return a short hash of the canonical text."""
    return hashlib.sha256(text(graph).encode()).hexdigest()[:12]


def _line(node: fx.Node, numbers: dict[fx.Node, str]) -> str:
    if node.op == "placeholder":
        call = "input"
    else:
        shown = [_show(argument, numbers) for argument in node.args]
        shown += [f"{key}={_show(value, numbers)}" for key, value in node.kwargs.items()]
        call = f"{_target(node)}({', '.join(shown)})"
    return f"{numbers[node]} = {call}{_annotation(value_of(node))}"


def _target(node: fx.Node) -> str:
    if node.op in ("output", "get_attr"):
        return node.op if node.op == "output" else f"get_attr[{node.target}]"
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def _show(argument: object, numbers: dict[fx.Node, str]) -> str:
    if isinstance(argument, fx.Node):
        return numbers[argument]
    if isinstance(argument, list | tuple):
        return "[" + ", ".join(_show(item, numbers) for item in argument) + "]"
    return repr(argument)


def _annotation(value: object) -> str:
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        return f"  # {str(value.dtype).removeprefix('torch.')}[{sizes}] {value.device.type}"
    if value is None or isinstance(value, FakeScriptObject | tuple | list):
        return ""
    return f"  # {value}"


def bodies_in(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Graph]]:
    """Yield the bodies of higher-order ops that the graph itself calls, each with its name."""
    owner = graph.owning_module
    for node in graph.nodes:
        if node.op != "get_attr" or owner is None:
            continue
        body = getattr(owner, str(node.target), None)
        if isinstance(body, fx.GraphModule):
            yield node, body.graph


def subgraphs(graph: fx.Graph) -> Iterator[fx.Graph]:
    """Yield the bodies of higher-order ops that the graph calls, at any depth."""
    for _, body in bodies_in(graph):
        yield body
        yield from subgraphs(body)
