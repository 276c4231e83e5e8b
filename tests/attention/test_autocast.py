"""Under autocast attention is found, and gives what eager gives there: in its dtype, and no further
from float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._higher_order_ops.wrap import wrap_with_autocast
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from overlapc import ledger
from overlapc.graphs import autocast
from overlapc.graphs.attention import problems
from overlapc.graphs.attention.finding import find_sites
from overlapc.graphs.attention.norms.lengths import Norms
from overlapc.graphs.attention.site import Attention
from overlapc.graphs.canonical import text
from tests.attention import latent_cache
from tests.attention.catalogue import plain
from tests.attention.rewriting import rewrite
from tests.attention.sizes import MIN

ROWS = 20
LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def square():
    torch.manual_seed(0)
    return list(plain(ROWS, ROWS))


def later(q):
    """What is added where a key comes later: finite in float32, infinite in 16 bits."""
    return torch.full((ROWS, ROWS), MIN, device=q.device).triu(1)


def eager(q, k, v):
    """As transformers spells it: a mask of float32, a softmax in float32."""
    scores = q @ k.transpose(-1, -2) * 0.4 + later(q)
    return F.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


def batched(q, k, v):
    q, k, v = (side.flatten(0, 1) for side in (q, k, v))
    scores = torch.baddbmm(later(q).to(q.dtype)[None], q, k.mT, beta=1.0, alpha=0.4)
    return torch.bmm(scores.softmax(-1), v)


def einsum(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, v)


def grouped(q, k, v):
    k, v = (side[:, :2, None].expand(2, 2, 2, ROWS, 8).reshape(2, 4, ROWS, 8) for side in (k, v))
    return eager(q, k, v)


def some_low(q, k, v):
    """Values of a layer, queries and keys that were turned in float32."""
    return eager(q, k, v.to(torch.bfloat16) if v.dtype != torch.float64 else v)


def exempt(q, k, v):
    """A region of float32."""
    with torch.autocast("cpu", enabled=False):
        return (q @ k.mT).softmax(-1) @ v


def in_checkpoint(q, k, v):
    return checkpoint(eager, q, k, v, use_reentrant=False)


def dead(q, k, v):
    """The fourth row keeps no key: a mean, as its mask is finite in float32."""
    mask = later(q)
    mask = torch.where(torch.arange(ROWS)[:, None] == 3, MIN, mask)
    return (q @ k.mT + mask).softmax(-1) @ v


CASES: dict[str, Callable[..., Any]] = {
    one.__name__: one for one in (eager, batched, einsum, grouped, some_low, exempt, dead)
}


def cast(function, dtype, is_inside):
    """A function to be compiled, and to be called, under autocast."""

    def inside(*inputs):
        with torch.autocast("cpu", dtype):
            return function(*inputs)

    return (inside, inside) if is_inside else (function, inside)


def results(function, operands, weights):
    """A result, and the gradients of its product with weights."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    result = function(*leaves)
    return [
        result.detach(),
        *torch.autograd.grad((result.to(weights.dtype) * weights).sum(), leaves),
    ]


def assert_no_worse(found, other, wanted, times):
    """``times`` and a rounding: two that round alike differ by chance."""
    for one, its, exact in zip(found, other, wanted, strict=True):
        assert one.dtype == its.dtype
        assert one.shape == its.shape
        errors = [float((x.double() - exact).norm() / exact.norm()) for x in (one, its)]
        assert errors[0] <= times * errors[1] + 1e-6


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


@pytest.mark.parametrize("choice", ["sdpa", "unified"])
@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "around"])
@pytest.mark.parametrize("name", CASES)
def test_found(own, name, is_inside, choice):
    """Mutants: operands are not cast; what is put in runs under autocast; a mask is cast."""
    function, dtype = CASES[name], LOW["float16" if is_inside else "bfloat16"]
    if name == "some_low":
        dtype = torch.bfloat16
    compiled, called = cast(function, dtype, is_inside)
    with torch.autocast("cpu", dtype, enabled=not is_inside):
        done = rewrite(compiled, *square(), softmax=choice)
        found = done.function(*square())
    assert done.codes == ["fused" if choice == "sdpa" else "unified"]
    assert done.calls("matmul") == done.calls("softmax") == 0
    wanted = function(*(side.double() for side in square()))
    assert_no_worse([found], [called(*square())], [wanted], 1.05)


