"""A program as code: one Python function of a line a step, made once a process.

Between two GEMMs of microseconds, walking over steps and arguments would take as long as they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from overlapc.errors import KernelError
from overlapc.runtime.programs.program import Program, Ref, Step, refs

Function = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
"""From operands, and tensors to write to, to the program's results."""

CASTS = frozenset({torch.ops.aten._to_copy.default, torch.ops.prims.convert_element_type.default})
"""Ops that give their first argument in another dtype, as a copy into a tensor of it does."""

BINDINGS: dict[torch._ops.OpOverload, Callable[..., torch.Tensor]] = {
    torch.ops.aten.mm.default: torch.mm,
    torch.ops.aten.addmm.default: torch.addmm,
    torch.ops.aten.bmm.default: torch.bmm,
    torch.ops.aten.baddbmm.default: torch.baddbmm,
}
"""Bindings of torch that take the same arguments, and ``out=``, in less time."""

GEMMS = frozenset(BINDINGS) | {
    torch.ops.aten._scaled_mm.default,
    torch.ops.aten._grouped_mm.default,
    torch.ops.aten._scaled_grouped_mm.default,
}
"""The ops that a library computes."""

HIDDEN_VIEWS = frozenset({torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default})
"""Ops that may give a view and do not say so."""


Call = Callable[[list[Any]], Sequence[torch.Tensor]]
"""Takes what it is given out of the list."""


@dataclass(frozen=True)
class Fused:
    """Some steps as one call."""

    call: Call
    """From sizes, what is read, and tensors to write to, to what is given."""
    reads: tuple[Ref, ...]
    gives: tuple[Ref, ...]
    """Values that the call makes tensors for."""
    writes: tuple[Ref, ...]
    """Values that it writes to tensors that the program is given."""


@lru_cache(maxsize=1024)
def function(program: Program, written: tuple[Ref, ...] = ()) -> Function:
    """Return the code of a program, which writes these values to tensors that it is given.

    Those have the values' shapes and dtypes, and any strides.
    """
    return code(program, written, range(len(program.steps)))


def code(
    program: Program,
    written: Sequence[Ref],
    order: Iterable[int | Fused],
    sizes: Sequence[str] = (),
) -> Function:
    """Return the code of a program whose steps run in an order, some of them in one call.

    ``sizes``: expressions of operands ``o`` and written tensors ``w`` that such calls are given.
    """
    known: dict[str, Any] = {}
    lines = ["def run(o, w):", *(f"    s{at} = {size}" for at, size in enumerate(sizes))]
    places = {ref: f"w[{at}]" for at, ref in enumerate(written)}
    order = list(order)
    given = "".join(f"s{at}, " for at in range(len(sizes)))
    for item, dead in zip(order, _dead(program, order), strict=True):
        if isinstance(item, Fused):
            lines += [f"    {line}" for line in _fused(item, given, places, known)]
        else:
            out = places.get(Ref("value", item), "")
            lines.append(f"    v{item} = {_call(program.steps[item], item, out, known)}")
        if dead:
            lines.append(f"    del {', '.join(map(_name, dead))}")
    lines.append(f"    return ({''.join(f'{_name(ref)}, ' for ref in program.results)})")
    exec("\n".join(lines), known)
    return known["run"]


def _dead(program: Program, order: Sequence[int | Fused]) -> list[list[Ref]]:
    """Of every item, the values that it reads last: their memory serves what comes next."""
    needed, dead = set(program.results), []
    for item in reversed(order):
        reads = item.reads if isinstance(item, Fused) else refs(program.steps[item])
        last = [ref for ref in dict.fromkeys(reads) if not ref.is_operand and ref not in needed]
        dead.append(last)
        needed.update(last)
    return dead[::-1]


def _fused(
    fused: Fused, sizes: str, places: Mapping[Ref, str], known: dict[str, Any]
) -> Iterator[str]:
    name = f"c{len(known)}"
    known[name] = fused.call
    to = [places[ref] for ref in fused.writes]
    given = sizes + ", ".join((*map(_name, fused.reads), *to))
    gives = "".join(f"{_name(ref)}, " for ref in fused.gives)
    yield f"{gives}= {name}([{given}])" if gives else f"{name}([{given}])"
    for ref, place in zip(fused.writes, to, strict=True):
        yield f"{_name(ref)} = {place}"


