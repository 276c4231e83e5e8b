"""The folder of what overlapc may rebuild at any time, and how a file of it is written whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/overlapc``, else ``~/.cache/overlapc``; not created here.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG base directory specification asks.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return base / "overlapc"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file at once: a reader sees the old content or the new, never a part.

    Makes its folder if needed. Threads, processes and ranks may write the same file together.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
