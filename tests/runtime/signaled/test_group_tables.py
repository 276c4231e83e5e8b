"""Tables of groups on a device that is not there: which are kept, and when memory is another's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from overlapc.codegen import Bands
from overlapc.errors import KernelError
from overlapc.runtime.signaled.group_tables import GroupTables
from tests.runtime.signaled.fake_gpu import CUDA, Gpu, Graph, Stream, in_memory_of, present


def bands(rows: int) -> Bands:
    return Bands.of((16, rows), 16)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    gpu = Gpu()
    with present(gpu), in_memory_of(gpu):
        yield gpu


@pytest.fixture
def recorded(monkeypatch) -> list[tuple[torch.Tensor, Any]]:
    """Which memory waits for which stream before it is another's."""
    log: list[tuple[torch.Tensor, Any]] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *its: log.append(its))
    return log


def test_what_was_used_last_is_kept(gpu, recorded):
    """Mutants: none goes; the oldest goes though it was used since."""
    tables = GroupTables(most=2)
    first, second = (tables(bands(rows), CUDA) for rows in (1, 2))
    assert first.tolist() == list(bands(1).table)
    assert tables(bands(1), CUDA) is first
    tables(bands(3), CUDA)
    assert tables(bands(1), CUDA) is first
    assert tables(bands(2), CUDA) is not second
    assert tables(bands(1), CUDA) is first
    for rows in range(3, 30):
        tables(bands(rows), CUDA)
    assert len(tables._recent) == 2


def test_memory_waits_for_every_stream_whose_kernels_read_it(gpu, recorded):
    """Mutant: it is another's at once, while a kernel that was launched may read it."""
    tables, compute, other = GroupTables(most=1), gpu.stream, Stream(gpu, "other")
    table = tables(bands(1), CUDA)
    with torch.cuda.stream(other):
        tables(bands(1), CUDA)
    assert not recorded
    tables(bands(2), CUDA)
    assert [memory is table for memory, _ in recorded] == [True, True]
    assert {stream for _, stream in recorded} == {compute, other}


def test_what_a_graph_reads_stays(gpu, recorded):
    """Mutant: what was read in a capture goes as all else does."""
    tables, graph = GroupTables(most=1), Graph(gpu)
    table = tables(bands(1), CUDA)
    graph.capture_begin()
    assert tables(bands(1), CUDA) is table
    with pytest.raises(KernelError, match="during graph capture"):
        tables(bands(2), CUDA)
    graph.capture_end()
    for rows in range(2, 9):
        tables(bands(rows), CUDA)
    assert tables(bands(1), CUDA) is table
    assert not any(memory is table for memory, _ in recorded)
    assert len(tables._recent) == 1


def test_processors_have_no_streams():
    tables = GroupTables(most=1)
    with mock.patch.object(torch.cuda, "current_stream", side_effect=AssertionError):
        first = tables(bands(1), torch.device("cpu"))
        assert first.tolist() == list(bands(1).table)
        assert tables(bands(2), torch.device("cpu")) is not first
