"""The protocol that the templates' source follows, read from its syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.protocol.protocol import STORES, Protocol

TEMPLATES = Path(__file__).parents[2] / "codegen" / "templates"
SIGNAL = "signal.py"
PUBLISH, WAIT = "publish", "wait_for_group"
BARRIER, WRITTEN_BARRIER = "debug_barrier", "barrier.sync"
COMPARISONS = {ast.Lt: ">=", ast.NotEq: "=="}
"""What a waiter that polls while this holds has found when it stops."""

Functions = Mapping[str, ast.FunctionDef]


def templates() -> dict[str, str]:
    """Source of every template, by file name."""
    return {path.name: path.read_text() for path in sorted(TEMPLATES.glob("*.py"))}


def read(source: str, signal: str, *, late: bool = False) -> Protocol:
    """The protocol of a template that signals, given its source and that of ``signal.py``; of its
    kernels with LATE or of those without.

    ValueError where it is none that the model knows.
    """
    functions = {**_functions(signal), **_functions(source)}
    kernel = functions[_signaling(functions)]
    for function in functions.values():
        _Chosen(late).visit(function)
    last = next((at for at, node in enumerate(kernel.body) if isinstance(node, ast.For)), None)
    end = len(kernel.body) if last is None else last + 1
    calls = [call for part in kernel.body[:end] for call in _calls(part, functions)]
    behind = [call for part in kernel.body[end:] for call in _calls(part, functions)]
    adds, more = _adds(calls), _adds(behind)
    if len(adds) != 1 or len(more) != late or len(behind) != late:
        raise ValueError(f"a tile is announced {len(adds)} times, and the last one {len(more)}")
    waiter = functions[WAIT]
    return Protocol(
        tile=tuple(_merged(name for name, _ in calls)),
        late=late,
        releases=all(_orders(call, "release") for call in (*adds, *more)),
        compare=_comparison(waiter),
        acquires=any(_orders(call, "acquire") for call in _after_polling(waiter)),
    )


def signals(source: str) -> bool:
    """Whether a template announces tiles."""
    return any(PUBLISH in _called(function) for function in _functions(source).values())


class _Chosen(ast.NodeTransformer):
    """Leaves of branches on LATE and SIGNALS the one that is compiled."""

    def __init__(self, late: bool) -> None:
        self._constants = {"LATE": late, "SIGNALS": True}

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """Of a branch."""
        self.generic_visit(node)
        chosen = self._constants.get(ast.unparse(node.test))
        if chosen is None:
            return node
        return node.body if chosen else node.orelse


def _adds(calls: Iterable[tuple[str, ast.Call]]) -> list[ast.Call]:
    return [call for name, call in calls if name == "atomic_add"]


def _functions(source: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def _called(function: ast.FunctionDef) -> set[str]:
    calls = (node for node in ast.walk(function) if isinstance(node, ast.Call))
    return {ast.unparse(call.func) for call in calls}


def _signaling(functions: Functions) -> str:
    """The kernel: the one function that calls ``publish``."""
    names = [name for name, function in functions.items() if PUBLISH in _called(function)]
    if len(names) != 1:
        raise ValueError(f"functions that publish: {names}")
    return names[0]


def _calls(node: ast.AST, functions: Functions) -> Iterator[tuple[str, ast.Call]]:
    """Stores, barriers and adds in the order in which they are made, those of callees included."""
    if isinstance(node, ast.If):
        yield from _branches(node, functions)
        return
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, functions)  # arguments come before the call
    if not isinstance(node, ast.Call):
        return
    called = ast.unparse(node.func)
    if called in functions:
        yield from _calls(functions[called], functions)
    elif called in ("tl.store", "tl.debug_barrier", "tl.atomic_add"):
        yield called.removeprefix("tl."), node
    elif WRITTEN_BARRIER in ast.unparse(node) and called == "tl.inline_asm_elementwise":
        yield BARRIER, node
    elif called.split(".")[-1].startswith("store") or "tma" in called:
        yield "tma_store", node


def _branches(node: ast.If, functions: Functions) -> Iterator[tuple[str, ast.Call]]:
    """What either branch calls; a barrier that stands in both of them once, and what is alike.

    ValueError where only one of them meets a barrier, the branch that is not written included.
    """
    arms = [[call for part in arm for call in _calls(part, functions)]
            for arm in (node.body, node.orelse)]  # fmt: skip
    barriers = [sum(name == BARRIER for name, _ in arm) for arm in arms]
    if barriers[0] != barriers[1]:
        raise ValueError(f"only some CTAs meet a barrier: {ast.unparse(node.test)}")
    yield from _calls(node.test, functions)
    yield from arms[0]
    if [name for name, _ in arms[0]] != [name for name, _ in arms[1]]:
        yield from (call for call in arms[1] if call[0] != BARRIER)


def _merged(names: Iterable[str]) -> list[str]:
    """The names, stores in a row as one: they are branches, or parts; by TMA if one of them is."""
    merged: list[str] = []
    for name in names:
        if name in STORES and merged and merged[-1] in STORES:
            merged[-1] = max(merged[-1], name, key=STORES.index)
        else:
            merged.append(name)
    return merged


def _orders(call: ast.Call, what: str) -> bool:
    """Whether an atomic is a release or an acquire at device scope, or wider."""
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    # What Triton takes where neither is given.
    sem, scope = given.get("sem", "acq_rel"), given.get("scope", "gpu")
    return sem in (what, "acq_rel") and scope in ("gpu", "sys")


def _polling(waiter: ast.FunctionDef) -> int:
    """Which statement of the waiter is its loop."""
    return next(at for at, node in enumerate(waiter.body) if isinstance(node, ast.While))


def _comparison(waiter: ast.FunctionDef) -> str:
    loop = waiter.body[_polling(waiter)]
    assert isinstance(loop, ast.While)
    for node in ast.walk(loop.test):
        match node:
            case ast.Compare(ast.Name("seen"), [op], [ast.Name("target")]) if (
                type(op) in COMPARISONS
            ):
                return COMPARISONS[type(op)]
    raise ValueError(f"polls while {ast.unparse(loop.test)}")


def _after_polling(waiter: ast.FunctionDef) -> list[ast.Call]:
    """Atomics of the waiter that its loop does not repeat."""
    nodes = (node for part in waiter.body[_polling(waiter) + 1 :] for node in ast.walk(part))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func).startswith("tl.atomic")]
