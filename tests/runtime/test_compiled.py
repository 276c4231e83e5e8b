"""``torch.compile(backend="overlapc")`` over real gloo ranks: values, gradients, shapes, counts."""

from __future__ import annotations

import re

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import overlapc
from tests.targets import FAST_LINK, SLOW_LINK

OPTIONS = {"target": SLOW_LINK, "overlap": "chunked"}


def error(found, wanted):
    return ((found.double() - wanted).norm() / wanted.norm()).item()


def row_parallel(x, w, b):
    y = torch.nn.functional.linear(x, w, b)
    dist.all_reduce(y)
    return y.tanh()


def values_and_gradients(rank):
    torch.manual_seed(rank)
    compiled = torch.compile(row_parallel, backend="overlapc", options=OPTIONS)
    # In eager mode an in-place all-reduce has no gradient; every compiled one reduces it again.
    reference = torch.compile(row_parallel, backend="aot_eager")
    errors = []
    for dtype in (torch.float32, torch.float64):
        leaves = [torch.randn(s, dtype=torch.float64) for s in ((4, 128, 32), (64, 32), (64,))]
        seen = [leaf.to(dtype).requires_grad_() for leaf in leaves]
        true = [leaf.requires_grad_() for leaf in leaves]
        found, wanted = compiled(*seen), reference(*true)
        weights = torch.randn(wanted.shape, dtype=torch.float64)
        (found * weights.to(dtype)).sum().backward()
        (wanted * weights).sum().backward()
        errors.append(error(found.detach(), wanted.detach()))
        errors += [error(s.grad, t.grad) for s, t in zip(seen, true, strict=True)]
    return errors, [(site.graph, site.decision, dict(site.calls)) for site in report_of(dtype)]


def report_of(dtype):
    name = str(dtype).removeprefix("torch.")
    return [site for site in overlapc.report().sites if name in site.shape]


def test_values_and_gradients_against_float64(two_ranks):
    for errors, sites in two_ranks.run(values_and_gradients):
        assert max(errors[:4]) < 1e-5
        assert max(errors[4:]) < 1e-13
        assert ("forward", "rewritten", {"chunked": 1}) in sites


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(32, 128)
        self.down = torch.nn.Linear(128, 32)

    def forward(self, x):
        return self.down(self.up(x).relu())


def tensor_parallel(size):
    torch.manual_seed(0)
    whole = Mlp().double()
    split = Mlp()
    split.load_state_dict(whole.state_dict())
    mesh = init_device_mesh("cpu", (size,))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    return whole, parallelize_module(split, mesh, plan)


def train_a_plan(rank, size):
    whole, split = tensor_parallel(size)
    compiled = torch.compile(split, backend="overlapc", options=OPTIONS)
    torch.manual_seed(1)
    x = torch.randn(4, 96, 32, dtype=torch.float64, requires_grad=True)
    x32 = x.detach().float().requires_grad_()
    found, wanted = compiled(x32), whole(x)
    weights = torch.randn(wanted.shape, dtype=torch.float64)
    (found * weights.float()).sum().backward()
    (wanted * weights).sum().backward()
    errors = [error(found.detach(), wanted.detach()), error(x32.grad, x.grad)]
    for name, parameter in split.named_parameters():
        grad = parameter.grad.full_tensor()
        errors.append(error(grad, whole.get_parameter(name).grad))
    calls = [dict(s.calls) for s in overlapc.report().sites if s.decision == "rewritten"]
    return errors, [call for call in calls if call]


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_a_tensor_parallel_plan_trains_right(size, request):
    ranks = request.getfixturevalue("two_ranks" if size == 2 else "four_ranks")
    for errors, calls in ranks.run(train_a_plan, size, timeout=110):
        assert max(errors) < 1e-5
        assert sum(call.get("chunked", 0) for call in calls) >= 2  # forward and backward


