"""The catalogue's graphs over real ranks: after the passes they give what they gave before.

Inductor is left out: the graph that it would be given runs op by op, as the passes leave it and as
they got it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed._functional_collectives as functional
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch._inductor.compile_fx import compile_fx
from torch._inductor.fx_passes.post_grad import view_to_reshape

from overlapc.graphs.origins import graph_kind
from overlapc.graphs.sizes import shape_of
from overlapc.options import from_user
from overlapc.passes import PIPELINE
from overlapc.passes.base import Compilation, run_passes
from overlapc.passes.overlap_chains import OverlapChains
from tests.passes.catalogue import REWRITES
from tests.passes.spelling import BATCH, group
from tests.passes.test_catalogue import STANDS_IN_THE_WAY
from tests.targets import SLOW_LINK

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 2e-2}
"""Relative error by the dtype of a result: sums are added up in another order."""


@dataclass
class Side:
    """Which graphs of a function run, its backward's too: those after our passes or before them."""

    after: bool = True


def rewritten(
    function, passes, sites, target=SLOW_LINK, overlap="chunked", dynamic=None, side=None
):
    """The function as our passes leave it, run without Inductor; or as ``side`` says."""
    options = from_user({"target": target, "overlap": overlap})
    side = side or Side()

    def inner(graph_module, inputs, **context):
        before = copy.deepcopy(graph_module)
        view_to_reshape(before)
        after = copy.deepcopy(before)
        compilation = Compilation(options, graph_kind(), lambda device, group: target)
        run_passes(passes, after.graph, compilation)
        sites.extend(site.decision for site in compilation.sites)
        for one in (before, after):
            one.recompile()
        return make_boxed_func(lambda *values: (after if side.after else before)(*values))

    def backend(graph_module, inputs):
        return compile_fx(
            graph_module, inputs, inner, config_patches={"force_disable_caches": True}
        )

    return torch.compile(function, backend=backend, dynamic=dynamic)


def tensors(value):
    return (
        [value] if isinstance(value, torch.Tensor) else [v for part in value for v in tensors(part)]
    )


def run(function, inputs, *, trained):
    """Outputs, and the gradients of all floating inputs."""
    if not trained:
        with torch.no_grad():
            return tensors(function(*inputs))
    leaves = [v.clone().requires_grad_() if v.is_floating_point() else v for v in inputs]
    outputs = tensors(function(*leaves))
    torch.manual_seed(1)
    sum((out * torch.randn_like(out)).sum() for out in outputs).backward()
    return [*(out.detach() for out in outputs), *(v.grad for v in leaves if v.requires_grad)]


def worst(found, wanted):
    """Largest error of any tensor, in units of what its dtype allows."""
    errors = []
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        wide, true = one.double(), other.double()
        error = (wide - true).norm() / true.norm().clamp(min=1e-30)
        errors.append(error.item() / TOLERANCE.get(one.dtype, 1e-3))
        assert not wide.isnan().any() or true.isnan().any()
    return max(errors)


