"""Where what belongs to Inductor's artifacts is kept: beside them, to live and die with them."""

from __future__ import annotations

from pathlib import Path

from torch._inductor.runtime.cache_dir_utils import cache_dir


def beside_artifacts() -> Path:
    """Return our folder in Inductor's cache directory; not created here."""
    return Path(cache_dir()) / "overlapc"