@pytest.mark.parametrize("choice", ["sdpa", "unified"])
@pytest.mark.parametrize("name", ["eager", "some_low", "in_checkpoint"])
def test_gradients(own, name, choice):
    """Mutants: a body is taken to begin as the whole graph does."""
    function = in_checkpoint if name == "in_checkpoint" else CASES[name]
    compiled, _ = cast(function, torch.bfloat16, is_inside=True)
    weights = torch.randn(square()[0].shape)
    done = rewrite(compiled, *(side.requires_grad_() for side in square()), softmax=choice)
    assert done.codes == ["fused" if choice == "sdpa" else "unified"]
    found, other = (results(one, square(), weights) for one in (done.function, compiled))
    wanted = results(function, [side.double() for side in square()], weights.double())
    assert_no_worse(found, other, wanted, 1.1)


def called(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize("is_low", [False, True])
def test_a_mask_is_cast_as_operands_are(own, is_low):
    """What is finite in float32 is minus infinity in bfloat16: torch gives zeros where a row keeps
    no key. Mutants: a mask is not cast; it is only where operands are."""
    q, k, v = square()
    if is_low:
        q, k, v = (side.bfloat16() for side in (q, k, v))
    mask = later(q)
    mask[3] = MIN
    compiled, eagerly = cast(called, torch.bfloat16, is_inside=True)
    done = rewrite(compiled, q, k, v, mask, softmax="unified")
    assert done.codes == ["unified"]
    found, other = done.function(q, k, v, mask), eagerly(q, k, v, mask)
    assert not found[:, :, 3].any()
    wide = torch.where(mask == MIN, -torch.inf, 0.0).double()
    wanted = called(*(side.double() for side in (q, k, v)), wide)
    assert_no_worse([found], [other], [wanted.nan_to_num()], 1.05)


def test_a_chosen_mask_is_cast(own):
    """Mutant: it is finite, as its numbers are in float32."""
    kept = torch.ones(ROWS, ROWS, dtype=torch.bool)
    kept[3] = False

    def chosen(q, k, v, kept):
        return called(q, k, v, torch.where(kept, 0.0, MIN))

    compiled, _ = cast(chosen, torch.bfloat16, is_inside=True)
    done = rewrite(compiled, *square(), kept, softmax="unified")
    assert done.codes == ["unified"]
    assert not done.function(*square(), kept)[:, :, 3].any()


def after(q, k, v, mask):
    with torch.autocast("cpu", torch.bfloat16):
        q = (q @ torch.eye(8, device=q.device)).float()
    return called(q, k, v, mask)


def within(q, k, v, mask):
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        return called(q, k, v, mask)


@pytest.mark.parametrize("function", [after, within])
def test_where_it_is_off_a_mask_is_not_cast(own, function):
    """Mutants: the end of a region is not seen, or that one switches it off."""
    mask = later(torch.empty(0))
    mask[3] = MIN
    done = rewrite(function, *square(), mask, softmax="unified")
    assert done.codes == ["unified"]
    torch.testing.assert_close(done.function(*square(), mask), function(*square(), mask))


def test_a_region_that_export_made_a_body_of(own):
    """Its call says how autocast is there. Mutant: a body begins as its call does."""
    on, off = ("cpu", torch.bfloat16, True, False), ("cpu", None, False, False)

    def wrapped(q, k, v):
        return wrap_with_autocast(*on, eager, q, k, v)

    def unwrapped(q, k, v, mask):
        with torch.autocast("cpu", torch.bfloat16):
            return wrap_with_autocast(*off, called, q, k, v, mask)

    mask = later(torch.empty(0))
    mask[3] = MIN
    for function, more in ((wrapped, ()), (unwrapped, (mask,))):
        operands = [side.requires_grad_() for side in square()]
        done = rewrite(function, *operands, *more, softmax="unified")
        assert done.codes == ["unified"]
        found, other = (one(*operands, *more).detach() for one in (done.function, function))
        wanted = (called if more else eager)(*(x.detach().double() for x in (*operands, *more)))
        assert_no_worse([found], [other], [wanted], 1.05)


def test_regions_that_autocast_leaves_out_are_left(own):
    """Scores of float32 meet values that are cast: no one dtype serves."""

    def mixed(q, k, v):
        with torch.autocast("cpu", enabled=False):
            weights = (q @ k.mT).softmax(-1)
        return weights @ v

    compiled, _ = cast(mixed, torch.bfloat16, is_inside=True)
    done = rewrite(compiled, *square())
    assert done.codes == ["!mixed_dtypes"]
    assert done.after == done.before


def summed(q, k, v):
    """On a GPU sums are of float32 under autocast."""
    scores = (q.unsqueeze(-2).bfloat16() * k.unsqueeze(-3).bfloat16()).sum(-1)
    return scores.softmax(-1) @ v


def turned(q, k, v):
    return eager(q, k * 0.5, v)


@pytest.mark.parametrize("function", [eager, turned, summed])
def test_on_a_gpu(function):
    """Its autocast has softmax in float32; tensors of no GPU say what dtypes it gives."""
    sites, after = [], []

    def backend(module, inputs):
        sites.extend(site for _, site in find_sites(module.graph))
        after.append(text(module.graph))
        return module

    on = {**autocast.OFF, "cuda": autocast.State(True, torch.bfloat16)}
    torch._dynamo.reset()
    with autocast.under(on), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        operands = [torch.empty(2, 4, ROWS, 8, device="cuda") for _ in range(3)]
        torch.compile(function, backend=backend)(*operands)
    (site,) = sites
    assert isinstance(site, Attention)
    assert {x.value.dtype for x in (site.query, site.key, site.value)} == {torch.bfloat16}
    assert "float32[2, 4, 20, 20] cuda" in next(x for x in after[0].splitlines() if "softmax" in x)


@pytest.mark.parametrize("function", [eager])
def test_an_autocast_that_is_not_read(function):
    """As that of another type of device."""
    compiled, _ = cast(function, torch.bfloat16, is_inside=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(autocast, "DEVICES", ())
        done = rewrite(compiled, *square())
    assert done.codes == ["!product_dtype"]
    assert done.after == done.before


def test_a_module_of_torch(own):
    """Its calls are written down as they run where it stands. Mutant: as they run elsewhere."""
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.randn(2, ROWS, 16)
    compiled, eagerly = cast(lambda x: module(x, x, x)[0], torch.bfloat16, is_inside=True)
    with torch.no_grad():
        done = rewrite(compiled, x)
        found, other = done.function(x), eagerly(x)
        module.double()
        wanted = module(x.double(), x.double(), x.double())[0]
    assert done.codes == ["fused"]
    assert_no_worse([found], [other], [wanted], 1.05)


@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "around"])
def test_compiled(is_inside, monkeypatch):
    """By the backend itself, and with autocast off as well: two graphs, each an entry with its own
    site. Mutant: the ledger takes them for one."""
    monkeypatch.setattr(ledger, "_entries", {})
    torch._dynamo.reset()
    function, eagerly = cast(eager, torch.bfloat16, is_inside)
    compiled = torch.compile(function, backend="overlapc", options={"softmax": "sdpa"})
    weights = torch.randn(square()[0].shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=not is_inside):
        found = results(compiled, square(), weights)
    other = results(eagerly, square(), weights)
    wanted = results(eager, [side.double() for side in square()], weights.double())
    assert_no_worse(found, other, wanted, 1.1)
    results(compiled, square(), weights)
    found = [
        [(site.code, site.shape.split()[-1]) for site in entry.sites]
        for entry in ledger._entries.values()
    ]
    low, wide = [("fused", "bfloat16")], [("fused", "float32")]
    assert found == ([low] if is_inside else [low, wide])


