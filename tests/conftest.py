"""Options and fixtures of all tests: long tests, GPU tests and golden texts."""

from __future__ import annotations

import difflib
import gc
import logging
import os
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.interpreter import Interpreter
from tests.ranks import Ranks
from tests.sparing import spare

GOLDEN = Path(__file__).parent / "golden"
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
# Of which vector instructions the C++ compiler knows, Inductor asks it by kernels in each new cache
# folder, and loads them in each new process: seconds each time. Any that compiles torch knows them;
# what the processor has is still asked. Before torch is imported, and for all processes from here.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
LONG_TIMEOUT_SECONDS = 1800
"""Of one long test that sets no timeout of its own: chosen, an order above the ordinary one."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long as well")
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden instead of comparing"
    )
    parser.addoption(
        "--emulate", default="", metavar="sm_90", help="run what tests interpret on that device,"
        " emulated: what Triton compiles for it (tests/emulated)",
    )  # fmt: skip


@cache
def why_no_gpu() -> str | None:
    """The reason why GPU tests cannot run here, or None where they can."""
    import torch

    if not torch.cuda.is_available():
        return "needs a GPU: torch.cuda.is_available() is false here"
    return None


def pytest_report_header(config: pytest.Config) -> str:
    return "long tests: " + ("run" if config.getoption("--long") else "left out (make test-long)")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported stays: to look through it for garbage, again and again, takes a twentieth
    of the tests' time. And torch writes traces of each compilation, with its graphs, for whoever
    listens: pytest does to every logger that hands nothing on."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()
        logging.getLogger("torch.__trace").propagate = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Left out and not skipped: to report thousands of skips takes a quarter of a minute.
    long = [item for item in items if item.get_closest_marker("long")]
    if config.getoption("--long"):
        for item in long:
            give_time(item)
    elif long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    for item in items:
        if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
            item.add_marker(pytest.mark.skip(reason=reason))


def give_time(item: pytest.Item) -> None:
    if not item.get_closest_marker("timeout"):
        item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_SECONDS))


@dataclass(frozen=True)
class Golden:
    """Compares a text with the one kept under ``tests/golden/<test module>/<test name>.txt``."""

    path: Path
    """Of the kept text; a second text of one test gets ``-<name>`` before the suffix."""
    update: bool
    """Whether to write what is compared."""

    def __call__(self, text: str, name: str = "") -> None:
        path = self.path.with_stem(f"{self.path.stem}-{name}") if name else self.path
        text = text.rstrip("\n") + "\n"
        if self.update:
            if text != without_graphs(text) and not is_pinned_torch():
                pytest.fail("graphs are kept as the torch of constraints.txt makes them")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        if not path.exists():
            pytest.fail(f"no golden text {path}: make it with --update-golden and review it")
        kept = path.read_text(encoding="utf-8")
        if not is_pinned_torch():
            text, kept = without_graphs(text), without_graphs(kept)
        if text != kept:
            lines = difflib.unified_diff(
                kept.splitlines(), text.splitlines(), "golden", "now", lineterm=""
            )
            pytest.fail(f"{path} differs (--update-golden if meant):\n" + "\n".join(lines))


@cache
def is_pinned_torch() -> bool:
    """Whether torch is the release that made the graphs under ``tests/golden``."""
    pinned = re.search(r"^torch==(\S+)$", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert pinned is not None
    return metadata.version("torch").partition("+")[0] == pinned[1]


def without_graphs(text: str) -> str:
    """What is left of a text where another torch decomposes calls otherwise: what was decided."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("%"))


def golden_path(nodeid: str) -> Path:
    """Where the text of the test ``tests/a/test_b.py::test_c[x]`` is kept."""
    module, _, test = nodeid.partition("::")
    folder = Path(module).with_suffix("")
    if folder.parts[:1] == ("tests",):
        folder = folder.relative_to("tests")
    name = "".join(c if c.isalnum() or c in "_-." else "-" for c in test).strip("-")
    return GOLDEN / folder / f"{name}.txt"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Call it with a text: it must equal the kept one, or becomes it with ``--update-golden``."""
    update = bool(request.config.getoption("--update-golden"))
    return Golden(golden_path(request.node.nodeid), update)


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


@pytest.fixture
def fresh_ranks() -> Iterator[Ranks]:
    """A pair of gloo processes of this test alone: for those that break their group."""
    ranks = Ranks(2)
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def interpreted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Interpreter]:
    """Call it with a function and its arguments: it runs in a process of Triton's interpreter, or
    on the device that ``--emulate`` names."""
    device = request.config.getoption("--emulate")
    interpreter = Interpreter(tmp_path_factory.mktemp("interpreted"), processes=1, device=device)
    yield interpreter
    interpreter.close()


@pytest.fixture
def fake_group() -> Iterator[Any]:
    """The world of two ranks that is not there: shapes are right, nothing is sent."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    spare()
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
        torch._dynamo.reset()
