"""The op in place of linear layers, and graphs that hold it: values, dispatch, and bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor.utils import run_and_get_code

import overlapc
from overlapc.errors import KernelError
from overlapc.planning.linear.regions import FORCED, LIBRARY, Regions
from overlapc.planning.linear.tiles import FLAT, GEMV
from overlapc.runtime.linear import op as linear
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.ops import by_library_of, calls_of
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

X, W, B = (Ref("operand", index) for index in range(3))
MM = Program((ROWS, WHOLE), (Step("aten.mm.default", (X, W)),), None, (Ref("value", 0),))
ADDMM = Program(
    (ROWS, WHOLE, WHOLE), (Step("aten.addmm.default", (B, X, W)),), None, (Ref("value", 0),)
)
N, K = 75, 150


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def operands(m, program=MM, dtype=torch.float32, layout="col"):
    w = torch.randn(N, K).t() if layout == "col" else torch.randn(K, N)
    found = [torch.randn(m, K), w, torch.randn(N)]
    return [tensor.to(dtype) for tensor in found[: len(program.modes)]]


def exact(program, given):
    x, w, *bias = (tensor.double() for tensor in given)
    return x @ w + (bias[0] if bias else 0)


def tolerance(dtype):
    return {torch.float32: 5e-5, torch.bfloat16: 2e-1}[dtype]


@pytest.mark.parametrize("m", [1, 2, 3, 8, 33, 64])
@pytest.mark.parametrize("program", [MM, ADDMM], ids=["mm", "addmm"])
@pytest.mark.parametrize("layout", ["col", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_of_a_processor(m, program, layout, dtype):
    given = operands(m, program, dtype, layout)
    spec = LayerSpec(program, FORCED, f"{m} {layout} {dtype} {len(program.modes)}")
    found = linear.OP(given, spec.text())
    wanted = exact(program, given)
    assert found.is_contiguous()
    assert found.dtype == dtype
    assert (found.double() - wanted).abs().max() < tolerance(dtype)
    assert calls_of(spec.site) == {GEMV if m < 3 else FLAT: 1}


@pytest.mark.parametrize("m", [0, 1, 5, 65, 300])
def test_the_library_computes_bit_for_bit_what_it_does(m):
    given = operands(m, ADDMM)
    spec = LayerSpec(ADDMM, Regions(2, 3, 5), f"library {m}")
    assert torch.equal(linear.OP(given, spec.text()), torch.addmm(given[2], given[0], given[1]))
    assert calls_of(spec.site) == {LIBRARY: 1}


def test_on_a_device_the_library_has_what_follows_it_fused(monkeypatch):
    """On a processor, where nothing follows it if rows vary, steps run as they stand. The mutant
    that never fuses makes another kernel of each step."""
    steps = (*MM.steps, Step("aten.relu.default", (Ref("value", 0),)),
             Step("aten.mul.Tensor", (Ref("value", 1), Ref("value", 0))))  # fmt: skip
    program = Program(MM.modes, steps, None, (Ref("value", 2),))
    given, fused = operands(3), torch.randn(3, N)
    monkeypatch.setattr(
        "overlapc.runtime.linear.op.fusing.function", lambda its, settings: lambda *_: (fused,)
    )
    library = linear._library_of.__wrapped__(program, "")
    x, w = given
    assert torch.equal(library(given), (x @ w).relu() * (x @ w))
    assert library([one.to("meta") for one in given]) is fused


def test_opcheck():
    spec = LayerSpec(ADDMM, FORCED, "checked").text()
    for m in (1, 4):
        torch.library.opcheck(linear.OP, (operands(m, ADDMM), spec))


def test_what_no_kernel_computes_the_library_does_and_says_so(monkeypatch):
    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_75")
    spec = LayerSpec(MM, FORCED, "of an old device")
    given = operands(4)
    assert torch.equal(linear.OP(given, spec.text()), given[0] @ given[1])
    assert calls_of(spec.site) == {LIBRARY: 1}
    (why,) = by_library_of(spec.site)
    assert "sm_75" in why


def test_in_a_capture_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(linear, "_is_capturing", lambda device: True)
    spec = LayerSpec(MM, FORCED, "captured")
    given = operands(4, dtype=torch.bfloat16)
    assert torch.equal(linear.OP(given, spec.text()), given[0] @ given[1])
    assert by_library_of(spec.site) == {linear.NOT_LOADED: 1}


@pytest.mark.parametrize("loaded", ["", "offset", "row stride", "one row"])
def test_what_triton_compiles_anew_was_not_loaded(monkeypatch, loaded):
    """In a capture it would be compiled; of the same kind of rows it runs."""
    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_90")

    def started(given, *_):
        return given[0] @ given[1], lambda given, *_: given[0] @ given[1]

    monkeypatch.setattr(linear, "by_kernel", lambda *_: started)
    x, w, longer = (torch.randn(*s).bfloat16() for s in ((5, 160), (160, N), (4 * 161,)))
    other = {
        "": x[:4],
        "offset": longer[1:641].view(4, 160),
        "row stride": longer.view(4, 161)[:, :160],
        "one row": x[:1],
    }[loaded]
    spec = LayerSpec(MM, Regions(1, 1, 65), f"loaded {loaded}")
    linear.OP([x[:5], w], spec.text())
    monkeypatch.setattr(linear, "_is_capturing", lambda device: True)
    linear.OP([other, w], spec.text())
    assert by_library_of(spec.site) == ({linear.NOT_LOADED: 1} if loaded else {})


def test_a_kernel_that_fails_leaves_its_calls_to_the_library(monkeypatch):
    tried = []

    def fails(*arguments):
        def run(given, *_):
            tried.append(given)
            raise KernelError("out of shared memory", where="here", remedy="none")

        return run

    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(linear, "by_kernel", fails)
    spec = LayerSpec(MM, FORCED, "fails")
    given = operands(4, dtype=torch.bfloat16)
    for _ in range(3):
        assert torch.equal(linear.OP(given, spec.text()), given[0] @ given[1])
    assert calls_of(spec.site) == {LIBRARY: 3}
    assert by_library_of(spec.site) == {"out of shared memory": 3}
    assert len(tried) == 1


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 70])
def test_a_call_outside_of_the_regions_is_the_librarys(rows):
    """Below, inside and above, and counted once. Mutants: either end is off by one, the library's
    call is not counted, the regions are not looked at."""
    spec = LayerSpec(MM, Regions(2, 2, 5), f"outside {rows}")
    layer = linear.Layer(spec, calls_of(spec.site), by_library_of(spec.site))
    given, ours = operands(rows), torch.full((rows, N), 7.0)
    layer._ours = lambda *_: ours
    found = layer.caller()(given, None, 0)
    is_ours = 2 <= rows < 5
    assert (found is ours) == is_ours
    assert is_ours or torch.equal(found, given[0] @ given[1])
    assert calls_of(spec.site) == ({} if is_ours else {LIBRARY: 1})
    assert by_library_of(spec.site) == {}


def test_a_kernel_that_fails_once_it_ran_leaves_its_call_to_the_library(monkeypatch):
    """The mutant that forgets nothing tries what failed again."""
    tried = []

    def fails(given, *_):
        tried.append(given)
        raise KernelError("gone", where="here", remedy="none")

    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(
        linear, "by_kernel", lambda *_: lambda given, *_: (given[0] @ given[1], fails)
    )
    spec = LayerSpec(MM, FORCED, "fails later")
    given = operands(4, dtype=torch.bfloat16)
    for _ in range(3):
        assert torch.equal(linear.run(given, spec.text()), given[0] @ given[1])
    assert calls_of(spec.site) == {FLAT: 2, LIBRARY: 1}
    assert by_library_of(spec.site) == {"gone": 1}
    assert len(tried) == 1


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", LayerSpec(MM, FORCED).text().replace("flat_from", "flat_to"),
     LayerSpec(MM, FORCED).text().replace('"library_from":65', '"library_from":2')],
    ids=str,
)  # fmt: skip
def test_another_text_is_refused(text):
    with pytest.raises(KernelError, match="no specification of a linear layer"):
        linear.OP(operands(1), text)


def test_a_text_is_read_back():
    spec = LayerSpec(ADDMM, Regions(1, 2, 7), "a")
    assert LayerSpec.parse(spec.text()) == spec
    assert spec.key == LayerSpec(ADDMM, Regions(1, 2, 7), "b").key


def test_every_result_of_one_op():
    """In each way what single ops give, contiguous, and counted once."""
    o = [Ref("operand", index) for index in range(5)]
    steps = (Step("aten.mm.default", (o[0], o[1])), Step("aten.addmm.default", (o[2], o[0], o[3])),
             Step("aten.mm.default", (o[0], o[4])))  # fmt: skip
    modes = (ROWS, *[WHOLE] * 4)
    program = Program(modes, steps, None, (Ref("value", 0), Ref("value", 1), Ref("value", 2)))
    spec = LayerSpec(program, FORCED, "several")
    w, v, u = torch.randn(K, N), torch.randn(7, K).t(), torch.randn(K, N)
    for m, way in ((1, GEMV), (5, FLAT), (70, LIBRARY), (0, LIBRARY)):
        x, b = torch.randn(m, K), torch.randn(7)
        found = linear.SEVERAL([x, w, b, v, u], spec.text())
        for one, wanted in zip(found, (x @ w, x @ v + b, x @ u), strict=True):
            close(one, wanted)
            assert one.is_contiguous()
        assert calls_of(spec.site).pop(way) >= 1
    torch.library.opcheck(linear.SEVERAL, ([torch.randn(3, K), w, b, v, u], spec.text()))


# Whole graphs


class Tied(nn.Module):
    """Embeds and projects by one weight, as language models do."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(N, K), nn.Linear(K, N, bias=False)
        self.inner = nn.Linear(K, K)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(F.gelu(self.inner(self.embed(ids))))


