"""Packed order in graphs: who reads tiles where they lie, and that it costs no kernel more."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from overlapc.passes import chain_specs
from tests.passes.catalogue import all_reduce
from tests.passes.emission import generated
from tests.targets import machine

SLOW = machine("few-rows", 4e7)
GPU = replace(
    SLOW, device="cuda", architecture="sm_80", communication_sms=2,
    gemm=tuple(replace(r, resident=6, tile_rows=64, tile_columns=64) for r in SLOW.gemm),
)  # fmt: skip
"""Where one row of tiles can be cut in no other way, it is packed."""
BATCH, M, N, K = 2, 60, 1000, 24
KERNEL = re.compile(r"^(cpp_fused_\w+) = async_compile\.cpp_pybinding\(\[(.*)\]", re.MULTILINE)


def residual_norm(x, w, r, scale):
    """What follows a row-parallel layer in Llama."""
    y = all_reduce(F.linear(x, w)) + r
    return F.rms_norm(y, (N,), scale).bfloat16(), y


def norm(x, w, r, scale):
    return F.layer_norm(all_reduce(F.linear(x, w)), (N,), scale, r[0])


def batches(x, w, r, scale):
    """As a model of sequences spells it."""
    y = all_reduce(F.linear(x.view(BATCH, -1, K), w)) + r.view(BATCH, -1, N)
    return F.rms_norm(y, (N,), scale)


def loss(x, w, r, scale):
    return (all_reduce(F.linear(x, w)) - r).square().mean()


def spread(x, w, r, scale):
    return all_reduce(F.linear(x, w)).unsqueeze(0).expand(3, -1, -1) * scale


FUSED = {f.__name__: f for f in (residual_norm, norm, batches, loss, spread)}


def returned(x, w, r, scale):
    y = all_reduce(F.linear(x, w))
    return y, y + r


def viewed(x, w, r, scale):
    return all_reduce(F.linear(x, w)).view(-1)


def multiplied(x, w, r, scale):
    return all_reduce(F.linear(x, w)) @ w


def sorted_rows(x, w, r, scale):
    return all_reduce(F.linear(x, w)).sort(-1).values


def restrided(x, w, r, scale):
    return all_reduce(F.linear(x, w)).as_strided((M, 10), (N, 2)) + 1


def library_only(x, w, r, scale):
    """Pointwise, and Inductor has no kernel of it."""
    return torch.special.airy_ai(all_reduce(F.linear(x, w)))


def unread(x, w, r, scale):
    all_reduce(F.linear(x, w))
    return r + 1


OTHERS = {
    f.__name__: f
    for f in (returned, viewed, multiplied, sorted_rows, restrided, library_only, unread)
}


def operands():
    return tuple(torch.randn(shape) for shape in ((M, K), (N, K), (M, N), (N,)))


def site_of(explained, function, *inputs, dynamic=None):
    with torch.no_grad():
        found = explained(function, *inputs, target=GPU, overlap="signaled", dynamic=dynamic)
    (site,) = found.report.sites
    assert site.plan is not None, site
    return site, found


@pytest.mark.parametrize("name", FUSED)
def test_pointwise_ops_and_reductions_read_tiles(name, explained):
    site, found = site_of(explained, FUSED[name], *operands())
    assert (site.decision, site.plan.order, site.plan.problem.takes_map) == (
        "rewritten", "packed", True,
    )  # fmt: skip
    assert "aten.permute.default(%" in found.graphs["inference"][1]


@pytest.mark.parametrize("name", OTHERS)
def test_whoever_else_reads_keeps_rows(name, explained):
    site, found = site_of(explained, OTHERS[name], *operands())
    assert not site.plan.problem.takes_map
    assert site.plan.by == "rows"
    assert '"packed":null' in found.graphs["inference"][1]


def test_rows_that_vary_keep_rows(explained):
    x, *rest = operands()
    torch._dynamo.mark_dynamic(x, 0)
    site, _ = site_of(explained, norm, x, *rest)
    assert not site.plan.problem.takes_map


def test_golden(explained, golden):
    golden(site_of(explained, residual_norm, *operands())[1].text())


def kernels(function, **how):
    """Kernels of the code that Inductor writes, with what each is given; none is built."""
    with torch.no_grad():
        (code,) = generated(torch.compile(function, **how), operands())
    return KERNEL.findall(code)


OURS = {"backend": "overlapc", "options": {"target": GPU, "overlap": "signaled"}}


@pytest.fixture
def own_cache(tmp_path, monkeypatch, fake_group):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


@pytest.mark.parametrize("name", ["residual_norm", pytest.param("norm", marks=pytest.mark.long)])
def test_residual_and_norm_are_one_kernel_over_tiles(name, own_cache):
    """Given what the plain graph's is: the product, residual and weight, sum, means and norm."""
    plain = kernels(FUSED[name], backend="inductor")
    assert len(plain) == 1
    ours = kernels(FUSED[name], **OURS)
    assert [given for _, given in ours] == [given for _, given in plain]
    assert "int" not in ours[0][1]


def test_a_pass_over_memory_more_would_show(own_cache, monkeypatch):
    """Before a GEMM, were it packed all the same: a small kernel puts tiles in rows."""
    monkeypatch.setattr(chain_specs, "takes_map", lambda chain: True)
    assert kernels(multiplied, backend="inductor") == []
    ((_, given),) = kernels(multiplied, **OURS)
    assert given == "'const float*', 'float*'"
