"""The rules of the tree, each a function of source text that a planted violation must trip."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAY_IMPORT = {
    # Numbers and texts: neither torch nor triton.
    "errors": "",
    "cache": "",
    "sources": "",
    "planning": "errors cache",
    "reporting": "errors planning",
    "options": "errors planning",
    # What runs.
    "codegen": "errors cache planning",
    "runtime": "errors cache sources planning codegen",
    # The border to FX: what nodes say, in terms of what runs.
    "graphs": "errors planning runtime",
    # What rewrites, knowing graphs, plans and the ops to insert.
    "passes": "errors options planning reporting graphs codegen runtime",
    # What ties them together for a user.
    "calibration": "errors cache planning runtime",
    "targets": "errors planning runtime calibration",
    "direct_calls": "runtime",
    "ledger": "errors cache options reporting runtime targets",
    "compiled": "direct_calls errors ledger reporting runtime sources",
    "dynamo": "errors options planning graphs passes reporting runtime",
    "backend": "compiled direct_calls dynamo errors options graphs passes reporting runtime sources"
    " targets ledger",
    "explaining": "backend dynamo options graphs passes reporting runtime targets ledger",
    "tuning": "errors planning reporting graphs passes runtime explaining calibration",
    "cli": "errors options planning reporting explaining calibration tuning codegen",
    "__main__": "cli",
    "overlapc": "options planning reporting backend explaining calibration",
}
"""Parts of the package in the order of their layers, and the parts that each may import."""
ROOMS = {
    "reading": "",
    "products": "reading",
    "norms": "reading",
    "scores": "reading products",
    "masks": "reading products scores",
}
"""Folders of ``graphs/attention`` likewise; what lies beside them may import all."""
IN_ROOMS = "overlapc/graphs/attention/"
WITHIN = IN_ROOMS.replace("/", ".")

READS_ENVIRONMENT = {
    "overlapc/options.py": "the one reader of OVERLAPC_* variables",
    "overlapc/cache.py": "XDG_CACHE_HOME, which is the system's and no option of ours",
}
READS_NODES = {
    "overlapc/graphs/": "the border to FX",
    "overlapc/runtime/": "steps of a program have arguments, too, and no node comes there",
}
TORCH_FREE = ("errors", "cache", "sources", "planning", "reporting", "options", "cli", "overlapc")
TORCH_WHEN_CALLED = ("cli",)
DRAWERS = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
MOST_LINES = 500
IMPORT_SECONDS = 0.2


@cache
def sources() -> dict[str, str]:
    """Text of every file of the package by its path from the root, links not followed."""
    paths = (path for top in ("overlapc", "passes", "codegen") for path in walk(ROOT / top))
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}


def walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)
        elif path.suffix == ".py":
            yield path


def part_of(path: str) -> str:
    """The part of the package that a file belongs to: ``planning`` for overlapc/planning/x.py."""
    parts = Path(path).with_suffix("").parts
    inside = parts[1:] if parts[0] == "overlapc" else parts
    return "overlapc" if inside == ("__init__",) else inside[0]


@cache
def parsed(text: str) -> ast.Module:
    """Once for all rules."""
    return ast.parse(text)


def imported_modules(text: str) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(parsed(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)


def parts_imported(text: str) -> set[str]:
    """Parts of the package that a file imports; relative imports count as ``.``."""
    found = set()
    for name in imported_modules(text):
        if name.startswith("."):
            found.add(".")
        elif name.split(".")[0] == "overlapc":
            inside = name.split(".")[1:]
            found.add(inside[0] if inside and inside[0] in MAY_IMPORT else "overlapc")
    return found


def upward_imports(path: str, text: str) -> list[str]:
    part = part_of(path)
    if part not in MAY_IMPORT:
        return [f"{path}: part {part} has no place in MAY_IMPORT"]
    allowed = {part, *MAY_IMPORT[part].split()}
    return [f"{path} imports {other}" for other in sorted(parts_imported(text) - allowed)]


def imports_of_rooms(path: str, text: str) -> list[str]:
    """Imports by a folder of ``graphs/attention`` of one above it, or of what lies beside all."""
    room, slash, _ = path.removeprefix(IN_ROOMS).partition("/")
    if not path.startswith(IN_ROOMS) or not slash:
        return []
    others = {
        name.removeprefix(WITHIN).split(".")[0]
        for name in imported_modules(text)
        if name.startswith(WITHIN)
    }
    return [f"{path} imports {one}" for one in sorted(others - {room, *ROOMS[room].split()})]


def heavy_imports(path: str, text: str) -> list[str]:
    """Imports of torch or triton in a part that loads neither, or may load them when called."""
    if part_of(path) not in TORCH_FREE:
        return []
    is_lazy = part_of(path) in TORCH_WHEN_CALLED
    names = at_import(text) if is_lazy else imported_modules(text)
    tops = {name.split(".")[0] for name in names}
    return [f"{path} imports {name}" for name in sorted(tops & {"torch", "triton"})]


def at_import(text: str) -> Iterator[str]:
    """What a file imports when it is imported itself: nothing inside functions."""
    for node in parsed(text).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported_modules(ast.unparse(node))


def node_reads(path: str, text: str) -> list[str]:
    """Attributes ``args``, ``kwargs`` and ``meta`` outside the files that may touch FX nodes."""
    if path.startswith(tuple(READS_NODES)):
        return []
    return [
        f"{path}:{node.lineno} .{node.attr}"
        for node in ast.walk(parsed(text))
        if isinstance(node, ast.Attribute) and node.attr in ("args", "kwargs", "meta")
    ]


def environment_reads(path: str, text: str) -> list[str]:
    """Uses of the environment other than ``os.environ[name] = value``."""
    if path in READS_ENVIRONMENT:
        return []
    tree, names = parsed(text), ("environ", "getenv", "environb")
    set_there = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in names and node not in set_there:
            found.append(f"{path}:{node.lineno} {node.attr}")
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            found += [f"{path}:{node.lineno} {a.name}" for a in node.names if a.name in names]
    return found


def drawers(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if Path(path).name in DRAWERS]


def too_long(path: str, text: str) -> list[str]:
    lines = text.count("\n")
    return [f"{path}: {lines} lines"] if lines > MOST_LINES else []


RULES = (upward_imports, imports_of_rooms, heavy_imports, node_reads, environment_reads, too_long)

VIOLATIONS = [
    (upward_imports, "overlapc/planning/x.py", "from overlapc.graphs.chains.chain import Chain"),
    (upward_imports, "overlapc/planning/x.py", "def f():\n    import overlapc.graphs.values"),
    (upward_imports, "overlapc/graphs/chains/chain.py", "from overlapc.passes.base import Pass"),
    (upward_imports, "overlapc/graphs/chains/chain.py", "from overlapc import backend"),
    (upward_imports, "passes/x.py", "from overlapc.backend import backend"),
    (upward_imports, "passes/x.py", "from overlapc import explain"),
    (upward_imports, "codegen/templates/x.py", "import overlapc.runtime.ops"),
    (upward_imports, "codegen/x.py", "from overlapc import passes"),
    (upward_imports, "overlapc/runtime/x.py", "from overlapc.graphs.chains.chain import Chain"),
    (upward_imports, "overlapc/reporting/x.py", "from overlapc.graphs.canonical import text"),
    (upward_imports, "overlapc/planning/x.py", "from . import cost"),
    (upward_imports, "overlapc/novel.py", "import os"),
    (imports_of_rooms, f"{IN_ROOMS}reading/x.py", f"from {WITHIN}masks.bands import Band"),
    (imports_of_rooms, f"{IN_ROOMS}masks/x.py", f"import {WITHIN}site"),
    (heavy_imports, "overlapc/planning/x.py", "import torch.fx"),
    (heavy_imports, "overlapc/planning/x.py", "def f():\n    from triton import jit"),
    (heavy_imports, "overlapc/reporting/records.py", "import torch"),
    (heavy_imports, "overlapc/cli/x.py", "import torch"),
    (node_reads, "passes/x.py", "def f(node):\n    return node.args[0]"),
    (node_reads, "passes/x.py", "def f(node):\n    node.meta['val'] = 1"),
    (node_reads, "overlapc/backend.py", "x.kwargs"),
    (environment_reads, "overlapc/backend.py", "import os\nos.environ['A']"),
    (environment_reads, "overlapc/backend.py", "import os\nos.getenv('A')"),
    (environment_reads, "overlapc/backend.py", "from os import environ as e"),
    (too_long, "overlapc/x.py", "\n" * (MOST_LINES + 1)),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps(rule):
    assert [fault for path, text in sources().items() for fault in rule(path, text)] == []


@pytest.mark.parametrize(("rule", "path", "text"), VIOLATIONS)
def test_a_planted_violation_is_found(rule, path, text):
    assert rule(path, text)


def test_what_is_allowed_is_not_found():
    allowed = "from overlapc.planning.cost import Costs\nfrom overlapc.errors import PlanError\n"
    assert not [fault for rule in RULES for fault in rule("overlapc/planning/x.py", allowed)]
    assert not node_reads("overlapc/graphs/edges.py", "node.args")
    assert not environment_reads("overlapc/options.py", "import os\nos.environ")
    assert not environment_reads("codegen/x.py", "import os\nos.environ['A'] = '1'")
    assert not heavy_imports("overlapc/cli/x.py", "def f():\n    import torch")
    assert not too_long("overlapc/x.py", "\n" * MOST_LINES)


def test_the_layers_are_ordered():
    parts = list(MAY_IMPORT)
    for part, others in MAY_IMPORT.items():
        for other in others.split():
            assert parts.index(other) < parts.index(part), f"{part} may import {other} above it"


def test_every_layer_exists():
    assert set(MAY_IMPORT) == {part_of(path) for path in sources()}


def test_no_file_is_a_drawer():
    assert drawers(sources()) == []
    assert drawers(["passes/utils.py", "overlapc/planning/helpers.py", "codegen/x.py"]) == [
        "passes/utils.py",
        "overlapc/planning/helpers.py",
    ]


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh process has after a statement."""
    code = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def torch_free_modules() -> list[str]:
    """Every module of the parts that promise to import neither torch nor triton."""
    paths = [Path(path) for path in sources() if part_of(path) in TORCH_FREE]
    names = (".".join(path.with_suffix("").parts) for path in paths)
    return sorted(name.removesuffix(".__init__") for name in names)


def test_torch_free_parts_load_neither_torch_nor_triton():
    names = torch_free_modules()
    assert "overlapc.planning.cost" in names
    assert not loaded_by(f"import {', '.join(names)}") & {"torch", "triton"}


def test_a_module_that_loads_torch_is_noticed(tmp_path):
    (tmp_path / "torch.py").touch()  # to import torch takes seconds, and it is asked for all alike
    (tmp_path / "heavy.py").write_text("def f():\n    import torch\n\n\nf()\n")
    assert "torch" in loaded_by(f"sys.path.insert(0, {str(tmp_path)!r}); import heavy")


def test_the_package_loads_nothing_but_itself():
    heavy = {"torch", "triton", "rich", "sympy", "networkx", "numpy"}
    assert not loaded_by("import overlapc") & heavy


@pytest.mark.alone
def test_the_package_imports_fast():
    code = "import time; t = time.perf_counter(); import overlapc; print(time.perf_counter() - t)"
    times = []
    for _ in range(5):  # the fastest: a busy machine must not fail the test
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
        times.append(float(done.stdout))
    assert min(times) < IMPORT_SECONDS
