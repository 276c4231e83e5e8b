"""What Triton compiles launches of attention for: not for what differs from call to call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from overlapc.codegen.attention.backward import build_backward
from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.tiles import AttentionTile
from tests.codegen import score_programs as programs
from tests.codegen.attention_specs import BRAIN
from tests.codegen.test_specialised import compiled_for

SPEC = replace(BRAIN, groups=2)
PAGED = replace(SPEC, after=0, align="bottom_right", lengths=True, lse=False)
TILE = AttentionTile(16, 16, 4, 1)
ROWS = (1, 16, 17, 32, 100)
WIDTHS = (1, 2, 16, 17)
"""Of tables of pages."""
PAGE = 16


class Recorder:
    """Stands for a kernel of Triton's; remembers what each launch would be compiled for."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.arg_names, self.found = kernel, kernel.arg_names, []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **named: Any) -> None:
            self.found.append(compiled_for(self.kernel, *arguments, **named))

        return launch


def recording(module: Any) -> Any:
    """A generated module whose kernels are ``Recorder``s."""
    kernels = {name for name in ("KERNEL", "FIND_KEPT", "FIND_FLOORS") if hasattr(module, name)}
    return SimpleNamespace(
        **vars(module) | {name: Recorder(getattr(module, name)) for name in kernels}
    )


def sides(rows: int, keys: int, heads: int = 4) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values and room for a result."""
    sizes = ((heads, rows), (heads // 2, keys), (heads // 2, keys), (heads, rows))
    return tuple(torch.empty(3, heads, own, 16, dtype=torch.bfloat16) for heads, own in sizes)


def counter() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int64)


def test_no_length_of_a_cache_and_no_width_of_a_table(private_cache):
    """Mutants: ``keys``, ``splits`` or ``table_stride`` is no longer named in the template's
    ``do_not_specialize``."""
    kernel = build_decode(PAGED, Cache(page=PAGE), TILE)
    kernel = replace(kernel, module=recording(kernel.module))
    lengths = torch.zeros(3, dtype=torch.int32)
    for width in WIDTHS:
        q, _, _, out = sides(1, 1)
        _, k, v, _ = (side[:, :, :PAGE] for side in sides(1, PAGE))
        for splits in (2, 16):
            kernel(
                q, k, v, out, splits=splits, workspace=kernel.workspace(q, splits),
                lengths=lengths, table=torch.zeros(3, width, dtype=torch.int32), redone=counter(),
            )  # fmt: skip
    assert len(kernel.module.KERNEL.found) == 2 * len(WIDTHS)
    assert len(set(kernel.module.KERNEL.found)) == 1


def test_no_number_of_rows_of_a_prefill(private_cache):
    """Mutant: ``rows`` is no longer named there. For keys a kernel has two: masks of multiples of
    16 are loaded several numbers at a time."""
    kernel = build_attention(SPEC, TILE)
    kernel = replace(kernel, module=recording(kernel.module))
    for rows in ROWS:
        for keys in (32, 33):
            q, k, v, out = sides(rows, keys)
            kernel(q, k, v, out, lse=torch.empty(3, 4, rows), redone=counter())
    assert len(set(kernel.module.KERNEL.found)) == 2


def test_no_number_of_rows_that_a_mask_is_looked_through_for(private_cache):
    """Mutants: the same of ``find_floors`` and ``find_kept``."""
    kernel = build_attention(replace(SPEC, program=programs.ADDED), TILE)
    kernel = replace(kernel, module=recording(kernel.module))
    for rows in ROWS:
        q, k, v, out = sides(rows, 1024)
        mask = torch.empty(1, 1, rows, 1024)
        kernel(q, k, v, out, inputs=[mask], lse=torch.empty(3, 4, rows), redone=counter())
    for name in ("FIND_FLOORS", "FIND_KEPT", "KERNEL"):
        assert len(getattr(kernel.module, name).found) == len(ROWS), name
        assert len(set(getattr(kernel.module, name).found)) == 1, name


@pytest.mark.parametrize("heads", [4, 2])
def test_no_number_of_rows_of_a_backward(private_cache, heads):
    """Mutants: the same of each kernel; of two heads, what is kept of rows lies in one tensor, the
    second of it at a multiple of 16 bytes for some numbers of rows alone."""
    spec = replace(SPEC, program=programs.ADDED)
    backward = build_backward(spec, lambda spec, part: TILE, [0])
    modules = {part: recording(module) for part, module in backward.modules.items()}
    backward = replace(backward, modules=modules)
    for rows in ROWS:
        q, k, v, out = sides(rows, 32, heads)
        mask = torch.empty(3, heads, rows, 32)
        backward(q, k, v, out, torch.empty(3, heads, rows), out.clone(), q_gradient=q.clone(),
                 k_gradient=k.clone(), v_gradient=v.clone(), inputs=[mask],
                 input_gradients=[mask.clone()])  # fmt: skip
    assert set(modules) == {"rows", "shares", "keys", "queries", "input 0"}
    for part, module in modules.items():
        assert len(set(module.KERNEL.found)) == 1, part
