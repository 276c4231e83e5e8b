"""Bounds of scores by the weights of norms of queries and keys, and the φ that follows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import fx, nn

from overlapc.graphs.attention import norm_bounds, problems
from overlapc.graphs.attention.finding import find_sites
from overlapc.graphs.attention.norm_bounds import product_bound
from overlapc.graphs.attention.norms import rotations
from overlapc.graphs.attention.site import Fused
from overlapc.graphs.bodies import graphs_with_inputs, parameters_in
from tests.attention import normed
from tests.attention.normed import BOUNDED, DIM, HALF, LENGTH, Attention, operands
from tests.attention.rewriting import rewrite


def bounds_in(function, *inputs) -> list[tuple[float, str]]:
    """Of the one attention of each graph of a function, bodies first."""
    found = []

    def backend(module, examples: Sequence[object]):
        for graph, given in graphs_with_inputs(module.graph, examples):
            for _, site in find_sites(graph):
                own = site.spelled if isinstance(site, Fused) else site
                found.append(product_bound(own, parameters_in(given)))
        return module.forward

    torch._dynamo.reset()
    torch.compile(function, backend=backend)(*inputs)
    return found


def extremes():
    """Rows along each column, at each place: products of all of them, however far."""
    ones = 1e3 * torch.eye(DIM).repeat_interleave(LENGTH, 0).view(DIM, 1, LENGTH, DIM)
    return ones[:, None], ones[None]


@pytest.mark.parametrize("name", BOUNDED)
def test_a_bound_is_what_the_gains_say(name):
    case = BOUNDED[name]
    model = case.make()
    with torch.no_grad():
        ((bound, why),) = bounds_in(model, *operands())
    assert why == ""
    assert bound == pytest.approx(case.bound(model), rel=1e-5)


def check_reached(model, bound):
    """No product is larger, and some are nearly as large."""
    with torch.no_grad():
        q, k = model.sides(*(side.flatten(0, 1) for side in extremes()))
        largest = (torch.einsum("ahrd,bhsd->abrs", q, k) * DIM**-0.5).abs().max()
    assert largest <= bound
    assert largest >= 0.95 * bound


TIGHT = ("as in llama", "as in gemma", "not turned", "angles scaled", "of length one")


@pytest.mark.parametrize("name", TIGHT)
def test_products_reach_it_and_go_no_further(name):
    model = BOUNDED[name].make()
    with torch.no_grad():
        ((bound, _),) = bounds_in(model, *operands())
    check_reached(model, bound)


def test_roundings_to_a_coarser_dtype_on_the_way_count():
    """Queries of float32 whose norm was made in bfloat16 are as long as that rounds them."""

    class Coarse(Attention):
        def sides(self, q, k):
            q, k = super().sides(q.bfloat16(), k.bfloat16())
            return q.float(), k.float()

    model, coarse = Attention(), Coarse()
    with torch.no_grad():
        ((bound, _),), ((wider, _),) = bounds_in(model, *operands()), bounds_in(coarse, *operands())
    assert wider >= bound * (1 + torch.finfo(torch.bfloat16).eps) ** 4


def test_a_body_that_is_called_for_two_layers_has_the_weights_of_neither():
    def of(*names):
        graph, owner = fx.Graph(), nn.Module()
        owner.body = fx.symbolic_trace(lambda x, w: x * w)
        x, one, other = map(graph.placeholder, ("x", "one", "other"))
        calls = [
            graph.call_function(checkpointed, (graph.get_attr(name), x, w))
            for name, w in zip(names, (one, other), strict=False)
        ]
        graph.output(tuple(calls))
        module = fx.GraphModule(owner, graph)
        inputs = [torch.randn(2), nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))]
        return [
            parameters_in(given)
            for own, given in graphs_with_inputs(module.graph, inputs)
            if own is not module.graph
        ]

    def checkpointed(body, *operands):
        return body(*operands)

    assert [len(found) for found in of("body")] == [1]
    assert [len(found) for found in of("body", "body")] == [0]


def test_a_slice_that_ends_where_the_program_computes_is_no_half():
    end = fx.Graph().placeholder("end")
    whole = torch.empty(3, DIM)
    for index in ((..., slice(None, end)), (), (..., 0)):
        assert not rotations._takes_half(whole, index, 0)
    assert rotations._takes_half(whole, (..., slice(None, HALF)), 0)


def without_gains(side, columns, weights):
    return torch.ones(columns, dtype=torch.float64)


def test_a_bound_that_forgets_the_gains_is_exceeded(monkeypatch):
    monkeypatch.setattr(norm_bounds, "_gain", without_gains)
    model = Attention()
    with torch.no_grad():
        ((bound, _),) = bounds_in(model, *operands())
    with pytest.raises(AssertionError):
        check_reached(model, bound)


def test_a_bound_of_single_columns_is_exceeded_where_they_are_turned():
    model = Attention()
    single = float((model.q * model.k).detach().abs().max()) * DIM**0.5
    with pytest.raises(AssertionError):
        check_reached(model, single)
    assert int(model.q.argmax()) + HALF == int(model.k.abs().argmax())


class OfHeadsThatAreMultiplied(Attention):
    """One head of keys is repeated and then multiplied, as torch decomposes ``enable_gqa``."""

    def sides(self, q, k):
        q, k = super().sides(q, k[:, :1])
        return q, k.repeat_interleave(normed.HEADS, 1) * 3.0

    def forward(self, q, k, v):
        return super().forward(q, k, v[:, :1].repeat_interleave(normed.HEADS, 1))


def given_angles():
    model = Attention()
    cosine, sine = normed.cosine_and_sine()

    def attention(q, k, v, cosine, sine):
        model.angles = lambda: (cosine, sine)
        return model(q, k, v)

    return attention, cosine, sine


def of_other_angles():
    cosine, _ = normed.cosine_and_sine()
    place = torch.arange(DIM, dtype=torch.float32).sin()
    return cosine, place


def by_angles_of_each_column():
    angle = torch.arange(LENGTH * DIM, dtype=torch.float32).view(LENGTH, DIM)
    return angle.cos(), angle.sin()


TURNED = "what turns them is no cosine and sine of one angle"
UNBOUNDED = {
    "of another dimension": (lambda: Attention(normed.of_lengths), ""),
    "of other rows": (lambda: Attention(normed.of_another), ""),
    "by less than its length": (lambda: Attention(normed.by_less_than_its_length), ""),
    "by a number less": (lambda: Attention(normed.by_a_number_less_than_its_length), ""),
    "by the length of others": (lambda: Attention(normed.by_the_length_of_others), ""),
    "by another length": (lambda: Attention(normed.by_another_length), ""),
    "of length one, columns": (lambda: Attention(normed.of_columns), ""),
    "less than nothing": (lambda: Attention(normed.less_than_nothing), ""),
    "other angles": (lambda: Attention(angles=of_other_angles), TURNED),
    "no pairs": (lambda: Attention(angles=by_angles_of_each_column), TURNED),
    "a temperature": (lambda: Attention(normed.by_temperature), "is no weight"),
    "rounded down": (lambda: Attention(normed.rounded_down), ""),
    "squared in float16": (lambda: Attention(normed.squared_in_half), ""),
    "an activation": (lambda: Attention(normed.by_activation), "is no weight"),
    "of heads that are multiplied": (OfHeadsThatAreMultiplied, ""),
    "not finite": (lambda: Attention(largest=math.inf), "no finite numbers"),
}


@pytest.mark.parametrize("name", UNBOUNDED)
def test_nothing_is_known(name):
    make, reason = UNBOUNDED[name]
    with torch.no_grad():
        ((bound, why),) = bounds_in(make(), *operands())
    assert bound == math.inf
    assert reason in why
    assert bool(reason) == bool(why)


def test_angles_that_are_inputs_may_be_any_numbers():
    function, *angles = given_angles()
    with torch.no_grad():
        ((bound, why),) = bounds_in(function, *operands(), *angles)
    assert (bound, TURNED in why) == (math.inf, True)


def test_gains_that_are_inputs_are_no_weights():
    model = Attention(rotates=None)

    def attention(q, k, v, gain):
        q, k = normed.as_llama(q, gain), normed.as_llama(k, gain)
        return torch.softmax(q @ k.mT, -1) @ v

    with torch.no_grad():
        ((bound, why),) = bounds_in(attention, *operands(), model.q.detach())
        assert (bound, "cannot be read" in why) == (math.inf, True)
        ((bound, _),) = bounds_in(attention, *operands(), model.q)
        assert bound < math.inf


@pytest.fixture
def own(monkeypatch):
    """Sites are decided as where generated kernels run."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)
    with torch.no_grad():
        yield


