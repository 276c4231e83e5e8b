"""Graphs that hold the op in place of linear layers: values, dispatch, row counts and caches."""

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
from overlapc.planning.linear.regions import LIBRARY
from overlapc.planning.linear.tiles import FLAT, GEMV
from tests.runtime.linear.test_op import K, N, close

pytestmark = pytest.mark.usefixtures("fresh")


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