def compiled(function, **options):
    return torch.compile(function, backend="overlapc", options={"linear": "flat", **options})


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-4)


def sites():
    return [site for site in overlapc.report().sites if site.kind == "linear"]


def test_tied_weights():
    model, ids = Tied(), torch.arange(5)
    run = compiled(model)
    close(run(ids), model(ids))
    assert [site.calls for site in sites()[-2:]] == [{FLAT: 1}] * 2
    # ... and one that is changed in place is changed in both.
    model.embed.weight.mul_(-2)
    close(run(ids), model(ids))


def test_parameters_that_change_in_place_are_seen():
    layer = nn.Linear(K, N)
    x, run = torch.randn(2, K), compiled(layer)
    close(run(x), layer(x))
    layer.weight.copy_(torch.randn(N, K))
    layer.bias.zero_()
    close(run(x), layer(x))


@pytest.mark.parametrize("m", [0, 1, 2, 7, 64, 65])
def test_every_number_of_rows(m):
    layer, x = nn.Linear(K, N), torch.randn(m, K)
    close(compiled(layer)(x), layer(x))


class Gated(nn.Module):
    """Layers with a bias, and what follows them."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(K, N), nn.Linear(K, N), nn.Linear(N, K)

    def forward(self, x):
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


@pytest.mark.long
@pytest.mark.parametrize("dynamic", [True, False], ids=["rows vary", "rows known"])
def test_on_a_processor_what_follows_is_fused_as_without_the_op(dynamic):
    """Inductor calls a library for each GEMM and makes one kernel of what stands between them: the
    op, which takes no epilogue there, leaves it the same. Mutant: ``may_fuse`` of a processor."""
    model, x, kernels = Gated(), torch.randn(5, K), []
    for choice in ({}, {"backend": "overlapc", "options": {"linear": "flat"}}):
        torch._dynamo.reset()
        found, (code,) = run_and_get_code(torch.compile(model, dynamic=dynamic, **choice), x)
        close(found, model(x))
        kernels.append(re.findall(r"cpp_pybinding\(.*?'''\)", code, re.DOTALL))
    assert "overlapc_linear" in code
    assert kernels[0] == kernels[1]
    assert kernels[0]


def test_a_new_row_count_compiles_nothing():
    layer = nn.Linear(K, N)
    run = compiled(layer)
    x = torch.randn(5, K)
    torch._dynamo.mark_dynamic(x, 0)
    found, (code,) = run_and_get_code(run, x)
    close(found, layer(x))
    # ... and the generated code goes to the op's function past torch's dispatcher.
    assert "extern_kernels.overlapc_linear([" in code
    assert "torch.ops.overlapc.linear.default([" not in code
    with torch.compiler.set_stance("fail_on_recompile"):
        for m in (1, 2, 3, 64, 65, 200):
            # Of one row dynamo makes another graph, as it does for every backend.
            if m > 1:
                x = torch.randn(m, K)
                close(run(x), layer(x))
    assert sites()[-1].calls == {FLAT: 3, GEMV: 1, LIBRARY: 2}
    assert sites()[-1].shape.startswith("~")


def by_shared_weights(x, w, packed):
    """Batches that share a weight, and parts of a parameter, as models spell them."""
    return (
        x.transpose(1, 2) @ w,
        torch.einsum("bshk,nk->hbsn", x, packed),
        torch.bmm(x[0], w[None].expand(len(x[0]), -1, -1)),
        *(F.linear(x, part) for part in packed.split([20, 30, N - 50])),
    )


def test_batches_that_share_a_weight_and_parts_of_a_parameter():
    """Changed in place they are seen. The mutant that leaves the result in the shape of one GEMM of
    all batches fails."""
    x, w, packed = torch.randn(2, 3, 4, K), torch.randn(K, N), torch.randn(N, K)
    run, before = compiled(by_shared_weights), len(sites())
    for _ in range(2):
        for one, wanted in zip(run(x, w, packed), by_shared_weights(x, w, packed), strict=True):
            close(one, wanted)
            assert one.stride() == wanted.stride()
        packed.mul_(-2)
    assert [site.calls for site in sites()[before:]] == [{FLAT: 2}] * 6


@pytest.mark.parametrize("strided", ["rows", "columns", "broadcast"])
def test_weights_that_are_not_contiguous(strided):
    w = {
        "rows": torch.randn(2 * N, K)[::2],
        "columns": torch.randn(N, 2 * K)[:, ::2],
        "broadcast": torch.randn(1, K).expand(N, K),
    }[strided]
    x = torch.randn(3, K)
    close(compiled(F.linear)(x, w), F.linear(x, w))


@pytest.mark.parametrize("spelled", ["cast", "turned"])
def test_weights_of_int8(spelled):
    """Widened before the product, and scaled after it; changed in place they are seen."""
    x, scale = torch.randn(3, K), torch.rand(N)
    w = torch.randint(-127, 128, (N, K), dtype=torch.int8)

    def layer(x, w, scale):
        if spelled == "cast":
            return x @ w.t().to(x.dtype) * scale
        return F.linear(x, w.to(x.dtype)) * scale

    run = compiled(layer)
    for _ in range(2):
        wanted = (x.double() @ w.double().t()) * scale.double()
        torch.testing.assert_close(run(x, w, scale).double(), wanted, rtol=1e-4, atol=1e-2)
        w.neg_()
    assert sites()[-1].shape == f"3x{N}x{K} float32 by int8"
    assert sites()[-1].calls == {FLAT: 2}


class Qkv(nn.Module):
    """Of grouped heads, of which each is read by something else."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(K, N), nn.Linear(K, 8), nn.Linear(K, 8)

    def forward(self, x):
        return self.q(x).sin().sum(-1) * (self.k(x) * self.v(x).exp()).sum(-1)