def reason_of(model, *inputs):
    (site,) = rewrite(model, *inputs, softmax="unified").sites
    return site.reason


def test_the_report_says_which_and_why_not(own):
    reason = reason_of(Attention(), *operands())
    assert (
        "relative to φ = 0: by its norms' weights as they are, its scores lie between -9" in reason
    )
    assert "no row is computed twice" in reason
    reason = reason_of(Attention(largest=6.0), *operands())
    assert "rows of too large or small a sum are computed twice; its norms' weights keep" in reason
    assert "products within 144, and no number is safe for all of that in float32" in reason
    reason = reason_of(Attention().half(), *operands(torch.float16))
    assert "each row's first keys" in reason
    assert "no number is safe for all of that in float16" in reason
    reason = reason_of(Attention(finish=lambda scores: scores.exp()), *operands())
    assert "and what is done to scores leaves no bound" in reason
    reason = reason_of(Attention(angles=of_other_angles), *operands())
    assert f"norms of its queries bound no score, for {TURNED}" in reason


@pytest.mark.parametrize(
    "name", ["qwen3 sdpa", pytest.param("qwen3 eager", marks=pytest.mark.long)]
)
def test_norms_of_a_real_model(own, name):
    pytest.importorskip("transformers", reason="needs the extra 'models'")
    from tests.attention import families, test_families

    family, attention = name.split()
    done = test_families.check(family, attention, "unified")
    assert all("by its norms' weights" in site.reason for site in done.sites)
    assert "softmax=bound" in done.after[0]
    model = families.build(families.FAMILIES[family], attention)
    model.get_parameter("model.layers.0.self_attn.q_norm.weight")[3] = 30.0
    (site,) = rewrite(model, test_families.tokens(), softmax="unified").sites
    assert "products within 120" in site.reason


