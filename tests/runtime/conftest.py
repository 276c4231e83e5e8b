"""Fixtures of the runtime's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.ranks import Ranks


@pytest.fixture(scope="session")
def interpreted_pair() -> Iterator[Ranks]:
    """A pair of gloo processes whose kernels run in Triton's interpreter."""
    ranks = Ranks(2, environment={"TRITON_INTERPRET": "1"})
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def interpreted_three() -> Iterator[Ranks]:
    """Three of them."""
    ranks = Ranks(3, environment={"TRITON_INTERPRET": "1"})
    yield ranks
    ranks.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other would measure what else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
