"""The process in which kernels run on emulated devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.interpreter import Interpreter


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Call it as ``cases.run``."""
    process = Interpreter(tmp_path_factory.mktemp("emulated"), processes=1, device="sm_90")

    def run(*given: Any, **named: Any) -> Any:
        return process("emulated.cases.run", *given, **named)

    yield run
    process.close()
