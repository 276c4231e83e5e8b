"""One JSON and one Markdown file of a run, rewritten after every row: what is measured stays."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOTE = (
    "Times are medians of device events over interleaved rounds, all launches ahead of the device;"
    " a ratio is the median of paired ratios with its 95 % interval, above 1 where what the column"
    " is about is faster. Links are EMULATED by a paced copy kernel on the same GPU: no data left"
    " it. The JSON beside this page holds all times."
)
HIDDEN = ("details",)
"""Columns that only the JSON has, beside mappings."""


@dataclass(frozen=True)
class Page:
    """Where a part's results go."""

    directory: Path
    part: str

    def write(
        self, about: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> list[Path]:
        """Write both files whole; their paths."""
        self.directory.mkdir(parents=True, exist_ok=True)
        device = str(about.get("device", "unknown")).split(",")[0].lower()
        named = "".join(c if c.isalnum() else "-" for c in device)
        stem = self.directory / f"gpu-{self.part}-{named}-{about['date']}"
        texts = {
            stem.with_suffix(".json"): json.dumps(
                {"about": about, **tables}, indent=1, default=str
            ),
            stem.with_suffix(".md"): markdown(self.part, about, tables),
        }
        for path, text in texts.items():
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            unfinished.write_text(text.rstrip() + "\n", encoding="utf-8")
            unfinished.replace(path)
        return list(texts)


def markdown(
    part: str, about: Mapping[str, Any], tables: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """The page: about, then every table."""
    lines = [f"# GPU measurements: {part}", ""]
    lines += [f"* {name}: {cell(value)}" for name, value in about.items() if name not in HIDDEN]
    lines += ["", NOTE]
    for title, rows in tables.items():
        lines += ["", f"## {title}", "", *table(rows)]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown lines, one a row; mappings and lists of lists are left to the JSON."""
    if not rows:
        return ["not measured"]
    columns = dict.fromkeys(
        name
        for row in rows
        for name, value in row.items()
        if not isinstance(value, Mapping) and name not in HIDDEN
    )
    names = [name for name in columns if name != "error"]
    names += ["error"] if "error" in columns else []
    body = [[cell(row.get(name, "")) for name in names] for row in rows]
    return [_line(cells) for cells in (names, ["---"] * len(names), *body)]


def cell(value: Any) -> str:
    """A value in few characters; a ratio with its interval."""
    match value:
        case bool() | None:
            return str(value)
        case float():
            return f"{value:.3g}"
        case [float(median), float(low), float(high)]:
            return f"{median:.3f} [{low:.3f}, {high:.3f}]"
    return str(value).replace("|", "/").replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
