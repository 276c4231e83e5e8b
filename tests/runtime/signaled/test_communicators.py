"""A communicator beside a group: same members and order, made once by all or by none."""

from __future__ import annotations

import ast
import gc
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
import torch.distributed as dist

from overlapc.errors import GroupError
from overlapc.runtime.signaled import communicators, requirements
from overlapc.runtime.signaled.communicators import Communicator, communicator
from overlapc.runtime.signaled.requirements import why_no_kernel, why_no_streams
from tests.runtime.signaled.fake_gpu import CUDA, Gpu, Misuse, in_memory_of, present
from tests.runtime.signaled.pretended import SECONDS, pretended_gpu

STUB = Path(torch.__file__).parent / "_C" / "_distributed_c10d.pyi"
SMS = 4
CPU = torch.device("cpu")


def asked(group: Any, sms: int = SMS, device: torch.device = CPU) -> Communicator | str:
    return communicator(group, sms, device, SECONDS)


def reordered_pair(rank: int) -> list[int] | None:
    """On ranks 3 and 1, in this order: what a communicator of their group gathers."""
    extra = {} if "sort_ranks" not in inspect.signature(dist.new_group).parameters else {
        "sort_ranks": False}  # fmt: skip
    group = dist.new_group([3, 1], use_local_synchronization=True, **extra)
    if rank not in (1, 3):
        return None
    if rank == 1:  # knows one group more than its peer
        dist.new_group([1], use_local_synchronization=True)
    with pretended_gpu():
        found = asked(group)
    assert isinstance(found, Communicator), found
    made = found.group
    assert (made.rank(), made.size()) == (group.rank(), 2)
    gathered = torch.full((2,), -1)
    made._allgather_base(gathered, torch.tensor([rank])).wait()
    dist.destroy_process_group(group)
    return gathered.tolist()


def test_only_members_take_part_and_in_their_order(four_ranks):
    order = [3, 1] if "sort_ranks" in inspect.signature(dist.new_group).parameters else [1, 3]
    assert four_ranks.run(reordered_pair) == [None, order, None, order]


def one_lacks(rank: int) -> list[str]:
    """What both ranks hear where rank 1 has no streams, and how often they ask each other."""
    group = dist.new_group([0, 1])
    assert group is not None
    lacks = "Its collectives run on no stream." if rank == 1 else ""
    with pretended_gpu(lacks=lacks):
        heard = [asked(group), asked(group)]
    with pretended_gpu():
        heard.append(asked(group))
    dist.destroy_process_group(group)
    assert all(isinstance(why, str) for why in heard), heard
    return [str(why) for why in heard]


def test_where_one_rank_cannot_none_does_and_each_knows_why(two_ranks):
    why = "Its collectives run on no stream."
    assert two_ranks.run(one_lacks) == [[f"Rank 1 of the group says: {why}"] * 3, [why] * 3]


def one_fails(rank: int) -> str:
    """What a rank hears where rank 0 cannot make its communicator."""
    group = dist.new_group([0, 1])
    with pretended_gpu():
        used = communicators._made

        def failing(*arguments: Any) -> Communicator:
            made = used(*arguments)
            if rank == 0:
                raise RuntimeError("out of memory")
            return made

        communicators._made = failing
        try:
            heard = asked(group)
        finally:
            communicators._made = used
    dist.destroy_process_group(group)
    return str(heard)


def test_where_one_rank_fails_to_make_it_none_uses_it(two_ranks):
    mine, other = two_ranks.run(one_fails)
    assert (mine, other) == ("out of memory", "Rank 0 of the group says: out of memory")


def captured_first(rank: int) -> tuple[str, bool, bool]:
    """What a capture is told before any call outside it, and whether calls and captures then do."""
    group = dist.new_group([0, 1])
    with pretended_gpu(capturing=True):
        why = asked(group)
    with pretended_gpu():
        first = asked(group)
    with pretended_gpu(capturing=True):
        again = asked(group)
    dist.destroy_process_group(group)
    return str(why), isinstance(first, Communicator), again is first


