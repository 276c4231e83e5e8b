"""A report as files in a directory, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from overlapc.errors import ReportError
from overlapc.reporting.encoding import from_json, to_json
from overlapc.reporting.records import Site
from overlapc.reporting.table import to_text
from overlapc.reporting.timeline import chrome_trace

TIMELINES = "timelines"

REPORT = "report.json"
"""The file from which a report is read again."""


def save(sites: Sequence[Site], directory: Path) -> Path:
    """Write report.json, report.txt and, for each planned site, timelines/NNN-ID.json.

    Timelines of an earlier report in the same directory are removed. Raises ReportError where the
    directory cannot be written.
    """
    try:
        timelines = directory / TIMELINES
        timelines.mkdir(parents=True, exist_ok=True)
        for stale in timelines.glob("*.json"):
            stale.unlink()
        for number, site in enumerate(sites):
            if site.plan:
                name = re.sub(r"[^A-Za-z0-9_.-]+", "-", site.id)
                path = timelines / f"{number:03d}-{name}.json"
                path.write_text(chrome_trace(site, site.plan), encoding="utf-8")
        (directory / REPORT).write_text(to_json(sites), encoding="utf-8")
        (directory / "report.txt").write_text(to_text(sites), encoding="utf-8")
    except OSError as error:
        remedy = "name a directory that may be made and written to"
        raise _file_error("written", directory, error, remedy) from error
    return directory


def load(directory: Path) -> list[Site]:
    """The sites of the report that `save` wrote to a directory, or to its file of that name.

    Raises ReportError where there is none.
    """
    path = directory if directory.name == REPORT else directory / REPORT
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = "name a directory that Report.save wrote, or its report.json"
        raise _file_error("read", path, error, remedy) from error
    return from_json(text, where=str(path))


def _file_error(what: str, path: Path, error: Exception, remedy: str) -> ReportError:
    reason = getattr(error, "strerror", None) or "it is no text"
    return ReportError(
        f"The report cannot be {what}: {reason}.",
        where=str(path),
        remedy=remedy,
    )
