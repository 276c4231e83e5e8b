"""Numbers and sizes that vary: a graph serves all that users vary, and is right for the rest."""

import math

import pytest
import torch

from tests.attention.catalogue import plain
from tests.attention.rewriting import rewrite
from tests.attention.test_catalogue import assert_alike, wide

FILL = -1e9


def scaled(q, k, v, scale):
    return (q @ k.mT * scale).softmax(-1) @ v


def divided(q, k, v, scale):
    return ((q @ k.mT) / scale).softmax(-1) @ v


def by_columns(q, k, v):
    return (q @ k.mT / math.sqrt(q.size(-1))).softmax(-1) @ v


def by_rows(q, k, v):
    return (q @ k.mT / math.sqrt(q.size(-2))).softmax(-1) @ v


def shifted(q, k, v, scale):
    """Which changes no softmax."""
    return (q @ k.mT + scale).softmax(-1) @ v


def filled(q, k, v):
    later = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool).triu(1)
    return (q @ k.mT).masked_fill(later, FILL).softmax(-1) @ v


@pytest.mark.parametrize("function", [scaled, divided, shifted])
def test_one_graph_serves_scales_that_vary(function):
    done = rewrite(function, *plain(), 0.3, dynamic=None)
    for scale in (0.7, -1.9, 3.0, 0.3):
        operands = plain()
        wanted = function(*map(wide, operands), scale)
        assert_alike(done.function(*operands, scale), wanted, torch.float32)
    assert done.codes == ["fused", "fused"]


def test_a_narrow_dtype_rounds_scores_and_not_queries():
    operands = plain(dtype=torch.bfloat16)
    done = rewrite(scaled, *operands, 0.3, dynamic=None)
    done.function(*operands, 0.7)
    assert done.codes == ["fused", "!score_function"]


@pytest.mark.parametrize(("function", "graphs"), [(by_columns, 2), (by_rows, 1)])
def test_a_scale_by_sizes_holds_for_others(function, graphs):
    """A kernel is made for one number of columns, and for every number of rows."""
    done = rewrite(function, *plain(), dynamic=True)
    assert done.codes == ["fused"]
    assert done.sites[0].shape == "~2x~4x~6x~17x~8 float32"
    for rows, columns in ((6, 8), (9, 8), (9, 12)):
        operands = [torch.randn(2, 4, n, columns) for n in (rows, 19, 19)]
        wanted = function(*map(wide, operands))
        assert_alike(done.function(*operands), wanted, torch.float32)
    assert len(done.after) == graphs


def test_another_fill_is_another_graph(monkeypatch):
    done = rewrite(filled, *plain(), dynamic=True)
    assert done.codes == ["fused"]
    for fill in (-1e9, 0.25, -math.inf):
        monkeypatch.setitem(globals(), "FILL", fill)
        operands = plain()
        wanted = filled(*map(wide, operands))
        assert_alike(done.function(*operands), wanted, torch.float32)
    assert len(done.after) > 1


def test_sizes_that_a_graph_computes_do_not_say_how_a_tensor_lies():
    """Mutant: it is asked before, which torch answers by an error, and the site is a fault."""

    def function(q, k, v, kept):
        scores = q[:, :, kept.nonzero()[:, 0]] @ k.mT
        beside = torch.zeros_like(scores.mT).masked_fill(kept[0], -1.0)
        return (scores + beside.mT).softmax(-1) @ v

    q, k, v = plain()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        done = rewrite(function, q, k, v, torch.arange(q.shape[-2]) > 1)
    assert done.codes == ["!score_function"]
