"""Every spelling is found and gives what eager gives; what is refused stays textually as it was."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import config as inductor_config

from overlapc.passes.base import Fuel
from tests.attention.catalogue import REWRITTEN as CATALOGUE
from tests.attention.catalogue import Spelling, added, bias, in_checkpoint, plain, square, twice
from tests.attention.codebases import LANGUAGE
from tests.attention.reasons import SAID
from tests.attention.refusals import LEFT as REFUSED
from tests.attention.refusals import weights_returned
from tests.attention.rewriting import rewrite
from tests.attention.sizes import MIN, B, K
from tests.attention.spelled_products import PRODUCTS, UNREAD
from tests.attention.zeroed_weights import CHANGED, ZEROED

REWRITTEN = {**CATALOGUE, **PRODUCTS, **ZEROED}
LEFT = {**REFUSED, **UNREAD, **CHANGED, **SAID}

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Of the largest value: some roundings of each dtype."""


def inputs_of(spelling: Spelling):
    torch.manual_seed(0)
    operands = (spelling.operands or plain)()
    return operands, spelling.more()


def wide(value):
    return value.double() if value.is_floating_point() else value


def assert_alike(found, wanted, dtype, times=1.0):
    assert found.shape == wanted.shape
    found = found.double()
    assert torch.equal(found.isnan(), wanted.isnan())
    error = (found - wanted).nan_to_num().abs().max()
    assert error <= times * TOLERANCE[dtype] * wanted.nan_to_num().abs().max()


@pytest.mark.parametrize("name", REWRITTEN)
def test_rewritten(name):
    spelling = REWRITTEN[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more)
    assert done.codes == [spelling.code]
    assert done.calls("scaled_dot_product_attention") == 1
    assert done.calls("softmax") == 0
    assert spelling.says in done.after[-1]

    dtype = operands[0].dtype
    found = done.function(*operands, *more)
    eager = spelling.function(*operands, *more)
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride())
    wanted = spelling.function(*map(wide, operands), *map(wide, more)).double()
    assert_alike(found, wanted, dtype)


@pytest.mark.parametrize("name", ["expanded_as_scores", "made_like_scores", "added_like_scores"])
def test_who_reads_a_shape_keeps_no_scores(name):
    spelling = REWRITTEN[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more)
    assert sum(part.count(" = matmul(") for part in done.before) == 2
    assert done.calls("matmul") == 0


@pytest.mark.parametrize("name", LEFT)
def test_left_as_it_is(name):
    spelling = LEFT[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more)
    assert done.codes == ([spelling.code] if spelling.code else [])
    assert done.after == done.before
    assert all(site.reason.endswith(".") and site.where for site in done.sites)
    assert all(spelling.says in site.reason for site in done.sites)


BIASED = {name: LANGUAGE[name] for name in ("transformer_xl", "deberta")}
"""What is added is made of products, and leaves no row without a key."""
DIFFERENTIATED = ("interleaved", "einsum_sequence_first", "causal", "window", "upcast_operands",
                  "raised_causal", *BIASED)  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_gradients(name):
    spelling = {**REWRITTEN, **BIASED}[name]
    operands, more = inputs_of(spelling)
    leaves = [t.requires_grad_() for t in operands]
    done = rewrite(spelling.function, *leaves, *more)
    assert done.codes == [spelling.code]
    assert [site.graph for site in done.sites] == ["forward"]

    result = done.function(*leaves, *more)
    weights = torch.randn_like(result)
    found = torch.autograd.grad((result * weights).sum(), leaves)
    doubles = [t.detach().double().requires_grad_() for t in operands]
    result = spelling.function(*doubles, *map(wide, more))
    wanted = torch.autograd.grad((result * weights).sum(), doubles)
    for one, other in zip(found, wanted, strict=True):
        assert_alike(one, other, one.dtype)


MASKED = ("filled", "additive", "added", "filled_finite", "grouped_queries")


@pytest.mark.parametrize("name", MASKED)
def test_no_gradient_is_taken_where_a_row_may_keep_no_key(name):
    spelling = REWRITTEN[name]
    operands, more = inputs_of(spelling)
    leaves = [t.requires_grad_() for t in operands]
    done = rewrite(spelling.function, *leaves, *more, softmax="auto")
    assert done.codes == ["!dead_rows"]
    assert "softmax='sdpa'" in done.sites[0].reason
    assert done.after == done.before


def test_no_gradient_is_taken_through_a_floor_where_a_row_may_keep_no_key():
    """A score that is at its floor gives a part of its gradient away."""
    spelling = REWRITTEN["raised"]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *(t.requires_grad_() for t in operands), *more)
    assert done.codes == ["!score_function"]


