"""What a compiled model does with odd tensors, groups of some ranks or one, and groups that go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh

import overlapc
from tests.runtime import matrix, mutants
from tests.runtime.chains import call
from tests.runtime.test_bad_input import spec, tensors
from tests.targets import SLOW_LINK

OPTIONS = {"target": SLOW_LINK}


def layer(x, w, v):
    """A chain of every collective that reduces or gathers."""
    group = dist.group.WORLD
    reduced = functional.all_reduce(x @ w, "sum", group)
    scattered = functional.reduce_scatter_tensor(x @ v, "sum", 0, group)
    return reduced, scattered, functional.all_gather_tensor(x, 0, group) @ v


def plain(rows=96, k=64, n=48, dtype=torch.float32):
    def made():
        kinds = torch.randn if dtype.is_floating_point or dtype.is_complex else whole_numbers
        return tuple(kinds(*size).to(dtype) for size in ((rows, k), (k, n), (k, n)))

    return made


def whole_numbers(*size):
    return torch.randint(-9, 9, size)


def arranged(how: Callable[[torch.Tensor], torch.Tensor], rows=96, k=64):
    """Operands of which the moved one is a view of another order or with gaps."""

    def made():
        x = how(torch.randn(2 * rows, 2 * k))
        assert x.shape == (rows, k)
        assert not x.is_contiguous()
        return x, torch.randn(48, k).t(), torch.randn(k, 2 * 48)[:, ::2]

    return made


ODD = {
    "every other row": arranged(lambda x: x[::2, :64]),
    "some columns": arranged(lambda x: x[:96, 1:65]),
    "transposed": arranged(lambda x: x[:64, :96].t()),
    "one row repeated": arranged(lambda x: x[:1, :64].expand(96, 64)),
    "no rows": plain(rows=0),
    "no columns": plain(n=0),
    "nothing contracted": plain(k=0),
    "two rows": plain(rows=2),
    "int64": plain(dtype=torch.int64),
    "int32": plain(dtype=torch.int32),
    "uint8": plain(dtype=torch.uint8),
    "complex64": plain(dtype=torch.complex64),
    "complex128": plain(dtype=torch.complex128),
}


def outcome(function, inputs):
    """What a call returns, or the name of what it raises."""
    try:
        with torch.no_grad():
            return [value + 0 for value in function(*inputs)]
    except Exception as error:
        return type(error).__name__


def odd(rank, names):
    """Names of the cases whose outcome is not that of eager."""
    wrong = {}
    for name in names:
        torch._dynamo.reset()
        torch.manual_seed(rank)
        inputs = ODD[name]()
        wanted = outcome(layer, inputs)
        found = outcome(torch.compile(layer, backend="overlapc", options=OPTIONS), inputs)
        if isinstance(wanted, str) or isinstance(found, str):
            wrong[name] = f"{found}, and eager {wanted}"
            continue
        for one, other in zip(found, wanted, strict=True):
            is_alike = (one.shape, one.dtype) == (other.shape, other.dtype)
            if not is_alike or not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
                wrong[name] = f"{one} is not {other}"
    return wrong


def test_odd_tensors_give_what_eager_gives(two_ranks):
    assert two_ranks.run(odd, list(ODD), timeout=110) == [{}, {}]


def test_a_wrong_value_of_an_odd_tensor_is_seen(two_ranks):
    assert all(two_ranks.run(mutated, mutants.first_rows_always, ["every other row"]))


def mutated(rank, mutant, names):
    matrix.forget()
    try:
        with mutant(rank):
            return odd(rank, names)
    finally:
        dist.barrier()
        matrix.forget()


def on_a_sub_mesh(rank):
    """Error of an all-reduce along one dimension of a mesh, its schedules, and its group's size."""
    torch._dynamo.reset()
    torch.manual_seed(rank)
    group = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"].get_group()
    x, w = torch.randn(512, 64), torch.randn(64, 96)
    compiled = torch.compile(
        lambda x: functional.all_reduce(x @ w, "sum", group), backend="overlapc", options=OPTIONS
    )
    with torch.no_grad():
        found, wanted = compiled(x), x.double() @ w.double()
    dist.all_reduce(wanted, group=group)
    sites = [site for site in overlapc.report().sites if site.group == group.group_name]
    error = ((found.double() - wanted).norm() / wanted.norm()).item()
    return error, [(dict(site.calls), site.plan.problem.world_size) for site in sites]


