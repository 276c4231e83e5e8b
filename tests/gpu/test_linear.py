"""Linear layers of few rows on a real device: values, splits, replays of CUDA graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu.linear import CHECK_SIZES, CHECKED_AS
from overlapc.codegen.linear.check import LinearCase
from overlapc.codegen.linear.choice import linear_spec_for
from overlapc.codegen.linear.kernel import build_linear
from overlapc.planning.linear.tiles import FLAT, GEMV, TILE_ROWS
from overlapc.runtime.machine import architecture_of, multiprocessors
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step
from overlapc.runtime.signaled.kernels import lowered_program

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

MM = Program(
    (ROWS, WHOLE), (Step("aten.mm.default", (Ref("operand", 0), Ref("operand", 1))),), None,
    (Ref("value", 0),),
)  # fmt: skip
SIZES = [(1000, 776), (4096, 4096), (256, 14336)]
"""n, k: ragged, whole tiles, and few columns of which many CTAs share k."""


def spec_of(way: str, rows: int, n: int, k: int, layout: str = "col"):
    device = torch.device("cuda")
    x = torch.empty(rows, k, dtype=torch.bfloat16, device="meta")
    w = torch.empty(n, k, dtype=torch.bfloat16, device="meta").t()
    w = torch.empty(k, n, dtype=torch.bfloat16, device="meta") if layout == "row" else w
    return linear_spec_for(
        way, rows, x, [w], lowered_program(MM, [x, w]),
        architecture=architecture_of(device), sms=multiprocessors(device),
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["col", "row"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("way", "rows"), [(w, r) for w in (GEMV, FLAT) for r in TILE_ROWS[w]])
def test_values(way, rows, sizes, layout):
    kernel = build_linear(spec_of(way, rows, *sizes, layout))
    case = LinearCase.random(kernel, (rows, *sizes), "cuda")
    for _ in range(3):
        case.outs[0].fill_(torch.nan)
        case.run()
        assert case.error() <= 1


@pytest.mark.parametrize("kind", CHECKED_AS)
@pytest.mark.parametrize(("way", "rows"), [(GEMV, 1), (GEMV, 2), (FLAT, 8), (FLAT, 64)])
def test_every_kind(way, rows, kind):
    """Narrow weights with scales and zero points, [k, n], bias and GELU among them."""
    for n, k in CHECK_SIZES:
        kernel = build_linear(CHECKED_AS[kind].spec(way, rows, n, k))
        case = LinearCase.random(kernel, (rows, n, k), "cuda")
        for _ in range(2):
            for out in case.outs:
                out.fill_(torch.nan)
            case.run()
            assert case.error() <= 1


@pytest.mark.parametrize("way", [GEMV, FLAT])
def test_a_split_k_gives_the_same_bits_every_time(way):
    """The mutant that adds in the order of arrival does not."""
    spec = replace(spec_of(way, TILE_ROWS[way][0], 4096, 14336), splits=8)
    case = LinearCase.random(build_linear(spec), (1, 4096, 14336), "cuda")
    case.run()
    first = case.outs[0].clone()
    for _ in range(200):
        case.run()
        assert torch.equal(case.outs[0], first)
    assert case.error() <= 1


def test_a_compiled_layer_in_a_cuda_graph_sees_its_weights_change():
    layer = torch.nn.Linear(4096, 1024, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(4, 4096, device="cuda", dtype=torch.bfloat16)
    run = torch.compile(layer, backend="overlapc", options={"linear": "flat"})
    with torch.no_grad():
        run(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run(x)
        for _ in range(3):
            layer.weight.normal_()
            graph.replay()
            wanted = F.linear(x.double(), layer.weight.double(), layer.bias.double())
            assert (found.double() - wanted).abs().max() < 0.02 * wanted.abs().max()


@pytest.mark.parametrize("rows", [1, 4, 64])
def test_a_compiled_layer_is_launched_again_on_other_rows(rows):
    """By addresses alone, with counters that its graph makes: k is split here."""
    layers = [torch.nn.Linear(4096, 1024, bias=False), torch.nn.Linear(1024, 4096)]
    model = torch.nn.Sequential(*layers).to(device="cuda", dtype=torch.bfloat16)
    run = torch.compile(model, backend="overlapc", options={"linear": "flat"})
    with torch.no_grad():
        for _ in range(4):
            x = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)
            found, wanted = run(x), _exact(model, x)
            assert (found.double() - wanted).abs().max() < 0.02 * wanted.abs().max()


def _exact(model, x):
    up, down = model
    between = F.linear(x.double(), up.weight.double()).bfloat16().double()
    return F.linear(between, down.weight.double(), down.bias.double())
