"""A generated module run by itself, in a process that has imported Triton for its interpreter."""

from __future__ import annotations

import contextlib
import io
import runpy


def main(path: str) -> tuple[int | str | None, str]:
    """How the module ends, and what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            return ended.code, printed.getvalue()
    return None, printed.getvalue()
