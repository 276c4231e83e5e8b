"""The tiles that a site is planned with are those of its kernels, and each is another kernel's."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from overlapc.planning.kernel_tiles import layout_of, strides_of
from overlapc.planning.problem import Problem
from overlapc.planning.signaled import configurations
from overlapc.planning.target import Target
from overlapc.planning.tiles import SWEEPS, tiles_for
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Step
from overlapc.runtime.programs.trial_programs import TrialProgram, random_matrix
from overlapc.runtime.signaled.kernels import kernel_spec_of
from overlapc.runtime.sizing import problem_of
from overlapc.runtime.spec import ChainSpec
from tests.runtime.chains import chain
from tests.runtime.programs.cases import operand, value

M, N = 512, 768
DEPTHS = (256, 264, 257)
"""Whole steps of k; no whole ones, and aligned; neither."""

MM = Step("aten.mm.default", (operand(0), operand(1)))
CAST = Step("prims.convert_element_type.default", (value(0), torch.float32))
ADD = Step("aten.add.Tensor", (value(0), operand(2)))
CHAINS = {
    "product": Program((ROWS, WHOLE), (MM,), value(0)),
    "float32": Program((ROWS, WHOLE), (MM, CAST), value(1)),
    "bias": Program((ROWS, WHOLE, WHOLE), (MM, ADD), value(1)),
    "residual": Program((ROWS, WHOLE, ROWS), (MM, ADD), value(1)),
    "gelu": Program((ROWS, WHOLE), (MM, Step("aten.gelu.default", (value(0),))), value(1)),
}
LAYOUTS = [
    *product(("row", "col"), repeat=2),
    *(("strided", "col"), ("row", "strided")),
    *(("row:1024", "col:1032"), ("row:1025", "col"), ("row", "col:1025")),
]
H100 = Target.load("h100-nvlink")
ARCHITECTURES = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def site(name: str, layouts: tuple[str, str], k: int) -> tuple[ChainSpec, list[torch.Tensor]]:
    """A chain and its operands, which lie so."""
    spec = chain("gemm_all_reduce", CHAINS[name], H100)
    like = torch.empty(0, dtype=torch.bfloat16, device="meta")
    made = [
        like.new_empty_strided(shape, strides_of(layout, *shape))
        for shape, layout in zip([(M, k), (k, N)], layouts, strict=True)
    ]
    if name in ("bias", "residual"):
        made.append(like.new_empty((N,) if name == "bias" else (M, N)))
    return spec, made


def planned(spec: ChainSpec, operands: list[torch.Tensor]) -> Problem:
    shapes, dtypes, strides = zip(*((t.shape, t.dtype, t.stride()) for t in operands), strict=True)
    return problem_of(spec, shapes, dtypes, 2, strides=strides)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_have_the_tiles_that_are_planned(architecture: str) -> None:
    """Each of a site's tiles, and no kernel has another. Mutants: configurations chosen by
    `kernel_sums` alone; strides that are not looked at; `computes_beside` that is never said."""
    target = replace(H100, architecture=architecture)
    known, others = tiles_for(architecture, "bfloat16"), set()
    for name, layouts, k in product(CHAINS, LAYOUTS, DEPTHS):
        spec, operands = site(name, layouts, k)
        tiles = configurations(planned(spec, operands), target)
        kernels = [kernel_spec_of(spec, target, operands, tile)[0] for tile in tiles]
        assert [kernel.tile for kernel in kernels] == list(tiles), (name, layouts, k)
        assert len(set(kernels)) == len(tiles)
        its = {kernel_spec_of(spec, target, operands, tile)[0].tile for tile in known}
        assert its == set(tiles)
        others.add(tiles)
    differ = architecture != "gfx942"
    assert (len(others) > 1) == differ, "where a tile is wide or sizes are odd, sites differ"


@pytest.mark.parametrize("k", DEPTHS)
def test_no_sweep_is_another_kernel(k: int) -> None:
    """So four are built for a site at most. What tiles of a graph are is said without it."""
    spec, operands = site("product", LAYOUTS[0], k)
    for tile in configurations(planned(spec, operands), H100):
        swept = [tile.swept(sweep) for sweep in SWEEPS]
        kernels = {kernel_spec_of(spec, H100, operands, its)[0] for its in swept}
        assert len(kernels) == 1
        packing = [replace(spec, takes_map=True, packed=its) for its in swept]
        packed = {kernel_spec_of(its, H100, operands)[0] for its in packing}
        assert packed == {replace(kernel, order="packed") for kernel in kernels}


@pytest.mark.parametrize("layouts", LAYOUTS)
def test_a_trial_has_operands_that_lie_as_those_of_the_site(layouts: tuple[str, str]) -> None:
    """With a program and without. Mutant: B that is always a transposed weight."""
    for name in ("product", "bias"):
        spec, operands = site(name, layouts, 257)
        problem = planned(spec, operands)
        assert problem.layouts == layouts
        tried = TrialProgram.of(problem).tensors(M, torch.device("cpu"))
        assert [t.stride() for t in tried] == [t.stride() for t in operands]
        assert [t.shape for t in tried] == [t.shape for t in operands]


def test_elements_of_a_random_matrix_are_its_own() -> None:
    for layout in ("row", "row:9", "col", "col:8", "strided"):
        made = random_matrix((6, 5), layout, torch.float32, torch.device("cpu"))
        assert made.unique().numel() == 30
    assert random_matrix((0, 5), "row", torch.float32, torch.device("cpu")).shape == (0, 5)


def test_what_is_there_but_once_has_any_stride() -> None:
    assert layout_of((77, 1), (1, 8)) == layout_of((8, 1), (3, 8)) == "row"
    assert layout_of((1, 77), (8, 1)) == layout_of((1, 8), (8, 3)) == "col"
    assert layout_of((77, 1), (2, 8)) == "row:77"
    assert layout_of((2, 4), (3, 2)) == "strided"
