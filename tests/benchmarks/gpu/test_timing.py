"""How calls are timed by events, on events that are not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.gpu import timing as gpu_timing
from benchmarks.measuring.deadline import Deadline


def test_a_short_call_is_timed_with_others_in_a_row(monkeypatch):
    """Mutants: the time of all is taken for that of one, or the host is not waited for so long."""
    slept, called = [], []
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None)
    event.elapsed_time = lambda end: 0.01 * len(called)  # milliseconds
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    calls = gpu_timing.calls_in_a_row(lambda: called.append(1), 1e-3)
    assert calls == gpu_timing.MOST_CALLS
    called.clear()
    seconds = gpu_timing.device_seconds(lambda: called.append(1), 1e-3, calls)
    assert (len(called), round(seconds, 9)) == (calls, 1e-5)
    assert slept[1] == calls * slept[0]
    monkeypatch.setattr(gpu_timing, "device_seconds", lambda run, host: 100e-6)
    assert gpu_timing.calls_in_a_row(lambda: None, 0.0) == 2


def test_what_is_compared_is_timed_by_as_many_calls(monkeypatch):
    """Mutants: each candidate by as many as it needs itself; by the fewest that any needs."""
    timed: dict[str, set[int]] = {"short": set(), "long": set()}
    seconds = {"short": 149e-6, "long": 151e-6}  # of which 2 and 1 are long enough

    def device_seconds(run: Any, host: float, calls: int = 0) -> float:
        if calls:
            timed[run()].add(calls)
        return seconds[run()]

    monkeypatch.setattr(gpu_timing, "warmed_up", lambda run: 0.0)
    monkeypatch.setattr(gpu_timing, "device_seconds", device_seconds)
    runs = {"short": lambda: "short", "long": lambda: "long"}
    gpu_timing.measure_on_device(runs, Deadline.after(0), 0)
    assert timed == {"short": {2}, "long": {2}}
