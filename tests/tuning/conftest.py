"""What calibration stores is a test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tables or targets but those of the test, no compiled code of another, no gradients."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch._dynamo.reset()  # a row count that another test's models met is no longer a number
    with torch.no_grad():
        yield
    torch._dynamo.reset()
