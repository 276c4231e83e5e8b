"""What a sender makes of a reduce-scatter on gloo: parts that are dealt out and added up here."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from overlapc.runtime.ranks import sending
from overlapc.runtime.ranks.sending import Sender

ROWS, COLUMNS = 6, 5


def errors(rank, dtype, reduce, mutant=""):
    """Relative errors of what is received by our way, between other columns, and by the backend's
    own."""
    right = sending.torch
    sending.torch = Wrong(mutant) if mutant else right
    group = dist.group.WORLD
    size = group.size()
    torch.manual_seed(rank)
    sent = torch.randn(size * ROWS, COLUMNS).to(dtype)
    wanted = sent.double().clone()
    dist.all_reduce(wanted)
    wanted = wanted.chunk(size)[rank] / (size if reduce == "avg" else 1)
    sender, found = Sender("reduce_scatter", reduce), []
    try:
        for start in (sender.start, sender.start_plain):
            out = torch.full((ROWS, 3 * COLUMNS), float("nan")).to(dtype)
            place = out[:, COLUMNS : 2 * COLUMNS]
            if start == sender.start_plain:
                place = place.contiguous()
            start(group, place, sent.clone()).wait()
            assert out.isnan().sum() >= 2 * ROWS * COLUMNS  # nothing is written beside its place
            found.append(((place.double() - wanted).norm() / wanted.norm()).item())
    finally:
        sending.torch = right
    return found


class Wrong:
    """Stands for torch where sums are mixed up with something else."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        return getattr(torch, self.name if name in ("sum", "mean", "add") else name)


@pytest.mark.parametrize("reduce", ["sum", "avg"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_reduce_scatter(dtype, reduce, two_ranks):
    allowed = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 1e-2)
    for ours, plain in two_ranks.run(errors, dtype, reduce):
        assert ours < allowed
        assert plain < allowed


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bfloat16])
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_are_added_up_in_their_dtype(dtype, parts):
    """Of integers torch makes int64 unless it is told where to."""
    given = torch.randint(0, 60, (parts, ROWS, COLUMNS)).to(dtype)
    out = torch.full((ROWS, COLUMNS), 77).to(dtype)
    sending._Sum(sending.IN_STREAM, given, out, is_mean=False).wait()
    assert torch.equal(out.double(), given.double().sum(0))


@pytest.mark.parametrize(("reduce", "mutant"), [("sum", "sub"), ("avg", "sum")])
def test_a_wrong_reduction_shows(reduce, mutant, two_ranks):
    for ours, _ in two_ranks.run(errors, torch.float32, reduce, mutant):
        assert ours > 0.1


def test_four_ranks(four_ranks):
    for ours, plain in four_ranks.run(errors, torch.float32, "avg"):
        assert max(ours, plain) < 1e-6


def calls(rank):
    """The collectives that a sender asks a group for."""
    asked = []

    class Recorder:
        def __getattr__(self, name):
            asked.append(name)
            return getattr(dist.group.WORLD, name)

    world = dist.group.WORLD
    sending.backend_name, right = (lambda group, device: "gloo"), sending.backend_name
    try:
        sent, out = torch.randn(world.size() * ROWS), torch.empty(ROWS)
        Sender("reduce_scatter", "sum").start(Recorder(), out, sent).wait()
    finally:
        sending.backend_name = right
    return asked


def test_no_all_reduce_in_disguise(two_ranks):
    for asked in two_ranks.run(calls):
        assert "alltoall_base" in asked
        assert "_reduce_scatter_base" not in asked