def apart(q, q_pe, c, k_pe):
    """The second of two products that are added in a region of float32: scores get no narrower."""
    own = q @ c.unsqueeze(1).mT
    with torch.autocast("cpu", enabled=False):
        rest = q_pe @ k_pe.unsqueeze(1).mT
    return torch.softmax((own + rest) * latent_cache.SCALE, -1) @ c.unsqueeze(1)


@pytest.mark.parametrize("function", [latent_cache.two_products, apart])
def test_a_latent_cache_is_one_where_both_products_are_cast(own, function):
    """Mutant: which dtype the other product has is not asked."""
    torch.manual_seed(0)
    operands = latent_cache.operands()
    compiled, eagerly = cast(function, torch.bfloat16, is_inside=True)
    with torch.no_grad():
        done = rewrite(compiled, *operands, softmax="unified")
        found, other = done.function(*operands), eagerly(*operands)
    assert done.codes == ["unified"]
    assert ("begin with their values" in done.sites[0].reason) == (function is not apart)
    wanted = function(*(side.double() for side in operands))
    assert_no_worse([found], [other], [wanted], 1.05)


def test_what_a_product_is_added_to_is_cast(own):
    """In 16 bits the mask of a row is infinite. Mutant: it stays of float32."""

    def added(q, k, v):
        mask = torch.full((ROWS, 1), 0.0)
        mask[3] = MIN
        return torch.baddbmm(mask[None], q[0], k[0].mT).softmax(-1) @ v[0]

    compiled, eagerly = cast(added, torch.bfloat16, is_inside=True)
    for choice in ("sdpa", "unified"):
        done = rewrite(compiled, *square(), softmax=choice)
        found, other = done.function(*square()), eagerly(*square())
        assert [site.decision for site in done.sites] == ["rewritten"]
        assert found[:, 3].isnan().all()
        assert torch.equal(found.isnan(), other.isnan())