@pytest.mark.parametrize("trains", [False, True], ids=["inference", "training"])
def test_layers_of_the_same_rows_are_one_op(monkeypatch, trains):
    """Where a launch is one of a device: here a processor is taken to be one."""
    monkeypatch.setattr("overlapc.passes.dispatch_linears.may_fuse", lambda layer: True)
    monkeypatch.setattr("overlapc.passes.dispatch_linears.takes", lambda layer: False)
    model, x = Qkv(), torch.randn(5, K)
    run = compiled(model)
    with torch.set_grad_enabled(trains):
        found, wanted = run(x), model(x)
        close(found, wanted)
        if trains:
            leaves = list(model.parameters())
            pairs = zip(
                *(torch.autograd.grad(one.sum(), leaves) for one in (found, wanted)), strict=True
            )
            for one, other in pairs:
                close(one, other)
    kind = "forward" if trains else "inference"
    (site,) = [site for site in sites() if "+" in site.shape and site.graph == kind]
    assert (site.shape, site.calls) == (f"5x{N}+8+8x{K} float32", {FLAT: 1})
    model.k.weight.data.mul_(-1)
    with torch.set_grad_enabled(trains):
        close(run(x), model(x))


ZEROS = {"zeros": "zero points", "uint8": "zero points",
         "floating zeros": "float32 zero points"}  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["columns", "groups", "whole", "places", "repeated", "zeros", "uint8", "floating zeros"]
)
def test_weights_that_are_scaled_before_the_product(kind):
    """As torchao dequantises; changed in place they are seen."""
    x, w = torch.randn(3, K), torch.randint(-127, 128, (N, K), dtype=torch.int8)
    shapes = {"columns": (N, 1), "groups": (N, 10, 1), "whole": (), "places": (N, K)}
    shapes |= {"repeated": (N, 10)} | dict.fromkeys(ZEROS, (N, 10, 1))
    scale = torch.rand(shapes[kind])
    zero = torch.randint(-127, 128, scale.shape, dtype=torch.int8)
    if kind in ("uint8", "floating zeros"):
        w, zero = w.view(torch.uint8), zero.view(torch.uint8)
    zero = zero + torch.rand(scale.shape) if kind == "floating zeros" else zero

    def layer(x, w, scale):
        wide = w.view(N, 10, 15) if len(scale.shape) == 3 else w
        wide = wide if kind == "uint8" else wide.to(torch.float32)
        if kind == "uint8":
            wide = (wide.to(torch.int32) - zero.to(torch.int32)).to(torch.float32)
        elif kind in ZEROS:
            wide = wide - zero.to(torch.float32)
        each = scale.repeat_interleave(15, dim=1) if kind == "repeated" else scale
        return F.linear(x, (wide * each).view(N, K))

    run = compiled(layer)
    for _ in range(2):
        torch.testing.assert_close(run(x, w, scale), layer(x, w, scale), rtol=1e-4, atol=1e-2)
        w.neg_()
        scale.mul_(0.5)
        zero.neg_()
    groups = {"groups": "groups of 15", "places": "groups of 1", "repeated": "groups of 15"}
    scaled = groups.get(kind, "columns")
    scaled = f"groups of 15 from {ZEROS[kind]}" if kind in ZEROS else scaled
    held = str(w.dtype).removeprefix("torch.")
    assert sites()[-1].shape.endswith(f"by {held} scaled in {scaled}")
    assert sites()[-1].calls == {FLAT: 2}