def test_no_row_is_made_nan_that_a_floor_leaves_finite():
    operands, more = inputs_of(REWRITTEN["raised"])
    assert rewrite(REWRITTEN["raised"].function, *operands, *more).calls("masked_fill") == 0


@pytest.mark.parametrize("keeps_one", [False, True])
@pytest.mark.parametrize("name", MASKED)
def test_gradients_where_a_row_may_keep_no_key(name, keeps_one):
    """Eager's, NaN among them: by torch's fused attention where each row keeps one. Mutants: that
    is not asked, in the forward or in the backward; groups are not added up; a mask is inverted."""
    spelling = REWRITTEN[name]
    operands, (mask,) = inputs_of(spelling)
    mask = (
        mask | (torch.arange(mask.shape[-1]) == 2)
        if keeps_one and mask.dtype == torch.bool
        else mask
    )
    leaves = [t.requires_grad_() for t in operands]
    done = rewrite(spelling.function, *leaves, mask)
    assert done.codes == ["fused_if_kept"]
    with pytest.MonkeyPatch.context() as patch:
        if keeps_one:
            patch.delattr("overlapc.runtime.attention.op.attention_by_torch")
            patch.delattr("overlapc.runtime.attention.gradients.gradients_by_torch")
        result = done.function(*leaves, mask)
        weights = torch.randn_like(result)
        found = torch.autograd.grad((result * weights).sum(), leaves)
    doubles = [t.detach().double().requires_grad_() for t in operands]
    exact = spelling.function(*doubles, wide(mask))
    wanted = torch.autograd.grad((exact * weights).sum(), doubles)
    for one, other in zip((result, *found), (exact, *wanted), strict=True):
        assert_alike(one, other, one.dtype)


def test_what_is_made_of_products_may_hide_keys():
    """A constant that is added to it does. Mutant: only infinite ones are looked for."""

    def hidden(q, k, v):
        later = torch.where(torch.arange(K) == 3, MIN, 0.0)[:, None]
        return (q @ k.mT + (k.detach() @ k.detach().mT + later)).softmax(-1) @ v

    done = rewrite(hidden, *(t.requires_grad_() for t in square()))
    assert done.codes == ["fused_if_kept"]


@pytest.mark.parametrize(
    "added",
    [
        lambda scores, hidden: scores + (hidden * -1e9).unsqueeze(1),
        lambda scores, hidden: scores + (hidden * 1e5 * -1e6).unsqueeze(1),
        lambda scores, hidden: scores + torch.cat([hidden, hidden], -1)[..., :K] * 1e5 * -1e6,
        lambda scores, hidden: torch.add(scores, hidden, alpha=-1e9),
        lambda scores, hidden: scores - hidden * 1e5,
    ],
    ids=["once", "twice", "put_together", "alpha", "less"],
)
def test_so_does_a_product_that_is_multiplied_by_a_huge_number(added):
    """Mutants: the number is not asked for, in a view or as alpha; each is asked for alone."""

    def attend(q, k, v, padding):
        hidden = torch.ones(q.shape[-2], 1) @ padding[:, None]
        return added(q @ k.mT, hidden).softmax(-1) @ v

    done = rewrite(attend, *(t.requires_grad_() for t in square()), torch.ones(1, K))
    assert done.codes == ["fused_if_kept"]


def test_places_in_what_is_made_of_products_are_no_numbers():
    """Mutant: a number is asked for of every call."""

    def rolled(q, k, v):
        return (q @ k.mT + (k.detach() @ k.detach().mT).roll(5000, -1)).softmax(-1) @ v

    done = rewrite(rolled, *(t.requires_grad_() for t in square()))
    assert done.codes == ["fused"]


@pytest.mark.parametrize("is_constant", [False, True])
@pytest.mark.parametrize("number", [-1e5, -1e8])
def test_gradients_of_rows_whose_every_key_has_a_large_number(number, is_constant):
    """Finite numbers of which float32 leaves little behind the point. Mutant: a row is taken to
    keep the keys of those that a score is not lost in."""
    operands = square()

    def given(q, k, v, mask):
        return (q @ k.mT + mask).softmax(-1) @ v

    def constant(q, k, v, _):
        first = torch.arange(q.shape[-2])[:, None] == 0
        return (q @ k.mT + torch.where(first, number, 0.0)).softmax(-1) @ v

    mask = torch.zeros(operands[0].shape[-2], operands[1].shape[-2])
    mask[0] = number
    attend = constant if is_constant else given
    leaves = [t.requires_grad_() for t in operands]
    done = rewrite(attend, *leaves, mask)
    assert done.codes == ["fused_if_kept"]
    weights = torch.randn_like(done.function(*leaves, mask))
    found, wanted = (
        torch.autograd.grad((function(*leaves, mask) * weights).sum(), leaves)
        for function in (done.function, attend)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_mask_whose_gradient_is_wanted_keeps_its_attention():
    spelling = REWRITTEN["added"]
    operands, (mask,) = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, mask.requires_grad_(), softmax="auto")
    assert done.codes == ["=no_fused_kernel"]
    assert done.after == done.before


