"""One hash of everything that decides what overlapc compiles: its own files."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@lru_cache(maxsize=1)
def fingerprint_of_sources() -> str:
    """Return a hash of every Python and JSON file of the package, in the order of their paths."""
    # The two folders are named because a link to a folder is not walked into.
    folders = (PACKAGE, PACKAGE / "passes", PACKAGE / "codegen")
    paths = {path for folder in folders for path in folder.rglob("*")}
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.suffix in (".py", ".json")):
        digest.update(str(path.relative_to(PACKAGE)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
