"""``nn.MultiheadAttention`` is read as the calls that it makes, and is one call where it stays."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from overlapc.graphs.attention import modules, problems
from tests.attention.rewriting import rewrite
from tests.attention.test_catalogue import assert_alike

WIDTH, HEADS, BATCH, ROWS, KEYS = 16, 4, 2, 16, 19


def made(**named):
    torch.manual_seed(0)
    return nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **named).eval()


def inputs():
    torch.manual_seed(1)
    return torch.randn(BATCH, ROWS, WIDTH), torch.randn(BATCH, KEYS, WIDTH)


def padding():
    pad = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    pad[0, 5:], pad[1] = True, True
    return pad


def itself(module, x, y):
    return module(x, x, x)[0]


def cross(module, x, y):
    return module(x, y, y)[0]


def padded(module, x, y):
    """The second sequence is all padding."""
    return module(x, y, y, key_padding_mask=padding())[0]


def masked_twice(module, x, y):
    biased = torch.linspace(-1, 1, ROWS * KEYS).view(ROWS, KEYS)
    return module(x, y, y, attn_mask=biased, key_padding_mask=padding().double().to(x.dtype))[0]


def causal(module, x, y):
    later = torch.ones(ROWS, ROWS, dtype=torch.bool).triu(1)
    return module(x, x, x, attn_mask=later)[0]


def unbatched(module, x, y):
    return module(x[0], y[0], y[0])[0]


def one_wide(module, x, y):
    """Other widths of keys and values."""
    return module(x, y[..., :5], y[..., :7])[0]


def with_weights(module, x, y):
    result, weights = module(x, y, y)
    return result + weights.sum()


def weights_for_nobody(module, x, y):
    """As WavLM makes of them what its caller does not ask for."""
    result, weights = module(x, y, y)
    weights[:, None].broadcast_to(BATCH, HEADS, ROWS, KEYS).mean(1)
    return result


def without_weights(module, x, y):
    return module(x, y, y, need_weights=False)[0]


CASES = {
    "itself": (itself, {}, "fused"),
    "cross": (cross, {"bias": False}, "fused"),
    "padded": (padded, {}, "fused"),
    "masked twice": (masked_twice, {}, "fused"),
    "causal": (causal, {}, "fused"),
    "unbatched": (unbatched, {}, "fused"),
    "other widths": (one_wide, {"kdim": 5, "vdim": 7}, "fused"),
    "one key more": (cross, {"add_bias_kv": True}, "fused"),
    "a key of zeros": (cross, {"add_zero_attn": True}, "fused"),
    "weights are read": (with_weights, {}, "!weights_read"),
    "weights for nobody": (weights_for_nobody, {}, "fused"),
    "no weights": (without_weights, {}, "=fused_already"),
}
SHORT = ("padded", "weights are read", "weights for nobody", "no weights")
NAMES = [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_a_module(name):
    function, named, code = CASES[name]
    module = made(**named)
    with torch.no_grad():
        done = rewrite(lambda x, y: function(module, x, y), *inputs())
        found, eager = done.function(*inputs()), function(module, *inputs())
        wanted = function(made(**named).double(), *(t.double() for t in inputs()))
    assert done.codes == [code]
    if code == "fused":
        assert done.calls("multi_head_attention_forward") == done.calls("softmax") == 0
    else:
        assert done.after == done.before
    assert found.stride() == eager.stride()
    assert_alike(found, wanted, torch.float32)


def test_who_reads_the_weights_is_named():
    """Mutants: one whom nothing is made for, a caller who is not told from a call."""
    module = made()

    def summed(x, y):
        result, weights = module(x, y, y)
        weights.mean(1)
        return result + weights.sum()

    x, y = inputs()
    with torch.no_grad():
        by_sum, told = rewrite(summed, x, y), rewrite(module, x, x, x)
    for done, who in ((by_sum, r"sum \(test_modules\.py:\d+\)"), (told, "the caller")):
        (site,) = done.sites
        assert site.code == "weights_read"
        assert re.match(f"Attention weights are read by {who}, and torch's", site.reason)


@pytest.mark.parametrize("name", [pytest.param("cross", marks=pytest.mark.long), "no weights"])
def test_by_a_kernel_of_our_own(monkeypatch, name):
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    function, named, _ = CASES[name]
    module = made(**named)
    with torch.no_grad():
        done = rewrite(lambda x, y: function(module, x, y), *inputs(), softmax="unified")
        assert done.codes == ["unified"]
        assert done.calls("overlapc.attention.default") == 1
        found, eager = done.function(*inputs()), function(module, *inputs())
    torch.testing.assert_close(found, eager)


def test_gradients_of_its_weights():
    module, double = made().train(), made().double().train()
    done = rewrite(lambda x, y: cross(module, x, y), *inputs())
    assert done.codes == ["fused"]
    results = done.function(*inputs()), cross(double, *(t.double() for t in inputs()))
    found, wanted = (
        torch.autograd.grad(r.square().sum(), list(m.parameters()))
        for r, m in zip(results, (module, double), strict=True)
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-4)


def test_dropout_leaves_it_as_it_is():
    module = made(dropout=0.5).train()
    done = rewrite(lambda x, y: cross(module, x, y), *inputs())
    assert done.codes == ["!dropout"]
    assert done.after == done.before


def test_what_is_not_taken_for_small_sizes_leaves_the_call():
    module = made()
    with torch.no_grad():
        done = rewrite(lambda x, y: cross(module, x, y), *inputs(), softmax="auto")
    assert done.codes == ["=too_small"]
    assert done.after == done.before


@pytest.mark.long
def test_two_of_which_one_stays():
    """What is read of the one that stays is its own result again."""
    module, other = made(), made()

    def function(x, y):
        between = with_weights(module, x, y)
        return cross(other, between, with_weights(module, between, y))

    with torch.no_grad():
        done = rewrite(function, *inputs())
        assert done.codes == ["!weights_read", "!weights_read", "fused"]
        torch.testing.assert_close(done.function(*inputs()), function(*inputs()))


@pytest.mark.parametrize(
    "named", [{}, pytest.param({"add_bias_kv": True, "bias": False}, marks=pytest.mark.long)]
)
def test_one_graph_serves_sizes_that_vary(named):
    """Mutants: a product of sizes is their sum; of a size that is made no node is remembered."""
    module, double = made(**named), made(**named).double()

    def function(x, y, pad):
        return module(x, y, y, key_padding_mask=pad)[0]

    def given(batch, rows, keys):
        pad = torch.rand(batch, keys) > 0.7
        pad[:, 0] = False
        return torch.randn(batch, rows, WIDTH), torch.randn(batch, keys, WIDTH), pad

    with torch.no_grad():
        done = rewrite(function, *given(2, 11, 19), dynamic=True)
        assert done.codes == ["fused"]
        for sizes in ((2, 11, 19), (3, 17, 23), (5, 2, 7)):
            x, y, pad = given(*sizes)
            found = done.function(x, y, pad)
            wanted = double(x.double(), y.double(), y.double(), key_padding_mask=pad)[0]
            assert found.stride() == function(x, y, pad).stride()
            assert_alike(found, wanted, torch.float32)
    assert len(done.after) == 1
    assert done.calls("softmax") == 0


def test_dropout_that_is_an_input_is_guarded():
    """Mutants: a number that is given is refused, or dropout is none whose number is read."""
    module = made(dropout=0.0).train()
    x, y = torch.randn(2, 11, WIDTH), torch.randn(2, 19, WIDTH)
    done = rewrite(lambda x, y: cross(module, x, y), x, y, dynamic=True)
    assert done.codes[-1] == "fused"
    graphs = len(done.after)
    torch.testing.assert_close(done.function(x, y), cross(module, x, y))
    assert len(done.after) == graphs
    module.dropout = 0.5
    assert not torch.equal(done.function(x, y), done.function(x, y))
    assert done.codes[-1] == "!dropout"
    assert "Dropout of 0.5 is" in done.sites[-1].reason


def test_a_kernel_of_a_whole_layer_is_told():
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True).eval()
    with torch.no_grad():
        done = rewrite(layer, inputs()[0])
    assert done.codes == ["!multi_head_module"]
    assert done.after == done.before


def test_a_recorder_that_loses_a_call_shows(monkeypatch):
    real = modules._Recorder._put

    def lossy(self, func, args, kwargs, value):
        if getattr(func, "__name__", "") == "mul":  # the scale of the queries
            self._node_of[id(value)] = self.node_of(args[0])
            return self.node_of(args[0])
        return real(self, func, args, kwargs, value)

    monkeypatch.setattr(modules._Recorder, "_put", lossy)
    with pytest.raises(AssertionError):
        test_a_module("padded")


def test_a_module_stays_one_call_where_the_pass_is_left_out():
    """It is spelled out to be read, and put together again."""
    with torch.no_grad():
        done = rewrite(itself, made(), *inputs(), disable=("rewrite_attention",))
    assert done.codes == ["!disabled"]
    assert done.after == done.before
