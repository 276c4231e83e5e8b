"""The command as a user has it, and how an error of ours is told."""

from __future__ import annotations

import sys
from pathlib import Path

from overlapc.cli import main

COMMAND = Path(sys.executable).with_name("overlapc")
GEMM = ("plan", "--gemm", "8192x8192x3584", "--world-size", "8", "--target", "h100-nvlink")


def error_of(capsys, *arguments: str) -> str:
    """The one message of a command that fails by an error of ours."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "  where", "  remedy"]
    return captured.err
