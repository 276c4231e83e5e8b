"""A communicator beside a group: same members and order, made once, held to its SMs."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from overlapc.errors import GroupError
from overlapc.runtime import communicators, requirements
from overlapc.runtime.communicators import communicator, make_communicator, sibling
from overlapc.runtime.requirements import why_not_signaled
from tests.runtime.fake_gpu import CUDA, Gpu, in_memory_of, present

STUB = Path(torch.__file__).parent / "_C" / "_distributed_c10d.pyi"
SMS = 4


def reordered_pair(rank: int) -> list[int] | None:
    """On ranks 3 and 1, in this order: what a sibling of their group gathers; others stay away."""
    everyone = dist.group.WORLD
    group = dist.new_group([3, 1], sort_ranks=False, use_local_synchronization=True)
    if rank not in (1, 3):
        return None
    made = sibling(group, "gloo")
    assert made is not group
    assert made is not everyone
    gathered = torch.full((2,), -1)
    dist.all_gather_into_tensor(gathered, torch.tensor([rank]), group=made)
    return gathered.tolist()


@pytest.mark.skipif(
    "sort_ranks" not in inspect.signature(dist.new_group).parameters,
    reason="this torch sorts the ranks of every group, so none has another order",
)
def test_a_sibling_has_the_members_and_their_order_and_nobody_else_takes_part(four_ranks):
    assert four_ranks.run(reordered_pair) == [None, [3, 1], None, [3, 1]]


def test_a_group_whose_order_was_lost_is_refused(fake_group, monkeypatch):
    other = SimpleNamespace(rank=lambda: 1)
    monkeypatch.setattr(communicators.dist, "new_group", lambda *_, **__: other)
    with pytest.raises(GroupError, match="same order"):
        sibling(fake_group, "gloo")


class Made:
    """Stands for NCCL's group, and logs on which stream it is used."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.used = gpu, []

    def allreduce(self, tensors: list[torch.Tensor]) -> Any:
        assert self.gpu.captured is None
        self.used.append((self.gpu.stream.name, [tuple(t.shape) for t in tensors]))
        return SimpleNamespace(wait=lambda: None)


@pytest.fixture
def nccl(monkeypatch):
    """NCCL's options as torch declares them, and the arguments of every group that is made."""
    made: list[Any] = []

    class Options:
        def __init__(self, is_high_priority_stream: bool = False) -> None:
            self.is_high_priority_stream = is_high_priority_stream
            self.config = SimpleNamespace(max_ctas=None)

    monkeypatch.setattr(dist, "ProcessGroupNCCL", SimpleNamespace(Options=Options), raising=False)
    gpu = Gpu()

    def sibling(group: Any, backend: str, options: Any) -> Made:
        made.append((backend, options))
        return Made(gpu)

    monkeypatch.setattr(communicators, "sibling", sibling)
    with present(gpu), in_memory_of(gpu):
        yield made


def test_it_is_made_once_with_at_most_so_many_ctas_and_used_at_once(fake_group, nccl):
    made = nccl
    assert communicator(fake_group, SMS) is None
    make_communicator(fake_group, SMS, CUDA)
    make_communicator(fake_group, SMS, CUDA)
    ((backend, options),) = made
    assert (backend, options.config.max_ctas) == ("nccl", SMS)
    assert options.is_high_priority_stream
    found: Any = communicator(fake_group, SMS)
    assert found.used == [("comm(-3)", [(1,)])]
    assert communicator(fake_group, SMS + 1) is None
    make_communicator(fake_group, SMS + 1, CUDA)
    assert len(made) == 2


def test_it_is_not_made_during_a_capture(fake_group, nccl):
    made = nccl
    graph: Any = torch.cuda.CUDAGraph()
    graph.capture_begin()
    with pytest.raises(GroupError, match="during graph capture"):
        make_communicator(fake_group, SMS, CUDA)
    assert not made
    graph.capture_end()


def members(tree: ast.Module, *path: str) -> set[str]:
    """Names that a class of a stub declares, and the parameters of its constructor."""
    body = tree.body
    for name in path:
        found = (node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
        body = next(found).body
    names = {node.target.id for node in body if isinstance(node, ast.AnnAssign)
             and isinstance(node.target, ast.Name)}  # fmt: skip
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names |= {argument.arg for argument in node.args.args}
    return names


def test_torch_has_what_is_used_of_it():
    # NCCL is not in every build of torch: what its bindings take is read from their stub.
    stub = ast.parse(STUB.read_text())
    assert "max_ctas" in members(stub, "ProcessGroupNCCL", "NCCLConfig")
    assert {"config", "is_high_priority_stream"} <= members(stub, "ProcessGroupNCCL", "Options")
    taken = {"ranks", "backend", "pg_options", "use_local_synchronization", "group_desc"}
    assert taken <= set(inspect.signature(dist.new_group).parameters)
    begin = inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters
    assert "capture_error_mode" in begin
    assert "def priority_range" in (STUB.parent / "__init__.pyi").read_text()
    for name in ("wait_stream", "synchronize"):
        assert callable(getattr(torch.cuda.Stream, name))


def gpu_of(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], backend: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(requirements, "backend_name", lambda group, device: backend)


def test_a_gpu_with_nccl_lacks_nothing(fake_group, monkeypatch):
    gpu_of(monkeypatch, (9, 0), "nccl")
    assert why_not_signaled(CUDA, fake_group) == ""


@pytest.mark.parametrize("backend", ["gloo", "mpi", "fake", "cpu:gloo,cuda:gloo"])
def test_a_backend_without_streams_is_a_reason(fake_group, monkeypatch, backend):
    gpu_of(monkeypatch, (9, 0), backend)
    assert why_not_signaled(CUDA, fake_group) == f"collectives of {backend} do not run on streams"


def test_an_old_device_is_a_reason(fake_group, monkeypatch):
    gpu_of(monkeypatch, (7, 5), "nccl")
    assert "sm_75" in why_not_signaled(CUDA, fake_group)
    monkeypatch.setattr(torch.version, "hip", "6.2")  # whose numbers are others
    assert why_not_signaled(CUDA, fake_group) == ""


def test_a_cpu_and_a_missing_triton_are_reasons(fake_group, monkeypatch):
    assert "cpu" in why_not_signaled(torch.device("cpu"), fake_group)
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    assert "Triton" in why_not_signaled(CUDA, fake_group)


def test_a_group_without_a_backend_for_the_device_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def none(group: Any, device: str) -> str:
        raise GroupError(f"The group has no backend for {device}", where="", remedy="")

    monkeypatch.setattr(requirements, "backend_name", none)
    assert "no backend for cuda" in why_not_signaled(CUDA, SimpleNamespace())
