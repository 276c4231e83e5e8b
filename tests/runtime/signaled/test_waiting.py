"""Whether the driver can wait, why not where it cannot, and what it is told to wait for."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from overlapc.codegen import COUNTER_STRIDE, Bands
from overlapc.errors import SignalError
from overlapc.runtime.signaled import waiting
from overlapc.runtime.signaled.signals import POLL_SECONDS, Signals, polls_in
from overlapc.runtime.signaled.waiting import DriverWait, driver_wait, hold
from tests.runtime.signaled.fake_gpu import (
    CUDA,
    NOT_SUPPORTED,
    POISON,
    Driver,
    Gpu,
    in_memory_of,
    present,
)

BANDS = Bands.of((32, 16, 26), 16)
TILES_N = 3


@pytest.fixture(autouse=True)
def no_answer_is_kept():
    yield
    driver_wait.cache_clear()


def probed(gpu: Gpu, driver: ModuleType | None) -> DriverWait | str:
    with present(gpu, driver), in_memory_of(gpu):
        return waiting.driver_wait(CUDA)


def test_a_driver_that_works_is_used_everywhere():
    gpu = Gpu()
    found = probed(gpu, Driver(gpu))
    assert isinstance(found, DriverWait)
    assert found.captured
    # Tried on a word that has the value, before anything relies on it, in a graph and outside.
    assert [name for name in gpu.happened if name.startswith("wait")].count(
        "wait by driver begins"
    ) == 2


def test_a_driver_that_cannot_be_captured_is_used_outside_of_graphs():
    gpu = Gpu()
    found = probed(gpu, Driver(gpu, captures=False))
    assert isinstance(found, DriverWait)
    assert not found.captured
    assert gpu.captured is None


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        (lambda gpu: None, "import"),
        (lambda gpu: ModuleType("driver"), "cuStreamWaitValue32"),
        (lambda gpu: Driver(gpu, error=NOT_SUPPORTED), str(NOT_SUPPORTED)),
    ],
    ids=["no bindings", "no function", "refused"],
)
def test_there_is_a_reason_where_the_driver_cannot_wait(driver, says):
    gpu = Gpu()
    found = probed(gpu, driver(gpu))
    assert isinstance(found, str)
    assert says in found


def test_other_devices_are_not_tried():
    assert "no wait" in str(driver_wait(torch.device("cpu")))


def test_hip_waits_for_signal_memory_only(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert "ordinary memory" in str(driver_wait(CUDA))


def signals() -> Signals:
    storage = torch.full((len(BANDS.rows) + 1, COUNTER_STRIDE), POISON, dtype=torch.int32)
    storage[:, 0] = 0
    table = torch.tensor(BANDS.table, dtype=torch.int32)
    return Signals(storage, table, BANDS.targets(TILES_N))


@pytest.mark.parametrize("group", range(len(BANDS.rows)))
def test_the_driver_waits_for_the_bands_own_counter(group):
    gpu, its = Gpu(), signals()
    with present(gpu, Driver(gpu)), in_memory_of(gpu):
        waiting.driver_wait(CUDA)
        gpu.synchronize()
        hold(its, group)
        (wait,) = gpu.work
    target = its.targets[group]
    for value, ready in ((0, False), (target - 1, False), (target, True), (target + 1, True)):
        its.counters[group, 0] = value
        assert wait.ready() is ready
    its.counters[group, 0] = 0
    its.counters[(group + 1) % len(BANDS.rows), 0] = 1000
    assert not wait.ready()


def test_who_counts_polls_does_not_wait_by_the_driver():
    gpu, its = Gpu(), signals()
    with present(gpu, Driver(gpu)), in_memory_of(gpu):
        waiting.driver_wait(CUDA)
        gpu.synchronize()
        gpu.issued.clear()
        hold(its, 1, max_polls=5)
        assert gpu.issued == ["wait for 1"]


def test_a_driver_that_fails_later_is_replaced(caplog):
    waiting._log_once.cache_clear()
    gpu, its = Gpu(), signals()
    driver = Driver(gpu)
    with present(gpu, driver), in_memory_of(gpu):
        waiting.driver_wait(CUDA)
        gpu.synchronize()
        gpu.issued.clear()
        driver.error = NOT_SUPPORTED
        hold(its, 1)
        hold(its, 2)
        assert gpu.issued == ["wait for 1", "wait for 2"]
    assert caplog.text.count("a kernel waits instead") == 1


def test_all_bands_that_never_came_are_named():
    its = signals()
    its.raise_if_given_up()
    its.counters[:, 0] = torch.tensor([its.targets[0], 1, 0])
    its.storage[-1, 0] = 3
    with pytest.raises(SignalError, match=r"Band 1 .*: 1 of 3 .*Band 2 .*: 0 of 6") as raised:
        its.raise_if_given_up()
    assert "Band 0" not in str(raised.value)


def test_a_band_that_only_was_late_is_called_so():
    its = signals()
    its.counters[:, 0] = torch.tensor(its.targets)
    its.storage[-1, 0] = 2
    with pytest.raises(SignalError, match="Band 1 came after"):
        its.raise_if_given_up()


def test_no_two_counters_share_a_cache_line():
    its = signals()
    lines = {its.address(group) // 128 for group in range(len(BANDS.rows))}
    assert len(lines) == len(BANDS.rows)
    assert its.address(1) - its.address(0) == 128


def test_a_timeout_is_a_number_of_polls():
    assert polls_in(2.0) == round(2 / POLL_SECONDS)
    assert polls_in(0.0) == 1
