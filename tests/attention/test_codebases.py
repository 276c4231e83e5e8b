"""Attention as public code bases spell it is found, refused with a fitting reason, or left."""

from __future__ import annotations

import pytest
import torch

from tests.attention.codebases import LANGUAGE
from tests.attention.codebases_of_images import IMAGES
from tests.attention.regrouped import REGROUPED
from tests.attention.rewriting import rewrite
from tests.attention.test_catalogue import assert_alike, inputs_of, wide
from tests.attention.unread_weights import UNREAD

CASES = {**LANGUAGE, **IMAGES, **REGROUPED, **UNREAD}
QUICK = ("nano_gpt", "megatron", "falcon", "cache_by_index_put", "deepseek", "differential",
         "differential_apart", "performer", "mapped", "t5", "vit", "swin", "sam", "diffusers",
         "whisper", "big_bird", "bahdanau", "by_powers_of_a_tensor", "chosen_last",
         "mvit", "image_masked", "less_greatest_of_a_height", "keys_turned",
         *UNREAD)  # fmt: skip
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in CASES]
NARROW = ("falcon",)
"""Their float64 is no better: a bias is made in another dtype than what else is wide."""


@pytest.mark.filterwarnings("error:erase_node")
@pytest.mark.parametrize("name", NAMES)
def test_what_becomes_of_it(name):
    """Gradients are those of float64 too."""
    spelling = CASES[name]
    operands, more = inputs_of(spelling)
    done = rewrite(spelling.function, *operands, *more)
    assert done.codes == spelling.code.split()
    assert all(site.reason.endswith(".") and site.where for site in done.sites)
    assert spelling.says in done.after[-1]
    found, eager = (f(*operands, *more) for f in (done.function, spelling.function))
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride())
    doubles = [wide(t.detach()).requires_grad_(t.numel() > 0) for t in operands]
    wanted = spelling.function(*doubles, *map(wide, more))
    assert_alike(found, wanted.detach().double(), operands[0].dtype)
    if not any(code == "fused" for code in done.codes):
        assert done.after == done.before
        return
    leaves = [t.detach().requires_grad_(t.numel() > 0) for t in operands]
    result = rewrite(spelling.function, *leaves, *more).function(*leaves, *more)
    weights = torch.randn_like(result)
    taken = [
        torch.autograd.grad((out * weights).sum(), [t for t in given if t.requires_grad],
                            allow_unused=True, materialize_grads=True)
        for out, given in ((result, leaves), (wanted, doubles))
    ]  # fmt: skip
    for one, other in zip(*taken, strict=True):
        assert_alike(one, other.double(), one.dtype, times=3.0)


def test_a_function_of_scores_apart_is_not_taken_up():
    """By a kernel of our own neither."""
    spelling = CASES["image_capped"]
    (site,) = rewrite(spelling.function, *inputs_of(spelling)[0]).sites
    assert site.reason.startswith("tanh stands between product and softmax")


@pytest.mark.parametrize("name", ["mvit", "sam_of_transformers"])
def test_positions_that_are_products_hide_no_key_in_training(name):
    spelling = CASES[name]
    leaves = [side.requires_grad_() for side in inputs_of(spelling)[0]]
    assert rewrite(spelling.function, *leaves).codes == ["fused"]


def test_what_leads_to_no_result_is_not_computed():
    spelling = CASES["prophet_net"]
    done = rewrite(spelling.function, *inputs_of(spelling)[0])
    assert not any(done.calls(name) for name in ("softmax", "mean", "matmul"))
    assert "softmax" in done.before[-1]
