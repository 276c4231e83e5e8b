"""Products by a parameter that no op takes the place of: each is named with its reason."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._inductor.utils import run_and_get_code

import overlapc
from overlapc.graphs.linear.unread import parameters_of
from overlapc.planning.linear.regions import LinearEntry, Regions
from overlapc.planning.linear.table import LinearTable
from overlapc.runtime.machine import this_machine
from overlapc.tuning.linear import layers_of

ROWS, WIDE, INNER = 3, 48, 80


pytestmark = pytest.mark.usefixtures("inference")


class Holds(nn.Module):
    """A function of rows as a module that holds the weights."""

    def __init__(self, function, *weights):
        super().__init__()
        self.function, self.count = function, len(weights)
        for index, weight in enumerate(weights):
            self.register_buffer(f"w{index}", weight)

    def forward(self, *inputs):
        return self.function(*inputs, *(getattr(self, f"w{i}") for i in range(self.count)))


def autocast(x, w, b):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.linear(x, w, b)


def fp8(x, w, scale):
    return torch._scaled_mm(x, w.t(), scale, scale, out_dtype=torch.bfloat16)


rows, weight = torch.randn(ROWS, WIDE), torch.randn(INNER, WIDE)
experts = torch.randn(ROWS, WIDE, INNER)
half, bytes8 = rows.bfloat16(), torch.ones(INNER, WIDE, dtype=torch.int8)

UNREAD = {
    "left_weight of rows as columns": (lambda x, w: w @ x.t(), [rows], [weight]),
    "left_weight turned": (lambda x, w: w.t() @ x.sin(), [torch.randn(INNER, ROWS)], [weight]),
    "left_weight of batches": (lambda x, w: w @ x, [torch.randn(2, WIDE, ROWS)], [weight]),
    "left_weight in tensordot": (
        lambda x, w: torch.tensordot(w, x, dims=([1], [1])), [rows], [weight]
    ),
    "cast_weight": (autocast, [rows], [weight, torch.randn(INNER)]),
    "computed_weight": (lambda x, w: F.linear(x, w * 2), [rows], [weight]),
    "computed_weight copied": (lambda x, w: x @ w.t().contiguous(), [rows], [weight]),
    "computed_weight repeated": (lambda x, w: F.linear(x, w[:1].expand(9, -1)), [rows], [weight]),
    "own_weights": (lambda x, w: torch.bmm(x[:, None], w), [rows], [experts]),
    "own_weights of vmap": (
        lambda x, w: torch.vmap(F.linear, (None, 0))(x, w.mT), [rows], [experts]
    ),
    "gathered_weight": (
        lambda x, i, w: torch.bmm(x[:, None], w[i]),
        [rows, torch.tensor([2, 0, 1])],
        [experts],
    ),
    "vector": (torch.mv, [torch.randn(INNER, WIDE)], [torch.randn(WIDE)]),
    "vector and more": (
        lambda v, b, w: torch.addmv(b, w, v, beta=0.5), [rows[0]], [torch.randn(INNER), weight]
    ),
    "another_op of bytes": (
        torch.ops.aten._weight_int8pack_mm, [half], [bytes8, torch.randn(INNER).bfloat16()]
    ),
    "another_op of fp8": (
        fp8,
        [rows.to(torch.float8_e4m3fn)],
        [weight.to(torch.float8_e4m3fn), torch.ones(())],
    ),
    "another_op of two rows": (
        F.bilinear, [rows, rows[:, :6]], [torch.randn(9, WIDE, 6)]
    ),
}  # fmt: skip
"""By its code: a function, its rows, and the weights that a module holds."""


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_has_a_reason(name, explained):
    """The graph stays. Mutants: no product is looked for; a weight on the left is not; only what
    the graph is given counts as made of parameters."""
    function, inputs, weights = UNREAD[name]
    result = explained(Holds(function, *weights), *inputs, linear="flat")
    ((before, after),) = result.graphs.values()
    found = [(site.kind, site.decision, site.code) for site in result.report.sites]
    assert (found, before) == ([("linear", "refused", name.split()[0])], after)
    assert result.report.sites[0].reason.endswith(".")


READ = {
    "what is given twice": (lambda x, w: F.linear(F.embedding(x, w), w), [torch.tensor([1, 2])]),
    "an outer product": (lambda x, w: w[:, :1] @ x[None].float(), [torch.tensor([1, 2])]),
    "a store that is written to": (lambda x, w: x @ w.add_(1).sin().t(), [rows]),
    "scores of a parameter's rows": (lambda x, w: torch.softmax(x * w[0], -1), [rows]),
    "a mean of products": (lambda x, w: (x * w[:ROWS]).sum(1), [rows]),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_no_linear_layer_is_not_named(name, explained):
    """Mutants: outer products are named; so is what is made of a buffer that the graph writes to;
    sums of matrices."""
    function, inputs = READ[name]
    result = explained(Holds(function, weight.clone()), *inputs, linear="flat")
    assert [site for site in result.report.sites if site.decision == "refused"] == []


def test_gradients_are_no_products_by_a_parameter(explained):
    with torch.enable_grad():
        layer = nn.Linear(WIDE, INNER)
        result = explained(lambda x: autocast(x.sin(), layer.weight, layer.bias),
                           rows.clone().requires_grad_(), linear="flat")  # fmt: skip
    codes = [(s.graph, s.code) for s in result.report.sites if s.decision == "refused"]
    assert codes == [("forward", "cast_weight")]


def test_nothing_is_named_in_a_backward_graph(explained):
    """By a literal, which both graphs make anew, the other operand's gradient is computed. The
    mutant that looks at backward graphs as well names it twice."""
    with torch.enable_grad():
        x = torch.randn(2, 5, requires_grad=True)
        result = explained(lambda x: torch.tensor([[1.5, 2.0], [0.25, 7.0]]) @ x.sin(), x,
                           linear="flat")  # fmt: skip
    assert [(s.graph, s.code) for s in result.report.sites] == [("forward", "left_weight")]


def test_nothing_is_said_where_nothing_was_measured(explained):
    assert explained(Holds(lambda x, w: w @ x.t(), weight), rows).report.sites == []


FROZEN = {"freezing": True, "max_autotune": True}


def measured(model):
    """Let a table say that ours win at all rows of a model's layers."""
    entries = (LinearEntry(one.problem, Regions(1, 3, 65), ()) for one in layers_of(model, [rows]))
    machine = this_machine("cpu")
    LinearTable(machine, tuple(entries)).save(LinearTable.path(machine))


