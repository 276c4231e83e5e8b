"""From the text of a module to the module, and from a spec to its kernel, through files on disk."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from overlapc.cache import cache_dir, write_atomically
from overlapc.codegen.kernel import Kernel
from overlapc.codegen.module import module_text
from overlapc.codegen.spec import GemmSpec
from overlapc.errors import KernelError

TEMPLATES = Path(__file__).parent / "templates"

Made = TypeVar("Made")

_built: dict[Any, Any] = {}
_building = threading.Lock()


def build(spec: GemmSpec) -> Kernel:
    """The kernel of ``spec``: from memory, else from disk, else generated.

    Compiles nothing for a device: Triton does that at the first launch, through its own cache.
    KernelError where Triton is missing.
    """
    return built(spec, lambda: Kernel(spec, *generated(module_text(spec), spec.KIND)))


def built(spec: Any, make: Callable[[], Made]) -> Made:
    """What ``make`` gives for a spec of whatever kind: once a process, by whichever thread."""
    kernel = _built.get(spec)
    if kernel is None:
        with _building:
            kernel = _built.get(spec) or make()
            _built[spec] = kernel
    return kernel


def module_path(text: str, directory: Path, kind: str = GemmSpec.KIND) -> Path:
    """Where a module is kept: named by its kind and a hash of all that its meaning depends on."""
    parts = (text, _templates_hash(), _triton_version())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return directory / f"{kind}_{key[:20]}.py"


def generated(text: str, kind: str) -> tuple[Path, ModuleType]:
    """The module of a text, imported, and its file: the one that is there, or a new one."""
    path = module_path(text, cache_dir() / "kernels", kind)
    try:
        _ensure(path, text)
    except OSError:
        # A home that cannot be written to costs the cache, not the kernel.
        path = Path(tempfile.mkdtemp(prefix="overlapc-")) / path.name
        _ensure(path, text)
    return path, load(path)


def load(path: Path) -> ModuleType:
    """Import a generated module from its file; writes no bytecode, which could go bad beside it."""
    module = ModuleType(f"overlapc_generated_{path.stem}")
    module.__file__ = str(path)
    exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    return module


def _ensure(path: Path, text: str) -> None:
    """Make ``path`` hold ``text``, whatever it held; ranks may do so at once."""
    if _read(path) != text.encode():
        write_atomically(path, text)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


@cache
def _templates_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(TEMPLATES.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@cache
def _triton_version() -> str:
    try:
        import triton
    except ImportError as error:
        raise KernelError(
            f"Triton cannot be imported: {error}.",
            where="building a kernel",
            remedy="install triton>=3.6, or use the serial or chunked schedule",
        ) from error
    return triton.__version__