def test_a_sub_mesh(four_ranks):
    for error, sites in four_ranks.run(on_a_sub_mesh):
        assert error < 1e-5
        assert sites == [({"chunked": 1}, 2)]


def alone(rank):
    """Where a group has one rank: the result's error, the site's code, and what a call sends."""
    torch._dynamo.reset()
    group = [dist.new_group([member]) for member in range(2)][rank]
    x, w = torch.randn(512, 64), torch.randn(64, 96)

    def reduced(x):
        return functional.all_reduce(x @ w, "sum", group)

    compiled = torch.compile(reduced, backend="overlapc", options=OPTIONS)
    with torch.no_grad():
        compiled(x)  # compiling calls the collective on tensors without data
        with torch.profiler.profile() as profile:
            found = compiled(x)
    started = [event.key for event in profile.key_averages() if "all_reduce" in event.key]
    (site,) = (site for site in overlapc.report().sites if site.group == group.group_name)
    return (found - x @ w).abs().max().item(), site.code, started


def test_a_group_of_one_sends_nothing(two_ranks):
    for error, code, started in two_ranks.run(alone):
        assert error < 1e-4
        assert (code, started) == ("one_rank", [])


def after_its_group(rank):
    """What a compiled function says when its group was destroyed after it had run."""
    group = dist.new_group([0, 1])
    x, w = torch.randn(512, 64), torch.randn(64, 96)
    compiled = torch.compile(
        lambda x: functional.all_reduce(x @ w, "sum", group), backend="overlapc", options=OPTIONS
    )
    with torch.no_grad():
        compiled(x)
        dist.barrier()
        dist.destroy_process_group(group)
        compiled(x)


def test_a_compiled_function_outlives_its_group_with_an_error(fresh_ranks):
    for _, error in fresh_ranks.outcomes(after_its_group):
        assert "GroupError: There is no process group" in error


# Without option ``verify``

TIMEOUT = timedelta(seconds=5)


def other_rows(rank, kind, alike):
    """Calls with each of the rows that fit, and one with rows that do not."""
    dist.destroy_process_group()
    store = dist.FileStore(os.environ["XDG_CACHE_HOME"] + "/second", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=TIMEOUT)
    chunked = spec(kind, schedule="chunked")
    for units in alike:
        call(chunked, tensors(units))
    call(chunked, tensors(64 + 8 * rank))


@pytest.mark.parametrize("kind", ["gemm_all_reduce", "all_gather_gemm"])
def test_without_verify_the_first_call_still_says_what_differs(kind, fresh_ranks):
    for _, error in fresh_ranks.outcomes(other_rows, kind, ()):
        assert "DisagreementError" in error
        assert "the sizes of a call differ" in error


@pytest.mark.parametrize("kind", ["gemm_all_reduce", "all_gather_gemm"])
def test_without_verify_a_later_call_fails_as_the_collective_does(kind, fresh_ranks):
    """gloo ends a process that is sent more than it expects; its peer may have all it needs."""
    started = time.monotonic()
    outcomes = fresh_ranks.outcomes(other_rows, kind, (64, 32))
    assert time.monotonic() - started < 30
    assert any(error for _, error in outcomes)
    assert not any("DisagreementError" in error for _, error in outcomes)


def a_rank_without_rows(rank):
    """Errors of a dispatch to rank 1 alone and of the combine after it; sizes are numbers."""
    torch._dynamo.reset()
    torch.manual_seed(rank)
    world, w = dist.group.WORLD, torch.randn(64, 32)
    back, there = [0, 300], [300 * rank] * 2

    def dispatch(x):
        return functional.wait_tensor(functional.all_to_all_single(x, there, back, world)) @ w

    def combine(x):
        return functional.wait_tensor(functional.all_to_all_single(x @ w, back, there, world))

    errors = []
    for function, rows in ((dispatch, 300), (combine, sum(there))):
        x = torch.randn(rows, 64)
        wanted = function(x)
        compiled = torch.compile(function, backend="overlapc", options={"target": SLOW_LINK})
        found = compiled(x)
        errors.append((found - wanted).abs().max().item() if wanted.numel() else 0.0)
        assert found.shape == wanted.shape
    return errors


def test_a_rank_without_rows_decides_as_the_others(two_ranks):
    for errors in two_ranks.run(a_rank_without_rows):
        assert max(errors) < 1e-4
