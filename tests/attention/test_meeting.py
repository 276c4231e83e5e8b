"""Counters of a launch are its own as long as it runs, and none waits for a memset."""

from __future__ import annotations

import pytest
import torch

from overlapc.runtime.attention import meeting
from overlapc.runtime.attention.meeting import LEAST_KEPT, MOST_CAPTURED, Counters

DEVICE = torch.device("cpu")


class Device:
    """Whose current stream, and whether it captures, a test says."""

    def __init__(self) -> None:
        self.stream, self.captures = 0, False
        self.made: list[int] = []
        self.counters = Counters(self._make, lambda device: self.stream, lambda: self.captures)

    def _make(self, count: int, device: torch.device) -> torch.Tensor:
        self.made.append(count)
        return torch.zeros(count, dtype=torch.int32, device=device)

    def __call__(self, count: int) -> torch.Tensor:
        found = self.counters(count, DEVICE)
        assert found.numel() == count
        assert found.dtype == torch.int32
        assert not found.any()
        return found


def shares_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether an element of one is one of the other's."""
    one.fill_(1)
    found = bool(other.any())
    one.zero_()
    return found


@pytest.fixture
def device() -> Device:
    return Device()


def test_launches_of_a_stream_have_the_same_and_make_none(device):
    first = device(64)
    made = len(device.made)
    assert shares_memory(first, device(64))
    assert shares_memory(first, device(512))
    assert len(device.made) == made


def test_no_two_streams_share_any(device):
    first = device(64)
    device.stream = 1
    assert not shares_memory(first, device(64))


def test_more_than_there_are_leave_the_others_as_they_are(device):
    first = device(64)
    more = device(LEAST_KEPT + 1)
    assert not shares_memory(first, more)
    assert shares_memory(more, device(64))


def test_no_two_launches_of_graphs_share_any(device):
    eager = device(64)
    device.captures = True
    made = len(device.made)
    all_of_graphs = [device(64) for _ in range(3)]
    for index, one in enumerate(all_of_graphs):
        assert not shares_memory(one, eager)
        assert not any(shares_memory(one, other) for other in all_of_graphs[:index])
    assert len(device.made) == made  # or a memset would be in the graph


def test_counters_of_a_graph_begin_where_triton_need_not_compile_anew(device):
    """As those of the launch before the capture, whatever their number. Mutant: they follow one
    another without a gap."""
    starts = [device(3).data_ptr()]
    device.captures = True
    starts += [device(count).data_ptr() for count in (1, 3, 6, 8, 5)]
    assert [start % 16 for start in starts] == [0] * 6


@pytest.mark.parametrize("left", [0, 63])
def test_a_graph_has_zeros_of_its_own_where_all_are_given_out(device, left):
    device(1)
    device.captures = True
    device(MOST_CAPTURED - left)
    assert not shares_memory(device(64), device(64))


def test_a_capture_before_any_launch_has_zeros_of_its_own(device):
    device.captures = True
    assert not shares_memory(device(64), device(64))
    assert device.made == []


def test_who_meets_nobody_has_none(device):
    assert device(0).numel() == 0
    assert device.made == []


def test_what_is_kept_is_made_apart(monkeypatch):
    """A pool of graphs that a first call allocates from would take it back."""
    asked = []
    monkeypatch.setattr(meeting.group_tables, "apart", lambda make: asked.append(make))
    meeting._made(8, DEVICE)
    assert len(asked) == 1