def compare(rank, names, passes=PIPELINE, dynamic=None):
    """Each spelling's worst error and its sites' decisions; fresh memory holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return {name: _compared(rank, name, passes, dynamic) for name in names}
    finally:
        torch.use_deterministic_algorithms(False)


def _compared(rank, name, passes, dynamic):
    spelling = REWRITES[name]
    torch._dynamo.reset()
    torch.manual_seed(rank)
    inputs, sites = spelling.inputs(), []
    trained, side = spelling.backward is not None, Side(after=False)
    compiled = rewritten(spelling.function, passes, sites, dynamic=dynamic, side=side)
    wanted = run(compiled, inputs, trained=trained)
    side.after = True
    return worst(run(compiled, inputs, trained=trained), wanted), sites


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 2, 3))])
def test_values_and_gradients(part, two_ranks):
    """Every fourth spelling in each run of the tests: those beside each other are alike, and the
    golden texts of all of them tell what is computed."""
    names = list(REWRITES)[part::4]
    for found in two_ranks.run(compare, names):
        assert {name: error for name, (error, _) in found.items() if not error < 1} == {}
        assert all("rewritten" in sites for _, sites in found.values())


@pytest.mark.parametrize(
    "names",
    [
        ("scatter_sequence", "gate_up", "pooled", "padded_part"),
        pytest.param(tuple(REWRITES), marks=pytest.mark.long),
    ],
    ids=["few", "all"],
)
def test_values_and_gradients_where_every_size_varies(names, two_ranks):
    for found in two_ranks.run(compare, names, PIPELINE, True, timeout=3 * len(names) + 90):
        assert {name: error for name, (error, _) in found.items() if not error < 1} == {}
        gone = {name for name, (_, sites) in found.items() if "rewritten" not in sites}
        assert gone <= set(STANDS_IN_THE_WAY)


SENT = [[[10, 7], [5, 20]], [[3, 8], [6, 2]]]
"""Rows from each rank to each, in two calls."""


def mixture(x, up, down, order, given, taken):
    """Experts over all ranks in training; the tokens that come back are put in their order."""
    h = F.gelu(functional.all_to_all_single_autograd(x[order], taken, given, group()) @ up) @ down
    back = functional.all_to_all_single_autograd(h, given, taken, group())
    return torch.zeros_like(x).index_add(0, order, back)


def compare_mixture(rank):
    sites, errors = [], []
    ours = rewritten(mixture, PIPELINE, sites, dynamic=True)
    for sent in SENT:
        torch.manual_seed(rank)
        given, taken = sent[rank], [row[rank] for row in sent]
        x = torch.randn(sum(given), 32), torch.randn(32, 48), torch.randn(48, 32)
        inputs = *x, torch.randperm(sum(given))

        def once(function, inputs=inputs, splits=(given, taken)):
            return run(lambda *tensors: function(*tensors, *splits), inputs, trained=True)

        errors.append(worst(once(ours), once(mixture)))
    return max(errors), sites


def test_a_combine_whose_size_is_asked_before_it_has_come(two_ranks):
    """The splits say it: without them its gradient's rows, or the tokens', would be refused."""
    for error, sites in two_ranks.run(compare_mixture):
        assert error < 1
        assert set(sites) == {"rewritten"}
        assert len(sites) % 4 == 0


@dataclass(frozen=True)
class Mutant(OverlapChains):
    """Rewrites with one fact of the chain wrong."""

    wrong: str = ""

    def _decided(self, start, compilation):
        chain, decided = super()._decided(start, compilation)
        match self.wrong if chain else "":
            case "blocks":
                chain = replace(chain, outer=())
            case "outer" if chain.padding and chain.program.sent:
                padding = replace(chain.padding, added=chain.padding.added * BATCH)
                chain = replace(chain, outer=(), padding=padding)
            case "zeros" if chain.program.sent:
                without = chain.program.steps[-1].args[1]  # of where(marks, this, zero)
                chain = replace(chain, program=replace(chain.program, sent=without))
            case "received":
                result = replace(
                    chain.results[0], permuted=None, dims=shape_of(chain.results[0].node)
                )
                chain = replace(chain, results=(result, *chain.results[1:]))
            case "sent":
                moved, *others = chain.operands
                chain = replace(chain, operands=(replace(moved, permuted=None), *others))
            case "results":
                chain = replace(chain, results=chain.results[::-1])
        return chain, decided


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ("blocks", "scatter_sequence"),
        ("blocks", "gather_sequence"),
        ("results", "result_read_twice"),
        ("outer", "padded_part"),
        ("received", "scatter_turned"),
        ("received", "tokens_last"),
        ("sent", "gather_turned"),
        ("sent", "tokens_first"),
    ],
)
def test_a_wrong_fact_of_a_chain_shows(wrong, name, two_ranks):
    for found in two_ranks.run(compare, [name], (Mutant(wrong=wrong),)):
        assert not found[name][0] < 1


def test_a_bias_sent_as_padding_shows_where_it_is_received(two_ranks):
    name = "padded_part_of_bias"
    first, last = two_ranks.run(compare, [name], (Mutant(wrong="zeros"),))
    assert first[name][0] < 1
    assert not last[name][0] < 1