CUT = {
    "what is scaled": lambda w, scale: (w.float() * scale).to(torch.int32).float(),
    "a float8 weight": lambda w, scale: w.to(torch.float8_e4m3fn).to(torch.int32).float() * scale,
}


@pytest.mark.parametrize("kind", CUT)
def test_what_is_cut_to_integers_before_the_product_is_no_weight(kind):
    x, w = torch.randn(3, K), torch.randint(-9, 9, (N, K), dtype=torch.int8)
    scale = 3 * torch.rand(N, 1)

    def layer(x, w, scale):
        return F.linear(x, CUT[kind](w, scale))

    before = len(sites())
    found = compiled(layer)(x, w, scale)
    torch.testing.assert_close(found, layer(x, w, scale), rtol=1e-4, atol=1e-3)
    assert len(sites()) == before


def test_rows_that_are_not_contiguous():
    x, w = torch.randn(K, 6).t()[::2], torch.randn(N, K)
    close(compiled(F.linear)(x, w), F.linear(x, w))


def test_gradients():
    layer, x = nn.Linear(K, N), torch.randn(3, K)
    with torch.enable_grad():
        leaves = [x.requires_grad_(), layer.weight, layer.bias]
        found = torch.autograd.grad(compiled(layer)(x).sin().sum(), leaves)
        wanted = torch.autograd.grad(layer(x).sin().sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        close(one, other)


TWICE = """
import json, sys, torch, overlapc
from torch._dynamo.utils import counters
torch.manual_seed(0)
layer, x = torch.nn.Linear(40, 30), torch.randn(4, 40)
with torch.no_grad():
    run = torch.compile(layer, backend="overlapc", options={"linear": sys.argv[1]})
    error = (run(x) - layer(x)).abs().max().item()
sites = [(s.kind, s.decision, s.calls) for s in overlapc.report().sites]
hits = counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"]
print(json.dumps([sites, error, hits]))
"""


@pytest.mark.long
def test_a_warm_cache_runs_the_op_and_knows_its_sites(tmp_path):
    def once(choice):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-W", "ignore", "-c", TWICE, choice]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    cold, warm, off = once("flat"), once("flat"), once("auto")
    assert cold[0] == warm[0] == [["linear", "rewritten", {"flat": 1}]]
    assert off[0] == []
    assert (cold[2], off[2]) == (0, 0)
    assert warm[2] > 0
    assert max(run[1] for run in (cold, warm, off)) < 1e-5
