"""Checks of the matcher taken out one by one: programs that are drawn show each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from overlapc.graphs.attention import matching, operands, problems, rewriting, weights
from overlapc.graphs.attention.masks import combined as masks
from overlapc.graphs.attention.products import repeats
from overlapc.graphs.attention.reading.spelling import Call
from overlapc.graphs.attention.reading.tensors import CASTS
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores import upward as scores
from tests.attention.random_programs import draw
from tests.attention.running_programs import Variant, attempt

PROGRAMS = range(200)
"""The last mutant was shown by the 189th."""

real_step = scores._step


def nothing(*arguments: Any, **named: Any) -> None:
    return None


def none_at_all(*arguments: Any, **named: Any) -> tuple[()]:
    return ()


def never(*arguments: Any, **named: Any) -> bool:
    return False


def result_itself(graph: Any, result: Any, mask: Any) -> Any:
    return result


def twice(versions: Versions, call: Call, dim: int) -> Any:
    return repeats.as_it_stands(versions, call.node, call.get("input")), 2


def any_cast(versions: Versions, node: Any) -> bool:
    return node in versions.calls and versions.calls[node].name in CASTS


def tanh_is_nothing(walk: Any, call: Call) -> Any:
    return call.get("input") if call.name in ("tanh", "clamp", "relu") else real_step(walk, call)


def causal(is_off: Any, rows: Any, keys: Any) -> bool:
    return rows == keys and is_off.ndim > 1


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "operands never change": (Versions, "changes", none_at_all),
    "gradients are recorded of all": (operands, "_is_cut", never),
    "functions are passed over": (scores, "_step", tanh_is_nothing),
    "known masks are causal": (masks, "_is_causal", causal),
    "any range will do": (matching, "_why_not_range", nothing),
    "whole numbers are weights": (weights, "is_cast", any_cast),
    "dead rows are zeros": (rewriting, "_poisoned", result_itself),
    "nobody reads strides": (matching, "layout_is_read", never),
    "repeat is repeat_interleave": (repeats, "_source", twice),
    "weights may change": (weights, "_why_changed", nothing),
    "weak fills are masks": (masks, "_why_untold", nothing),
}


OF_TORCHS = ("dead rows are zeros", "weak fills are masks")
"""What only a rewrite to torch's attention depends on."""


@contextmanager
def mutated(name: str) -> Iterator[None]:
    where, what, mutant = MUTANTS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, what, mutant)
        yield


def _variant(name: str) -> Variant:
    return "sdpa" if name in OF_TORCHS else "unified", partial(mutated, name)


def missed(programs: range) -> dict[str, int]:
    """Return how many programs it took for each mutant; -1 where none shows it."""
    took = dict.fromkeys(MUTANTS, -1)
    for count, seed in enumerate(programs, 1):
        living = [name for name in MUTANTS if took[name] < 0]
        found = attempt(draw(seed), {name: _variant(name) for name in living})
        for name in living if found is not None else ():
            if found is not None and [x for x in found.wrong[name] if "fault" not in x]:
                took[name] = count
    return took


@pytest.mark.long
def test_each_is_shown(monkeypatch):
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    took = missed(PROGRAMS)
    assert min(took.values()) > 0, took
