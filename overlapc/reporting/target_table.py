"""The targets that can be named here, as a table."""

from __future__ import annotations

from rich import box
from rich.table import Table

from overlapc.errors import TargetError
from overlapc.planning.target import Target, shipped_names, stored_path


def target_table() -> Table:
    """List shipped targets, then those that calibration stored; a broken file shows its error."""
    table = Table("name", "from", "device", "backend", "measured", "GEMM rates", "ranks", "note")
    table.box = box.SIMPLE_HEAD
    for name in shipped_names():
        table.add_row(name, "shipped", *_cells(name))
    for path in sorted(stored_path("any").parent.glob("*.json")):
        if path.stem not in shipped_names():
            table.add_row(path.stem, "stored", *_cells(str(path)))
    return table


def _cells(name_or_path: str) -> tuple[str, ...]:
    try:
        target = Target.load(name_or_path)
    except TargetError as error:
        return ("", "", "", "", "", f"unusable: {error.what}")
    return (
        target.device,
        target.backend,
        "yes" if target.is_measured else "no",
        ", ".join(dict.fromkeys(rates.dtype for rates in target.gemm)),
        ", ".join(str(size) for size in sorted({link.world_size for link in target.links})),
        "",
    )
