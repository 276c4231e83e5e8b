"""How a stream is held until a band has come: by the driver, which takes no SM, or by polling."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch

from overlapc.errors import KernelError
from overlapc.runtime.signaled.signals import Signals

log = logging.getLogger(__name__)

GEQ = 0
"""``CU_STREAM_WAIT_VALUE_GEQ``: until ``(int32)(word - value) >= 0``."""


@dataclass(frozen=True)
class DriverWait:
    """``cuStreamWaitValue32``, where it was seen to work."""

    function: Callable[[int, int, int, int], tuple[Any, ...]]
    captured: bool
    """Whether it may be captured into a CUDA graph."""

    def __call__(self, stream: torch.cuda.Stream, address: int, value: int) -> None:
        """Hold the stream until the int32 at a device address is ``value`` or more."""
        error = self.function(stream.cuda_stream, address, value, GEQ)[0]
        if int(error):
            raise KernelError(
                f"The driver cannot wait for a value in memory: {error}.",
                where=f"cuStreamWaitValue32 on {stream.device}",
                remedy="none is needed: a kernel waits instead",
            )


def hold(signals: Signals, group: int, max_polls: int = 0) -> None:
    """Hold the current stream until band ``group`` is complete and visible.

    The GEMM has been launched before, and so has ``Signals.wait`` once: nothing is loaded here. The
    driver cannot count, so with ``max_polls`` a kernel waits.
    """
    device = signals.storage.device
    driver = None if max_polls else driver_wait(device)
    if not isinstance(driver, DriverWait) or not _usable(driver):
        signals.wait(group, max_polls)
        return
    stream = torch.cuda.current_stream(device)
    try:
        driver(stream, signals.address(group), signals.targets[group])
    except KernelError as error:
        _log_once(str(error))
        signals.wait(group)


def _usable(driver: DriverWait) -> bool:
    return driver.captured or not torch.cuda.is_current_stream_capturing()


@cache
def driver_wait(device: torch.device) -> DriverWait | str:
    """The driver's wait on this device, or why there is none. The first call tries it out.

    That call launches and waits, so it comes before any capture; later ones cost nothing.
    """
    if device.type != "cuda" or torch.version.hip:
        # HIP's waits only for memory that was allocated as a signal.
        return f"the driver of {device} has no wait for values in ordinary memory"
    try:
        from cuda.bindings import driver  # pyright: ignore[reportMissingImports]

        function = driver.cuStreamWaitValue32
        _try_out(DriverWait(function, captured=False), device)
    except (ImportError, AttributeError, RuntimeError) as error:
        return f"cuStreamWaitValue32 cannot be called: {error}"
    try:
        _try_out(DriverWait(function, captured=True), device)
    except RuntimeError as error:
        log.info("waits are not captured, a kernel waits in graphs: %s", error)
        return DriverWait(function, captured=False)
    return DriverWait(function, captured=True)


def _try_out(wait: DriverWait, device: torch.device) -> None:
    """Wait for a value that is there; RuntimeError where that fails."""
    word = torch.ones(1, dtype=torch.int32, device=device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        if not wait.captured:
            wait(stream, word.data_ptr(), 1)
        else:
            _captured(lambda: wait(stream, word.data_ptr(), 1)).replay()
    stream.synchronize()


def _captured(run: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of what is launched on the current stream; leaves the capture on errors, too."""
    graph = torch.cuda.CUDAGraph()
    # Of this thread only: the watchdogs of process groups query events meanwhile.
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        run()
    finally:
        graph.capture_end()
    return graph


@lru_cache(maxsize=8)
def _log_once(message: str) -> None:
    log.warning("%s", message)
