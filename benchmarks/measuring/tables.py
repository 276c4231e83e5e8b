"""Pieces of a page of results in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NOTHING = "–"
"""The cell of what was not measured."""


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every line has as many cells as the header."""
    assert all(len(cells) == len(header) for cells in lines)
    return "\n".join(_line(cells) for cells in (header, ["---"] * len(header), *lines))


def listed(about: Mapping[str, str]) -> str:
    """How numbers came about, as a list."""
    return "\n".join(f"* {name}: {value}" for name, value in about.items())


def milliseconds(seconds: float) -> str:
    """Short, for a cell."""
    return f"{seconds * 1e3:.1f}" if seconds >= 1e-3 else f"{seconds * 1e3:.2f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
