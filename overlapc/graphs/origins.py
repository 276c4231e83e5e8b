"""Where a graph and its nodes came from: module path, the user's line, which part of a model."""

from __future__ import annotations

import re

from torch import fx
from torch._functorch._aot_autograd.logging_utils import get_aot_graph_name


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
    path = str(list(stack.values())[-1][0])
    is_dynamos = path.startswith(("L[", "G["))  # locals and globals; torch.export has neither
    path = re.sub(r"\['([^']*)'\]", r".\1", path).replace("._modules.", ".")
    if is_dynamos:
        path = re.sub(r"^(G|L(\.(self|fn|mod|s|args\[0\])(?!\w))?)\.?", "", path)
    return path.strip(".")


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