@pytest.mark.long
def test_kernels_are_exact_with_gains_of_another_time(interpreted):
    """The check of each row stays: a bound that is out of date costs time, and no value."""
    (first, ways, redone), (second, again, late) = interpreted("attention_graphs.normed_twice")
    assert (ways, redone) == ({"bound, few rows, 1 split": 1}, 0)
    assert (again, late > 0) == ({"bound, few rows, 1 split": 2}, True)
    assert max(first, second) < 1e-4


class Cached(torch.nn.Module):
    """New keys and values join those that a cache holds."""

    def __init__(self, join):
        super().__init__()
        self.own, self.join = Attention(), join

    def forward(self, q, k, v, old, values, place):
        q, k = self.own.sides(q, k)
        keys, values = self.join(old, k, place), self.join(values, v, place)
        return torch.softmax(q @ keys.transpose(-1, -2) * DIM**-0.5, -1) @ values


CACHES = {
    "as DynamicCache": lambda old, new, place: torch.cat([old, new], dim=-2),
    "as StaticCache": lambda old, new, place: old.index_copy_(2, place, new),
    "not in place": lambda old, new, place: torch.index_copy(old, 2, place, new),
}
UNKNOWN = {
    "made here": lambda old, new, place: torch.cat([2 * old, new], dim=-2),
    "new ones grow": lambda old, new, place: torch.cat([old, new + new], dim=-2),
    "beside columns": lambda old, new, place: torch.cat([old[..., :HALF], new[..., HALF:]], dim=-1),
    "three parts": lambda old, new, place: torch.cat([old, new, old], dim=-2),
    "added": lambda old, new, place: old.index_add_(2, place, new),
}


def cached_bound(join):
    model = Cached(join)
    old, values, _ = operands()
    with torch.no_grad():
        found = bounds_in(model, *operands(), old, values, torch.arange(LENGTH))
    return model, found


@pytest.mark.parametrize("name", CACHES)
def test_keys_of_a_cache_are_taken_for_normed_as_new_ones_are(name):
    model, ((bound, why),) = cached_bound(CACHES[name])
    assert bound == pytest.approx(BOUNDED["as in llama"].bound(model.own), rel=1e-5)
    assert why == ""


@pytest.mark.parametrize("name", UNKNOWN)
def test_of_what_no_cache_holds_nothing_is_taken_for_granted(name):
    _, ((bound, _),) = cached_bound(UNKNOWN[name])
    assert bound == math.inf
