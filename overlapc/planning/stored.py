"""Files of measurements: a record as JSON under a key that says what it is, and in which format."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from overlapc.cache import write_atomically
from overlapc.errors import TargetError
from overlapc.planning.records import check_format, from_value, to_value

Record = TypeVar("Record")


def write(path: Path, key: str, newest: int, record: Any) -> None:
    """Write a file that `read` reads; its folder is made if needed, the write is atomic."""
    write_atomically(path, json.dumps({key: newest, **to_value(record)}, indent=1) + "\n")


def read(path: Path, key: str, newest: int, kind: type[Record], what: str, remedy: str) -> Record:
    """The record in a file; TargetError, of ``what``, where none is that this version reads."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"it has no {key!r}")
        check_format(content.pop(key), newest)
        return from_value(kind, content)
    except (OSError, ValueError) as error:
        raise TargetError(
            f"The {what} cannot be read: {error}.", where=str(path), remedy=remedy
        ) from error


def fingerprint(record: Any) -> str:
    """Twelve hex digits that change with any field of a record."""
    text = json.dumps(to_value(record), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