def _call(step: Step, index: int, out: str, known: dict[str, Any]) -> str:
    """The text of one call; what it calls and its constants are put into ``known``."""
    op = overload(step.op)
    args = [_text(arg, known) for arg in step.args]
    args += [f"{name}={_text(arg, known)}" for name, arg in step.kwargs]
    if out and op in CASTS:
        return f"{out}.copy_({args[0]})"
    into = out_variant(op) if out else None
    # The overload's own __call__ would only pass the arguments on.
    known[f"f{index}"] = BINDINGS.get(op) or (into or op)._op
    if into is not None:
        return f"f{index}({', '.join((*args, f'out={out}'))})"
    call = f"f{index}({', '.join(args)})"
    return f"{out}.copy_({call})" if out else call


def _name(ref: Ref) -> str:
    return f"o[{ref.index}]" if ref.is_operand else f"v{ref.index}"


def _text(arg: Any, known: dict[str, Any]) -> str:
    if isinstance(arg, Ref):
        return _name(arg)
    if isinstance(arg, tuple):
        return f"[{', '.join(_text(item, known) for item in arg)}]"
    name = f"c{len(known)}"
    known[name] = arg
    return name


Known = Sequence[Any] | Mapping[int, Any]
"""What stands for operands, or for values, by index."""


def fill(arg: Any, operands: Known, values: Known) -> Any:
    """Return an argument of a step with tensors in the places of ``Ref``."""
    if isinstance(arg, Ref):
        return operands[arg.index] if arg.is_operand else values[arg.index]
    if isinstance(arg, tuple):
        return [fill(item, operands, values) for item in arg]
    return arg


def trace(
    program: Program,
    operands: Sequence[torch.Tensor],
    call: Callable[[Step, torch._ops.OpOverload, list[Any], Mapping[str, Any]], torch.Tensor],
) -> list[torch.Tensor]:
    """Return every step's value, each from ``call(step, op, args, kwargs)``."""
    values: list[torch.Tensor] = []
    for step in program.steps:
        args = [fill(arg, operands, values) for arg in step.args]
        kwargs = {name: fill(arg, operands, values) for name, arg in step.kwargs}
        values.append(call(step, overload(step.op), args, kwargs))
    return values


@lru_cache(maxsize=1024)
def writes(program: Program, ref: Ref) -> bool:
    """Return whether a value can be written to a given tensor without another pass over it."""
    if ref.is_operand:
        return False
    op = overload(program.steps[ref.index].op)
    return op in CASTS or out_variant(op) is not None


def is_view(op: torch._ops.OpOverload) -> bool:
    """Return whether an op's result may share memory with its operand."""
    return op.is_view or op in HIDDEN_VIEWS


@lru_cache(maxsize=1024)
def overload(name: str) -> torch._ops.OpOverload:
    """Return the overload of that name, such as ``aten.mm.default``; KernelError if none is."""
    try:
        space, packet, overload = name.split(".")
        return getattr(getattr(getattr(torch.ops, space), packet), overload)
    except (AttributeError, ValueError):
        raise KernelError(
            f"This torch has no operator {name!r}.",
            where="an op of overlapc in a compiled graph",
            remedy="clear Inductor's cache: the artifact comes from another version of torch",
        ) from None


@lru_cache(maxsize=1024)
def out_variant(op: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """Return the overload with the same arguments and ``out=``, or None."""
    wanted = [_signature(argument) for argument in op._schema.arguments]
    packet = op.overloadpacket
    for name in packet.overloads():
        other = getattr(packet, name)
        *arguments, last = other._schema.arguments or [None]
        is_out = last is not None and last.name == "out" and last.kwarg_only
        if is_out and [_signature(argument) for argument in arguments] == wanted:
            return other
    return None


def _signature(argument: Any) -> tuple[str, str]:
    return argument.name, str(argument.type)
