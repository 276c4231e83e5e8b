"""A latent cache is read once where the graph attends to it in the absorbed form."""

from __future__ import annotations

import copy

import pytest
import torch

from overlapc.graphs.attention import problems
from tests.attention import latent_cache
from tests.attention.rewriting import rewrite

READS = "of keys that begin with their values, each read once"


@pytest.fixture(autouse=True)
def own(monkeypatch):
    """Sites are decided as where generated kernels run; they are run by torch's ops."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


def rewritten(function, *inputs):
    twin = copy.deepcopy(function)
    with torch.no_grad():
        wanted = function(*inputs)
        done = rewrite(twin, *inputs, softmax="unified")
        # Scores are far apart, and exponentials of float32 ones as far off.
        torch.testing.assert_close(done.function(*inputs), wanted, rtol=1e-4, atol=1e-4)
    assert done.calls("overlapc.attention.default") == 1
    return done


SPELLED = {
    "two products": (latent_cache.two_products, latent_cache.operands),
    "the rest first": (latent_cache.rest_first, latent_cache.operands),
    "masked": (latent_cache.masked, latent_cache.operands),
    "put together": (latent_cache.put_together, latent_cache.operands),
    "one buffer": (latent_cache.one_buffer, latent_cache.buffered),
}


@pytest.mark.parametrize("name", SPELLED)
def test_the_op_is_given_no_keys_twice(name, golden):
    function, make = SPELLED[name]
    done = rewritten(function, *make())
    assert READS in done.sites[0].reason
    golden(done.after[0])


def test_it_is_found_as_it_was_published(golden):
    done = rewritten(latent_cache.Absorbed(), *latent_cache.new_rows())
    assert READS in done.sites[0].reason
    golden(done.after[0])


def keys_first(q, q_pe, c, k_pe):
    scores = c[:, None] @ q.mT + k_pe[:, None] @ q_pe.mT
    return torch.softmax(scores, -2).mT @ c[:, None]


def one_product_keys_first(q, q_pe, c, k_pe):
    scores = q @ c[:, None].mT + (k_pe[:, None] @ q_pe.mT).mT
    return torch.softmax(scores, -1) @ c[:, None]


def each_scaled(q, q_pe, c, k_pe):
    rest = (q_pe @ k_pe[:, None].mT) / 4
    return torch.softmax(-rest + 0.25 * -(q @ c[:, None].mT), -1) @ c[:, None]


@pytest.mark.parametrize("function", [keys_first, one_product_keys_first, each_scaled])
def test_products_may_be_spelled_transposed_and_scaled(function):
    """Mutants: the one that is added is read as it is spelled; its number is not seen."""
    assert READS in rewritten(function, *latent_cache.operands()).sites[0].reason


@pytest.mark.long
def test_the_kernel_reads_it(interpreted):
    found = interpreted("attention_graphs.run", "latent", "unified")
    assert found[1:3] == ("unified", {"zero, few rows, 1 split": 1})
    assert READS in found[3]
    assert found[5] < 2e-6


def scaled_apart(q, q_pe, c, k_pe):
    """One product is scaled, and the other one is not."""
    scores = latent_cache.SCALE * (q @ c.unsqueeze(1).mT) + q_pe @ k_pe.unsqueeze(1).mT
    return torch.softmax(scores, -1) @ c.unsqueeze(1)


def other_values(q, q_pe, c, k_pe):
    """Values are another view of the cache than keys are."""
    scores = q @ c.unsqueeze(1).mT + q_pe @ k_pe.unsqueeze(1).mT
    return torch.softmax(scores, -1) @ c.flip(1).unsqueeze(1)


def behind_keys(q, q_pe, c, k_pe):
    """Values are the end of keys."""
    query, key = torch.cat((q_pe, q), -1), torch.cat((k_pe, c), -1)[:, None]
    return torch.softmax(query @ key.mT, -1) @ c[:, None]


def written_between(q, q_pe, c, k_pe):
    """The cache is another one when values are read."""
    c = c.clone()
    weights = torch.softmax(q @ c.unsqueeze(1).mT + q_pe @ k_pe.unsqueeze(1).mT, -1)
    c[:, 0] = 1.0
    return weights @ c.unsqueeze(1)


def written_first(q, q_pe, c, k_pe):
    """Keys were read before the cache became another one, of which values are."""
    c = c.clone()
    scores = q_pe @ k_pe.unsqueeze(1).mT + q @ c.unsqueeze(1).mT
    c[:, 0] = 5.0
    return torch.softmax(scores, -1) @ c.unsqueeze(1)


def put_together_first(q, q_pe, c, k_pe):
    """The same of keys that are made whole."""
    c = 2 * c
    key = torch.cat((c, k_pe), -1)[:, None]
    weights = torch.softmax(torch.cat((q, q_pe), -1) @ key.mT, -1)
    c[:, 0] = 5.0
    return weights @ c[:, None]


def one_row_of_the_rest(q, q_pe, c, k_pe):
    """One product is the same for all rows."""
    scores = q @ c.unsqueeze(1).mT + q_pe[:, :, :1] @ k_pe.unsqueeze(1).mT
    return torch.softmax(scores, -1) @ c.unsqueeze(1)


def one_key_of_the_rest(q, q_pe, c, k_pe):
    """One product is the same for all keys."""
    scores = q @ c.unsqueeze(1).mT + q_pe @ k_pe[:, :1].unsqueeze(1).mT
    return torch.softmax(scores, -1) @ c.unsqueeze(1)


def turned_rest(q, q_pe, c, k_pe):
    """Of as many rows as keys, one product is added with the two exchanged."""
    c, k_pe = (one[:, : q.shape[2]].unsqueeze(1) for one in (c, k_pe))
    scores = latent_cache.SCALE * (q @ c.mT + (q_pe @ k_pe.mT).mT)
    return torch.softmax(scores, -1) @ c


def a_rest_of_each_head(q, q_pe, c, k_pe):
    """Heads share values, and not the rest of keys."""
    rest = k_pe[:, None] * torch.arange(1.0, 1 + latent_cache.HEADS)[:, None, None]
    return torch.softmax(q @ c[:, None].mT + q_pe @ rest.mT, -1) @ c[:, None]


def other_batches_of_the_rest(q, q_pe, c, k_pe):
    """One product has heads and sequences as one dimension."""
    keys = c.repeat_interleave(latent_cache.HEADS, 0).mT
    scores = (q.flatten(0, 1) @ keys).view(*q.shape[:3], -1) + q_pe @ k_pe[:, None].mT
    return torch.softmax(scores, -1) @ c[:, None]


def heads_for_batches(q, q_pe, c, k_pe):
    """Of as many batches as heads, one product is added with the two exchanged."""
    q, q_pe = torch.cat((q, q.flip(0))), torch.cat((q_pe, 2 * q_pe))
    c, k_pe = torch.cat((c, c.flip(1)))[:, None], torch.cat((k_pe, k_pe.flip(1)))[:, None]
    return torch.softmax(q @ c.mT + (q_pe @ k_pe.mT).transpose(0, 1), -1) @ c


def a_rest_that_is_overwritten(q, q_pe, c, k_pe):
    rest = q_pe @ k_pe[:, None].mT
    rest.mul_(3.0)
    return torch.softmax(q @ c[:, None].mT + rest, -1) @ c[:, None]


def a_narrower_rest(q, q_pe, c, k_pe):
    rest = q_pe.bfloat16() @ k_pe[:, None].bfloat16().mT
    return torch.softmax(q @ c[:, None].mT + rest, -1) @ c[:, None]


def few_columns(q, q_pe, c, k_pe):
    """Of 40 columns the first 24 are values, and kernels load powers of two."""
    return latent_cache.two_products(q[..., :24], q_pe, c[..., :24], k_pe)


OTHERS = {
    "a rest of each head": (a_rest_of_each_head, latent_cache.operands),
    "other batches of the rest": (other_batches_of_the_rest, latent_cache.operands),
    "heads for batches": (heads_for_batches, latent_cache.operands),
    "a rest that is overwritten": (a_rest_that_is_overwritten, latent_cache.operands),
    "a narrower rest": (a_narrower_rest, latent_cache.operands),
    "few columns": (few_columns, latent_cache.operands),
    "written first": (written_first, latent_cache.operands),
    "put together first": (put_together_first, latent_cache.operands),
    "one row of the rest": (one_row_of_the_rest, latent_cache.operands),
    "one key of the rest": (one_key_of_the_rest, latent_cache.operands),
    "scaled apart": (scaled_apart, latent_cache.operands),
    "other values": (other_values, latent_cache.operands),
    "behind keys": (behind_keys, latent_cache.operands),
    "turned rest": (turned_rest, lambda: latent_cache.operands(rows=16)),
    "many rows": (latent_cache.two_products, lambda: latent_cache.operands(rows=70)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_latent_cache_is_read_as_it_is_spelled(name):
    """Mutants: a sum of products without its check of groups, batches, dtypes, columns, of what
    exchanges dimensions of one, and of who else reads it."""
    function, make = OTHERS[name]
    assert READS not in rewritten(function, *make()).sites[0].reason


def widened(q, q_pe, c, k_pe, c_scale=1.0, k_scale=1.0):
    """A cache of float8; a scale of one is none."""
    c, k_pe = (side.to(q.dtype) * scale if torch.is_tensor(scale) else side.to(q.dtype)
               for side, scale in ((c, c_scale), (k_pe, k_scale)))  # fmt: skip
    scores = torch.einsum("bhsc,btc->bhst", q, c) + torch.einsum("bhsr,btr->bhst", q_pe, k_pe)
    return torch.einsum("bhst,btc->bhsc", torch.softmax(scores, -1), c)


def narrow(*kinds, scales=0):
    q, q_pe, *cache = latent_cache.operands()
    sides = (side.to(kind) for side, kind in zip(cache, kinds, strict=True))
    return [q, q_pe, *sides, *torch.tensor([0.5, 2.0])[:scales]]


def alike(q, q_pe, c, k_pe, scale):
    return widened(q, q_pe, c, k_pe, scale, scale)


def of_one_buffer(q, q_pe, c, k_pe, scale):
    """Whole keys are scaled once, before they get a dimension of heads."""
    keys = torch.cat((c, k_pe), -1).to(FP8).to(q.dtype) * scale
    return latent_cache.one_buffer(q, q_pe, keys)


def half_of_each(q, q_pe, c, k_pe):
    c = 0.5 * c.to(q.dtype)
    key = torch.cat((c, 0.5 * k_pe.to(q.dtype)), -1)[:, None]
    return torch.softmax(torch.cat((q, q_pe), -1) @ key.mT, -1) @ c[:, None]


FP8, WIDE = torch.float8_e4m3fn, torch.float32


def widened_then_unsqueezed(q, q_pe, c, k_pe):
    return latent_cache.two_products(q, q_pe, c.to(q.dtype), k_pe.to(q.dtype))


WIDENED = {
    "both": ((FP8, FP8), 0, (True, True)),
    "values alone": ((FP8, WIDE), 0, (False, True)),
    "the rest alone": ((WIDE, FP8), 0, (True, False)),
    "scaled": ((FP8, FP8), 1, (False, True)),
    "scaled apart": ((FP8, FP8), 2, (False, True)),
}
"""What is narrow, how many scales there are; whether it is latent, and read narrow."""


SOME = ("both", "values alone", "scaled")


@pytest.mark.parametrize(
    "name", [n if n in SOME else pytest.param(n, marks=pytest.mark.long) for n in WIDENED]
)
def test_a_latent_cache_is_not_read_in_a_wider_dtype_than_apart(name):
    """Mutants: scales do not matter; what is narrow apart does not."""
    kinds, scales, wanted = WIDENED[name]
    reason = rewritten(widened, *narrow(*kinds, scales=scales)).sites[0].reason
    assert (READS in reason, "as a cache holds them" in reason) == wanted


@pytest.mark.parametrize("function", [alike, of_one_buffer, half_of_each])
def test_a_latent_cache_of_one_scale_is_read_once(function):
    """Mutants: a scale of both is one of none; a scale before a dimension of one is none."""
    scales = 0 if function is half_of_each else 1
    done = rewritten(function, *narrow(FP8, FP8, scales=scales))
    assert READS in done.sites[0].reason
    assert "as a cache holds them" in done.sites[0].reason


def test_a_cache_that_is_unsqueezed_when_it_is_wide_is_read_narrow():
    """Mutant: what is unsqueezed is not looked through."""
    reason = rewritten(widened_then_unsqueezed, *narrow(FP8, FP8)).sites[0].reason
    assert READS in reason
    assert "as a cache holds them" in reason


def rescaled(q, q_pe, c, k_pe):
    """The one that is added is scaled by a number, in place, and in another view."""
    rest = k_pe[:, None] @ q_pe.mT
    rest *= 0.5
    return torch.softmax(q @ c[:, None].mT * 0.5 + (-rest.mT.contiguous()).neg(), -1) @ c[:, None]


IN_HALF = (
    latent_cache.two_products,
    rescaled,
    pytest.param(latent_cache.rest_first, marks=pytest.mark.long),
)


@pytest.mark.parametrize("function", IN_HALF)
def test_in_float16_it_is_no_further_off_than_eager(function):
    """By torch's ops; ``test_the_kernel_reads_it_in_float16`` by the kernel.

    Mutant: a product of float16 is a mask of float16, which is refused.
    """
    torch.manual_seed(0)
    inputs = [side.half() for side in latent_cache.operands()]
    with torch.no_grad():
        wanted = function(*(side.double() for side in inputs))
        eager = (function(*inputs).double() - wanted).abs().max()
        done = rewrite(function, *inputs, softmax="unified")
        assert done.codes == ["unified"]
        assert (READS in done.sites[0].reason) == (function is not rescaled)
        assert (done.function(*inputs).double() - wanted).abs().max() <= 1.5 * eager


@pytest.mark.long
def test_the_kernel_reads_it_in_float16(interpreted):
    found = interpreted("attention_graphs.run", "latent half", "unified")
    assert found[1:3] == ("unified", {"first_tile, few rows, 1 split": 1})
    assert READS in found[3]
    torch.manual_seed(0)
    inputs = [side.half() for side in latent_cache.operands()]
    wanted = latent_cache.two_products(*(side.double() for side in inputs))
    eager = (latent_cache.two_products(*inputs).double() - wanted).abs().max()
    assert found[5] <= 1.5 * eager


def from_a_static_cache(q, q_pe, c, k_pe, positions):
    kept = torch.arange(latent_cache.KEYS) <= positions[:, None]
    scores = q @ c[:, None].mT + q_pe @ k_pe[:, None].mT
    return torch.softmax(scores.where(kept, -torch.inf), -1) @ c[:, None]


def counted(q, q_pe, c, k_pe, first):
    kept = torch.arange(latent_cache.KEYS) <= (torch.arange(q.shape[2]) + first)[:, None]
    scores = q @ c[:, None].mT + q_pe @ k_pe[:, None].mT
    return torch.softmax(scores.where(kept, -torch.inf), -1) @ c[:, None]


def test_the_report_speaks_of_what_the_kernel_is_given():
    """Of a sum of two products, to torch's attention one of them is a mask.

    Mutants: the problem of the sum is decided on; its sizes are shown.
    """
    site = rewritten(counted, *latent_cache.operands(), torch.tensor(9)).sites[0]
    assert "reads to a length on the device" in site.reason
    assert site.shape == "2x4/1x3x40x48/32 float32"


def test_the_report_says_why_a_latent_cache_is_read_to_no_length():
    """Mutant: as above."""
    positions = torch.tensor([4, 9, 20])
    done = rewritten(from_a_static_cache, *latent_cache.operands(), positions)
    assert READS in done.sites[0].reason
    assert "and not a length: its mask compares" in done.sites[0].reason


def test_a_cache_that_is_written_to_between_keys_and_values_is_refused():
    with torch.no_grad():
        done = rewrite(written_between, *latent_cache.operands(), softmax="unified")
    assert done.sites[0].decision == "refused"
    assert done.after == done.before


def test_with_gradients_it_is_read_as_it_is_spelled():
    q, *others = latent_cache.operands()
    done = rewrite(latent_cache.two_products, q.requires_grad_(), *others, softmax="unified")
    assert READS not in done.sites[0].reason


def one_head(q, k, v, bias):
    """All queries share a head of keys, which the products broadcast."""
    return torch.softmax(q @ k.mT * 0.1 + bias, -1) @ v


def one_head_expanded(q, k, v, bias):
    """The same, where the graph says so itself."""
    return one_head(q, *(side.expand(-1, q.shape[1], -1, -1) for side in (k, v)), bias)


@pytest.mark.parametrize("function", [one_head, one_head_expanded])
def test_a_head_that_is_broadcast_is_no_copy_to_undo(function):
    """Of 64 rows torch's attention was measured to gain where copies are spared, and not here.

    Mutants: only what a product broadcasts is a broadcast; only what is expanded.
    """
    inputs = [torch.randn(1, heads, rows, 64) for heads, rows in ((4, 64), (1, 1024), (1, 1024))]
    with torch.no_grad():
        done = rewrite(function, *inputs, torch.randn(64, 1024), softmax="auto")
    assert "4/1x" in done.sites[0].shape
    assert done.codes == ["=too_small"]
