"""Reads what a dry run has written."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.gpu import run as gpu


def dry_run(interpreted, path, *arguments) -> tuple[dict[str, Any], str]:
    data, page = interpreted("benchmarks.gpu.gemm_cases.dry_run", str(path), *arguments)
    return json.loads((path / data).read_text()), (path / page).read_text()


def without_rows(result: dict[str, Any]) -> set[str]:
    """What a page says was not measured. Mutant: any name of a column in `gpu_asked`."""
    said = result[gpu.VERDICTS]
    return {its["row"] for its in said if its["verdict"] == "not measured"}


def measured(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "skipped" not in row]
