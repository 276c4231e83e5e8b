"""Where what belongs to Inductor's artifacts is kept: beside them, to live and die with them."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from torch._inductor.runtime.autotune_cache import AutotuneCacheArtifact
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch.compiler._cache import CacheArtifactManager

from overlapc.cache import write_atomically

log = logging.getLogger(__name__)


def beside_artifacts() -> Path:
    """Return our folder in Inductor's cache directory; not created here."""
    return Path(cache_dir()) / "overlapc"


def write_beside(path: Path, text: str) -> None:
    """Write a file of JSON in our folder, which goes where artifacts go.

    Where it cannot be written the log says so: a report is less than the program that it is of.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        log.warning("what a warm cache needs to report a graph is not kept: %s", error)
    carry(path, text)


def carry(path: Path, text: str) -> None:
    """Let ``torch.compiler.save_cache_artifacts`` take a file of JSON in our folder along.

    As results of autotuning: of all kinds this one is a file of JSON in the cache directory, and
    torch knows it in a process that loads artifacts before it imports overlapc.
    """
    name = path.relative_to(beside_artifacts().parent)
    CacheArtifactManager.record_artifact(AutotuneCacheArtifact.type(), str(name), json.loads(text))
