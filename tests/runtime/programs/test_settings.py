"""Kernels between GEMMs are compiled as Inductor compiled their graph, whoever calls them first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F
from torch._inductor import config

from overlapc.runtime.programs import compiling, fusing
from overlapc.runtime.programs.settings import settings, under
from tests.sparing import as_it_is
from tests.targets import SLOW_LINK


def in_a_thread(call: Callable[[], Any]) -> Any:
    """What a call gives in a thread of its own, as autograd's is for a GPU."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def some() -> tuple[Any, ...]:
    return (
        config.emulate_precision_casts,
        config.cpp.max_horizontal_fusion_size,
        config.max_fusion_size,
    )


def test_what_is_set_holds_anywhere_and_nothing_else():
    """Mutants: the caller's context and not an empty one; settings that are not applied."""
    assert settings() == ""
    plain = some()
    with config.patch(
        {"emulate_precision_casts": True, "cpp.max_horizontal_fusion_size": 3, "max_fusion_size": 7}
    ):
        text = settings()
        assert under("", some) == plain
    assert in_a_thread(lambda: under(text, some)) == (True, 3, 7)
    with config.patch({"emulate_precision_casts": True, "max_fusion_size": 9}):
        assert under(text, some) == (True, 3, 7)
        assert some() == (True, plain[1], 9)
    assert some() == plain


def test_what_has_no_text_is_left_out():
    """Mutant: whatever differs is written down, and cannot be read."""
    with config.patch({"_post_fusion_custom_pass": lambda nodes: nodes, "max_fusion_size": 7}):
        assert settings() == "{'max_fusion_size': 7}"


class OneConfiguration:
    """In place of a context: torch 2.11 keeps what is set a process, whichever thread asks."""

    def run(self, call: Callable[[], Any]) -> Any:
        return call()


def test_where_torch_keeps_one_configuration_a_process_nothing_of_ours_stays(monkeypatch):
    """It takes what is set at the call. Mutant: a graph's settings are set and not taken back."""
    monkeypatch.setattr("overlapc.runtime.programs.settings.Context", OneConfiguration)
    plain, text = some(), "{'max_fusion_size': 7}"
    with config.patch({"max_fusion_size": 9}):
        assert settings() == ""
        assert under("", some) == (*plain[:2], 9)
        assert under(text, some) == (*plain[:2], 7)
        assert some() == (*plain[:2], 9)

    def fails() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - it is ours
        under(text, fails)
    assert some() == plain


def gated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    y = x @ w
    return functional.all_reduce(F.silu(y) * y, "sum", dist.group.WORLD)


@pytest.mark.parametrize("how", ["by option", "around"])
def test_the_first_call_compiles_with_what_the_graph_was_compiled_with(
    how, fake_group, monkeypatch
):
    """Few rows are called first, which need no kernel; the next call is another thread's. A new
    process finds the settings in the artifact. Mutants: a spec without settings; a compilation
    that leaves them out."""
    seen: list[tuple[Any, ...]] = []

    def watching(graph: Any, inputs: Any) -> Any:
        seen.append(some())
        return as_it_is(graph, inputs)

    monkeypatch.setattr(compiling, "by_inductor", watching)
    fusing._function.cache_clear()
    set_here = {"emulate_precision_casts": True, "cpp.max_horizontal_fusion_size": 3}
    options: dict[str, Any] = {"target": SLOW_LINK}
    if how == "by option":
        options["inductor"] = set_here
    compiled = torch.compile(gated, backend="overlapc", options=options, dynamic=True)
    w = torch.randn(32, 64)
    with torch.no_grad(), config.patch({} if how == "by option" else set_here):
        compiled(torch.randn(4, 32), w)
    assert not seen

    def call() -> torch.Tensor:
        with torch.no_grad():
            return compiled(torch.randn(512, 32), w)

    in_a_thread(call)
    assert seen
    assert set(seen) == {(True, 3, config.max_fusion_size)}
