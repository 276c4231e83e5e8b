"""The waiter against the GEMM that signals, in two processes that share only memory."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from overlapc.codegen import GemmSpec

SPEC = GemmSpec("float32", "float32", 16, 16, 16, sweep=2)
M, N, K = 90, 44, 40
BANDS = (16, 48, 26)
POLLS = 1_000_000
"""Far more than the producer takes, and far fewer than the tests' timeout allows."""


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory, interpreted) -> Iterator:
    other = type(interpreted)(tmp_path_factory.mktemp("consumer"), processes=1)
    yield other
    other.close()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_waiter_sees_whole_bands_only(interpreted, consumer, tmp_path, seed):
    consumed = consumer.start(
        "protocol_cases.consume", str(tmp_path), str(SPEC), M, N, BANDS, POLLS
    )
    while not consumed.running():  # the waiter spins before the GEMM is launched
        time.sleep(0.01)
    error = interpreted("protocol_cases.produce", str(tmp_path), str(SPEC), M, N, K, BANDS, seed)
    assert error <= 1
    received = torch.tensor([row for band in consumed.result(60) for row in band])
    c = torch.from_file(f"{tmp_path}/c", shared=True, size=M * N).view(M, N)
    # C began as zeros, which no product of random operands is: a band read early would differ.
    assert torch.equal(received, c)
    assert not (c == 0).any()


def test_a_band_that_never_comes_is_named(consumer, tmp_path):
    with pytest.raises(AssertionError, match="Band 0 was never complete: 0 of 3 tiles"):
        consumer("protocol_cases.consume", str(tmp_path), str(SPEC), M, N, BANDS, 100)
