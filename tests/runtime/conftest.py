"""Two gloo ranks that live as long as the session, and four for the tests that need them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ranks import Ranks


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """A pair of gloo processes; a test must leave them with no collective in flight."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[Ranks]:
    """Four gloo processes."""
    ranks = Ranks(4)
    yield ranks
    ranks.close()