def test_it_is_not_made_in_a_capture_but_after_it(two_ranks):
    for why, made, kept in two_ranks.run(captured_first):
        assert "graph capture" in why
        assert made
        assert kept


def lifetimes(rank: int) -> tuple[list[bool], int]:
    """Whether groups and their communicators go, and how many of one name are told apart."""
    names, left = set(), []
    for _ in range(2):
        group = dist.new_group([0, 1], group_desc="again")
        with pretended_gpu():
            found, other = asked(group), asked(group, SMS + 1)
        assert isinstance(found, Communicator)
        assert isinstance(other, Communicator)
        assert found.group is not other.group
        names |= {found.name, other.name}
        living = ref(group), ref(found.group), ref(other.group)
        dist.destroy_process_group(group)
        del group, found, other
        gc.collect()
        left += [it() is not None for it in living]
    return left, len(names)


def test_it_goes_with_the_group_and_the_next_one_is_new(two_ranks):
    assert two_ranks.run(lifetimes) == [([False] * 6, 4)] * 2


class Made:
    """Stands for NCCL's group, and logs on which stream it is used."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.used = gpu, []

    def allreduce(self, tensors: list[torch.Tensor]) -> Any:
        if self.gpu.captured is not None:
            raise Misuse("a communicator is first used in a capture")
        self.used.append((self.gpu.stream.name, [tuple(t.shape) for t in tensors]))
        return SimpleNamespace(wait=lambda: None)

    def shutdown(self) -> None:
        pass


@pytest.fixture
def nccl(monkeypatch):
    """NCCL as torch declares it; the arguments of every communicator that is made, and it."""
    made: list[Any] = []
    gpu = Gpu()

    class Options:
        def __init__(self, is_high_priority_stream: bool = False) -> None:
            self.is_high_priority_stream, self._timeout = is_high_priority_stream, None
            self.config = SimpleNamespace(max_ctas=None)

    class Nccl:
        def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
            made.append((rank, size, options))

    Any_: Any = Nccl
    Any_.Options = Options
    monkeypatch.setattr(dist, "ProcessGroupNCCL", Nccl, raising=False)
    monkeypatch.setattr(communicators, "registered", lambda *_: Made(gpu))
    monkeypatch.setattr(communicators, "why_no_streams", lambda *_: "")
    monkeypatch.setattr(communicators.groups, "store_beside", lambda *_: None)
    theirs = SimpleNamespace(options=SimpleNamespace(_timeout="theirs"))
    monkeypatch.setattr(dist.ProcessGroup, "_get_backend", lambda *_: theirs)
    monkeypatch.setattr(communicators.groups, "_is_fake", lambda _: True)
    with present(gpu), in_memory_of(gpu):
        yield made


def test_it_is_made_once_with_at_most_so_many_ctas_and_used_at_once(fake_group, nccl):
    found = asked(fake_group, device=CUDA)
    assert isinstance(found, Communicator)
    assert asked(fake_group, device=CUDA) is found
    ((rank, size, options),) = nccl
    assert (rank, size, options.config.max_ctas) == (0, 2, SMS)
    assert (options.is_high_priority_stream, options._timeout) == (True, "theirs")
    assert options.global_ranks_in_group == [0, 1]
    group: Any = found.group
    assert group.used == [("comm(-3)", [(1,)])]
    assert asked(fake_group, SMS + 1, CUDA) is not found
    assert len(nccl) == 2
    # NCCL takes no limit of zero.
    assert isinstance(asked(fake_group, 0, CUDA), Communicator)
    assert nccl[-1][2].config.max_ctas is None


def test_it_is_not_made_during_a_capture(fake_group, nccl, monkeypatch):
    graph: Any = torch.cuda.CUDAGraph()
    graph.capture_begin()
    assert "graph capture" in str(asked(fake_group, device=CUDA))
    assert not nccl
    # A mutant that makes it all the same.
    monkeypatch.setattr(communicators, "_answer", lambda *_: communicators.READY)
    with pytest.raises(Misuse):
        asked(fake_group, device=CUDA)
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
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
            if node.name == "__init__":
                names |= {argument.arg for argument in node.args.args}
    return names


def test_torch_has_what_is_used_of_it():
    # NCCL is not in every build of torch: what its bindings take is read from their stub.
    stub = ast.parse(STUB.read_text())
    assert "max_ctas" in members(stub, "ProcessGroupNCCL", "NCCLConfig")
    assert {"config", "is_high_priority_stream"} <= members(stub, "ProcessGroupNCCL", "Options")
    used = {"_timeout", "global_ranks_in_group", "group_name"}
    assert used <= members(stub, "Backend", "Options")
    assert {"store", "rank", "size", "options"} <= members(stub, "ProcessGroupNCCL")
    used = {"_register_backend", "_set_default_backend", "shutdown", "_get_backend"}
    assert used <= members(stub, "ProcessGroup")
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
    assert why_no_streams(CUDA, fake_group) == ""
    assert why_no_kernel(CUDA, "sm_90") == why_no_kernel(CUDA, "sm_80") == ""


@pytest.mark.parametrize("backend", ["gloo", "mpi", "fake", "cpu:gloo,cuda:gloo"])
def test_a_backend_without_streams_is_a_reason(fake_group, monkeypatch, backend):
    gpu_of(monkeypatch, (9, 0), backend)
    assert why_no_streams(CUDA, fake_group) == f"Collectives of {backend} do not run on streams."


def test_an_old_device_is_a_reason(monkeypatch):
    gpu_of(monkeypatch, (7, 5), "nccl")
    assert "sm_75" in why_no_kernel(CUDA, "sm_80")
    gpu_of(monkeypatch, (8, 0), "nccl")
    assert "sm_90" in why_no_kernel(CUDA, "sm_90")


def test_a_device_of_another_vendor_is_a_reason(monkeypatch):
    gpu_of(monkeypatch, (9, 4), "nccl")
    assert "gfx942" in why_no_kernel(CUDA, "gfx942")
    amd_gpu(monkeypatch, "gfx942:sramecc+:xnack-")
    assert "sm_90" in why_no_kernel(CUDA, "sm_90")
    assert why_no_kernel(CUDA, "gfx942") == ""


def amd_gpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")  # whose capabilities are other numbers
    found = SimpleNamespace(gcnArchName=name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)


@pytest.mark.parametrize("name", ["gfx1030", "gfx1100", "gfx1201", "gfx90a:xnack-", "gfx906"])
def test_a_device_of_amd_without_the_units_that_kernels_take_is_a_reason(name, monkeypatch):
    """Whatever the target plans for. Mutant: every device of AMD's runs what is generated."""
    amd_gpu(monkeypatch, name)
    said = f"No kernel is generated for {name.partition(':')[0]}, only for gfx942 and gfx950."
    for architecture in ("gfx942", "gfx950", name.partition(":")[0]):
        assert why_no_kernel(CUDA, architecture) == said
    amd_gpu(monkeypatch, "gfx950:sramecc+:xnack-")
    assert why_no_kernel(CUDA, "gfx942") == ""


def test_a_cpu_and_a_missing_triton_are_reasons(fake_group, monkeypatch):
    assert "cpu" in why_no_streams(CPU, fake_group)
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    assert "Triton" in why_no_kernel(CUDA, "sm_80")


def test_a_group_without_a_backend_for_the_device_is_a_reason(monkeypatch):
    def none(group: Any, device: str) -> str:
        raise GroupError(f"The group has no backend for {device}", where="", remedy="")

    monkeypatch.setattr(requirements, "backend_name", none)
    assert "no backend for cuda" in why_no_streams(CUDA, SimpleNamespace())