def dynamic_rows(rank):
    torch.manual_seed(rank)
    w = torch.randn(64, 32)
    counter = CompileCounterWithBackend("overlapc")

    def project(x):
        return functional.all_reduce(x @ w.t(), "sum", dist.group.WORLD)

    def counting(gm, example_inputs):
        from overlapc.backend import backend

        counter.frame_count += 1
        return backend(gm, example_inputs, options={"target": SLOW_LINK})

    compiled = torch.compile(project, backend=counting, dynamic=True)
    errors, before = [], len(overlapc.report().sites)
    for rows in (512, 7, 2, 300, 513, 64, 1000, 129):
        x = torch.randn(rows, 32)
        wanted = x.double() @ w.double().t()
        dist.all_reduce(wanted)
        errors.append(error(compiled(x), wanted))
    (site,) = overlapc.report().sites[before:]
    return errors, counter.frame_count, dict(site.calls), site.shape


def test_rows_that_change_compile_once_and_plan_each(two_ranks):
    for errors, compiled, calls, shape in two_ranks.run(dynamic_rows):
        assert max(errors) < 1e-5
        assert compiled == 1
        assert shape.startswith("~512")
        assert calls["serial"] >= 2
        assert calls["chunked"] >= 4


def modes(rank):
    torch.manual_seed(rank)
    x, w, b = torch.randn(256, 32), torch.randn(64, 32), torch.randn(64)
    wanted = row_parallel(x.double(), w.double(), b.double())
    errors = []
    for arguments in (
        {"mode": "default"},
        {"mode": "max-autotune-no-cudagraphs"},
        {"fullgraph": True, "options": {**OPTIONS, "inductor": {"cpp.threads": 1}}},
        {"dynamic": True, "options": OPTIONS},
    ):
        torch._dynamo.reset()
        with torch.no_grad():
            found = torch.compile(row_parallel, backend="overlapc", **arguments)(x, w, b)
        errors.append(error(found, wanted))
    return errors


def test_modes_dynamic_and_fullgraph(two_ranks):
    for errors in two_ranks.run(modes):
        assert max(errors) < 1e-5


def generated(rank):
    """The code that Inductor makes of a graph that is left as it was, with us and without, of rows
    that are known and that vary; and that of one that is ours."""
    torch.manual_seed(rank)
    x, w = torch.randn(256, 32), torch.randn(32, 64)

    def project(x, w):  # and no more, which a C++ compiler would take seconds for
        return functional.all_reduce(x @ w, "sum", dist.group.WORLD)

    def code(dynamic, **arguments):
        torch._dynamo.reset()
        _, (text,) = run_and_get_code(torch.compile(project, dynamic=dynamic, **arguments), x, w)
        return re.sub(r"AOT ID: .*", "", text)

    ours = {"backend": "overlapc", "options": {"target": SLOW_LINK}}
    kept = {"backend": "overlapc", "options": {"target": FAST_LINK}}
    both = [(code(dynamic, **kept), code(dynamic)) for dynamic in (False, True)]
    return both, code(True, **ours)


def test_a_kept_graph_is_the_code_that_inductor_makes_and_ours_calls_a_function(two_ranks):
    """Past torch's dispatcher. Mutants: every chain is rewritten; none is called directly."""
    for both, ours in two_ranks.run(generated):
        for kept, inductors in both:
            assert kept == inductors
            assert "_c10d_functional.all_reduce" in kept
        assert "extern_kernels.overlapc_gemm_all_reduce([" in ours
        assert "torch.ops.overlapc.gemm_all_reduce.default([" not in ours


def no_collectives(rank):
    before = len(overlapc.report().sites)
    x = torch.randn(8, 8)
    found = torch.compile(lambda v: (v @ v).relu(), backend="overlapc")(x)
    return error(found, (x.double() @ x.double()).relu()), len(overlapc.report().sites) - before


def test_a_model_without_collectives_compiles_as_with_inductor(two_ranks):
    for difference, sites in two_ranks.run(no_collectives):
        assert difference < 1e-5
        assert sites == 0