def test_one_that_feeds_another():
    operands = square()
    done = rewrite(twice, *operands)
    assert done.codes == ["fused", "fused"]
    wanted = twice(*map(wide, operands))
    assert_alike(done.function(*operands), wanted, torch.float32)


def test_in_the_body_of_a_checkpoint():
    operands = [t.requires_grad_() for t in plain()]
    done = rewrite(in_checkpoint, *operands)
    assert done.codes == ["fused"]
    assert "scaled_dot_product_attention" in done.after[0]
    assert_alike(done.function(*operands), in_checkpoint(*map(wide, operands)), torch.float32)


def test_in_a_checkpoint_without_gradients_it_stays():
    done = rewrite(in_checkpoint, *plain())
    assert done.codes == ["!checkpointed"]
    assert done.after == done.before


VARYING = {
    "einsum_grouped": "!symbolic_layout",
    "batches": "!symbolic_layout",  # heads are a quotient of sizes, which no input is
    "slices_filled": "!hidden_write",  # where they end follows from sizes
    "slices_filled_keys_first": "!hidden_write",
    "triangle_filled_by_slices": "!hidden_write",
    "chosen": "!score_function",
}
"""What is refused where every size is a symbol; all else is rewritten as with numbers."""


@pytest.mark.long
@pytest.mark.parametrize("name", REWRITTEN)
def test_sizes_that_vary(name):
    spelling = REWRITTEN[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more, dynamic=True)
    assert done.codes == [VARYING.get(name, spelling.code)]
    eager = spelling.function(*operands, *more).double()
    assert_alike(done.function(*operands, *more), eager, operands[0].dtype)


def test_rows_and_keys_that_vary():
    """One graph serves other lengths, and the mask of one length is not taken for all."""
    done = rewrite(added, *plain(), *bias(), dynamic=True)
    assert done.codes == ["fused"]
    for rows, keys in ((3, 5), (11, 4)):
        operands, mask = plain(rows, keys), torch.randn(B, 1, rows, keys)
        wanted = added(*map(wide, operands), mask.double())
        assert_alike(done.function(*operands, mask), wanted, torch.float32)
    assert not done.after[1:]


def test_what_options_say_of_it():
    spelling = REWRITTEN["functional"]
    operands, _ = inputs_of(spelling)
    unfuelled = rewrite(spelling.function, *operands, fuel=0)
    assert unfuelled.codes == ["=fuel"]
    assert unfuelled.after == unfuelled.before


@pytest.mark.parametrize(
    ("options", "cpp_wrapper", "reason"),
    [
        ({"disable": ("rewrite_attention",)}, False, "disable leaves out rewrite_attention."),
        ({"disable": ("all",)}, False, "disable leaves out all."),
        ({}, True, "cpp_wrapper cannot write the text"),
    ],
)
def test_a_pass_that_is_left_out_says_so_of_what_it_would_take(options, cpp_wrapper, reason):
    """Mutants: it says nothing, says so of what it would leave, rewrites, or uses fuel up."""
    spent = Fuel.spent
    with inductor_config.patch(cpp_wrapper=cpp_wrapper):
        done = rewrite(twice, *plain(), **options)
        kept = rewrite(twice, *plain(), softmax="auto", **options)
        refused = rewrite(weights_returned, *plain(), **options)
    assert (done.codes, kept.codes) == (["!disabled"] * 2, ["=too_small"] * 2)
    assert refused.codes == ["!weights_read"]
    assert done.after == done.before
    assert all(reason in site.reason for site in done.sites)
    assert Fuel.spent == spent


def test_attention_that_is_off_says_so_of_what_auto_would_take():
    """Mutants: it says nothing; it rewrites; what the fused one could do is said, not "auto"."""
    large = rewrite(twice, *torch.randn(3, 1, 2, 256, 16), softmax="off")
    small = rewrite(twice, *plain(), softmax="off")
    assert (large.codes, small.codes) == (["!disabled"] * 2, ["=too_small"] * 2)
    assert (large.after, small.after) == (large.before, small.before)
    assert {site.reason for site in large.sites} == {"Option softmax is 'off'."}


def test_graphs(golden):
    """What a masked, a causal and a grouped attention look like before and after."""
    parts = []
    for name in ("filled", "causal", "grouped_queries", "regrouped"):
        spelling = REWRITTEN[name]
        operands, more = inputs_of(spelling)
        done = rewrite(spelling.function, *operands, *more)
        parts += [f"=== {name}, before", done.before[-1], f"=== {name}, after", done.after[-1]]
    golden("\n".join(part.rstrip() for part in parts))
