"""Which block each CTA of an attention of many rows is of, and what launches say of it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from overlapc.codegen.attention.backward import build_backward
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.planning.attention import launch_order

SPEC = AttentionSpec("float16", 16, 16, groups=3, after=0)
TILE = AttentionTile(16, 16, 4, 1)
BATCH, HEADS, ROWS, KEYS = 2, 12, 48, 32
HEAD_BYTES = KEYS * 32 * 2
"""Of keys and values of one head; of queries and gradients of its group four and a half times."""


@pytest.mark.parametrize("together", [1, 3, 4, 7, 8])
def test_longest_blocks_of_the_first_heads_begin_first(interpreted, together):
    """Mutants: ``own`` is ``together``; ``place`` is the program; ``first`` is left out."""
    blocks, units = 5, 7 if together < 8 else 8
    order = interpreted("attention_cases.dealt_out", blocks, units, together)
    wanted = [
        (turn, unit)
        for first in range(0, units, together)
        for turn in range(blocks)
        for unit in range(first, min(first + together, units))
    ]
    assert order == wanted


class Launches:
    """In the place of a module's kernel: what it is told."""

    def __init__(self, kernel) -> None:
        self.names, self.told = kernel.arg_names, {}

    def __getitem__(self, grid):
        return lambda *given, **named: self.told.update(zip(self.names, given, strict=False))


def without_launching(module) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(module), "KERNEL": Launches(module.KERNEL)})


def sides(*heads_and_rows):
    return [torch.randn(BATCH, heads, rows, 16).half() for heads, rows in heads_and_rows]


# Keys of as many heads, of eight; then how many heads of queries, and of keys, are dealt together.
FITTING = [(0.5, 3, 1), (3, 9, 1), (4, 12, 1), (9, 24, 2), (100, 24, 8)]


@pytest.mark.parametrize(("fitting", "of_rows", "of_keys"), FITTING)
def test_launches_say_how_many_heads_are_dealt_together(monkeypatch, fitting, of_rows, of_keys):
    """Mutants: heads of one sequence; rows in the place of keys; a group counted once."""
    monkeypatch.setattr(launch_order, "TOGETHER_BYTES", int(fitting * HEAD_BYTES))
    for after in (0, None):
        spec = replace(SPEC, after=after)
        is_causal = after is not None
        q, k, v, out = sides((HEADS, ROWS), (HEADS // 3, KEYS), (HEADS // 3, KEYS), (HEADS, ROWS))
        forward = build_attention(spec, TILE)
        forward = replace(forward, module=without_launching(forward.module))
        forward(q, k, v, out, redone=torch.zeros(1, dtype=torch.int32))
        assert forward.module.KERNEL.told["together"] == (of_rows if is_causal else 1)
        backward = build_backward(spec, lambda spec, part: TILE)
        modules = {part: without_launching(module) for part, module in backward.modules.items()}
        backward = replace(backward, modules=modules)
        lse = torch.zeros(BATCH, HEADS, ROWS)
        backward(q, k, v, out, lse, torch.randn_like(out), q_gradient=torch.empty_like(q),
                 k_gradient=torch.empty_like(k), v_gradient=torch.empty_like(v))  # fmt: skip
        assert modules["queries"].KERNEL.told["together"] == (of_rows if is_causal else 1)
        assert modules["keys"].KERNEL.told["together"] == (of_keys if is_causal else 1)