def test_what_inductor_packed_is_explained(explained):
    """Its tensors have no storage. The mutant that copies constants with the graph raises."""
    model = nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, 8)).eval()
    with torch._inductor.config.patch(FROZEN):
        sites = explained(model, rows, linear="flat").report.sites
    assert [(site.decision, site.code) for site in sites] == [("refused", "another_op")] * 2


@pytest.mark.long
def test_no_op_takes_the_place_of_what_inductor_tunes():
    """Compiled: whatever Inductor finds fastest runs, though a table says that ours win: it packs
    frozen weights before our pass. The mutant that knows no frozen parameters says nothing."""
    model = nn.Sequential(nn.Linear(WIDE, INNER), nn.ReLU(), nn.Linear(INNER, 8)).eval()
    measured(model)
    with torch._inductor.config.patch(FROZEN):
        result, codes = run_and_get_code(torch.compile(model, backend="overlapc"), rows)
    torch.testing.assert_close(result, model(rows))
    found = [(site.decision, site.code) for site in overlapc.report().sites[-2:]]
    assert found == [("refused", "another_op")] * 2
    assert not any("overlapc" in code for code in codes)
    torch._dynamo.reset()
    left = torch.compile(model, backend="overlapc")
    _, codes = run_and_get_code(left, rows)  # without those settings they do
    assert any("overlapc" in code for code in codes)


def test_no_template_of_inductor_takes_a_weight_that_may_change():
    """Why calibration names none as a candidate: should one take it as it lies some day, it is."""
    model = nn.Linear(1024, 1024).eval()
    tuned = torch.compile(model, options={"max_autotune": True})
    _, (code,) = run_and_get_code(tuned, torch.randn(16, 1024))
    assert "extern_kernels.addmm(" in code
    assert "CppMicroGemm" not in code


def test_parameters_outside_a_compilation():
    graph = torch.fx.symbolic_trace(lambda x: x + 1).graph
    assert parameters_of(graph) == set()
    assert overlapc.explain(lambda x: x + 1)(rows).sites == []
