"""Files of the cache are written whole, whoever else writes or reads them meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from overlapc.cache import write_atomically


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    """Mutants: the file itself is written; what is unfinished stays."""
    path = tmp_path / "new" / "file.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_threads_do_not_share_what_is_unfinished(tmp_path: Path) -> None:
    """Each content is read whole. Mutant: all threads of a process write to one name."""
    path, contents = tmp_path / "file", [str(digit) * 100_000 for digit in range(4)]
    failed: list[BaseException] = []

    def write(content: str) -> None:
        try:
            for _ in range(20):
                write_atomically(path, content)
                assert path.read_text() in contents
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
