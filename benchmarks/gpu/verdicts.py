"""Asked, measured, met or missed: of one page's tables, and of all pages that there are.

``python -m benchmarks.gpu.verdicts`` rewrites the list in ``benchmarks/results/gpu.md`` by the
newest page of each part beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.asked import ASKED, GEOMEAN, RIGHT, Asked
from benchmarks.gpu.claims import geomean, middle
from benchmarks.gpu.report import cell, table

Tables = Mapping[str, Sequence[Mapping[str, Any]]]

MET, MISSED, NOT_MEASURED, REPORTED = "met", "missed", "not measured", "reported"
RESULTS = Path(__file__).parents[1] / "results"
LIST = RESULTS / "gpu.md"
BEGIN, END = "<!-- asked: begin -->\n", "<!-- asked: end -->\n"


def verdicts(part: str, tables: Tables) -> list[dict[str, Any]]:
    """What is asked of a part, a row each."""
    return [verdict(asked, tables) for asked in ASKED if asked.part == part]


def verdict(asked: Asked, tables: Tables) -> dict[str, Any]:
    """One of them: with how many rows it rests on, and which others there are."""
    its = [row for name in asked.tables for row in tables.get(name, ())]
    tried = [row for row in its if not {"error", "skipped"} & set(row)]
    found = {"row": asked.what, "asked": str(asked)}
    if asked.by == RIGHT:
        wrong = sum("error" in row for row in its)
        found["rows"] = counted(len(tried), its)
        if not tried and not wrong:
            return {**found, "measured": why_not(its), "verdict": NOT_MEASURED}
        said = f"{len(tried)} of {len(tried) + wrong}"
        return {**found, "measured": said, "verdict": MISSED if wrong else MET}
    given = [
        (middle(row[asked.column]), name_of(row))  # rows over two links may have one name
        for row in tried
        if asked.only(row) and row.get(asked.column) is not None
    ]
    if not given:
        found |= {"measured": why_not(its), "rows": counted(0, its)}
        return {**found, "verdict": NOT_MEASURED}
    ratios = [ratio for ratio, _ in given]
    least, worst = min(given)
    mean = geomean(ratios)
    value = mean if asked.by == GEOMEAN else least
    found |= {"measured": value, "rows": counted(len(given), its)}
    more = {"geomean": mean, "least": least, "least of": worst}
    if asked.goal is None:
        return {**found, "verdict": REPORTED, **more}
    reach = sum(ratio >= asked.goal for ratio in ratios)
    result = MET if value >= asked.goal else MISSED
    return {**found, "verdict": result, "rows that reach it": f"{reach} of {len(given)}", **more}


def name_of(row: Mapping[str, Any]) -> str:
    """Of a row, with its link where it has one."""
    return ", ".join(str(row[column]) for column in ("row", "EMULATED link") if column in row)


def why_not(its: Sequence[Mapping[str, Any]]) -> str:
    """That nothing was measured, and why where all rows were skipped for one reason."""
    reasons = {row.get("skipped") for row in its}
    (reason,) = reasons if len(reasons) == 1 else (None,)
    return f"{NOT_MEASURED}: {reason}" if reason else NOT_MEASURED


def counted(rests: int, its: Sequence[Mapping[str, Any]]) -> str:
    """How many rows a verdict rests on, and how many of its tables it lacks."""
    lacking = [
        f"{count} {name}"
        for key, name in (("error", "failed"), ("skipped", "skipped"))
        if (count := sum(key in row for row in its))
    ]
    return ", ".join([str(rests), *lacking])


def newest(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """By part, the newest JSON of a run, and what it holds."""
    found: dict[str, tuple[str, Path, dict[str, Any]]] = {}
    for path in sorted(folder.glob("gpu-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        part, date = path.name.split("-")[1], content["about"]["date"]
        if part not in found or date >= found[part][0]:
            found[part] = date, path, content
    return {part: (path, content) for part, (_, path, content) in found.items()}


def listed(folder: Path) -> str:
    """The list of all that is asked, in Markdown."""
    pages, rows = newest(folder), list[dict[str, Any]]()
    for asked in ASKED:
        path, content = pages.get(asked.part, (None, {}))
        its = verdict(asked, content)
        rows.append({
            "what": asked.what, "asked": its["asked"], "measured": cell(its["measured"]),
            "rows": its["rows"], "verdict": its["verdict"],
            "page": f"[{path.stem}]({path.stem}.md)" if path else f"`make gpu PART={asked.part}`",
        })  # fmt: skip
    return "\n".join(table(rows)) + "\n"


def rewritten(text: str, folder: Path) -> str:
    """The page of all that is asked with its list as it is now."""
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: BEGIN + listed(folder) + END, text)


if __name__ == "__main__":
    LIST.write_text(rewritten(LIST.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