def test_what_norms_bound_is_rounded(own):
    """Mutant: rows are as long as before they were cast."""
    found = []

    def normed(q, k, v):
        return (F.rms_norm(q, (8,)) @ F.rms_norm(k, (8,)).mT).softmax(-1) @ v

    def backend(module, inputs):
        found.extend(site for _, site in find_sites(module.graph))
        return module

    torch._dynamo.reset()
    torch.compile(cast(normed, torch.bfloat16, is_inside=True)[0], backend=backend)(*square())
    (site,) = found
    assert isinstance(site, Attention)
    assert isinstance(site.norms, Norms)
    assert site.norms.query.eps == site.norms.key.eps == torch.finfo(torch.bfloat16).eps


def test_a_mask_of_products_that_are_cast_is_no_constant():
    """From 4096 on bfloat16 has each 32nd number: rows see keys after them. Mutant: a mask is
    computed in float32, and found to be causal."""

    def counted(q, k, v):
        rows = torch.arange(4096.0, 4160.0)[:, None] @ torch.ones(1, 64)
        return (q @ k.mT + torch.where(rows < rows.T, MIN, 0.0)).softmax(-1) @ v

    operands = [torch.randn(1, 2, 64, 8) for _ in range(3)]
    compiled, eagerly = cast(counted, torch.bfloat16, is_inside=True)
    done = rewrite(compiled, *operands)
    rows = torch.arange(4096.0, 4160.0).bfloat16()[:, None]
    q, k, v = (side.double() for side in operands)
    wanted = (q @ k.mT + torch.where(rows < rows.T, MIN, 0.0)).softmax(-1) @ v
    assert_no_worse([done.function(*operands)], [eagerly(*operands)], [wanted], 1.05)
