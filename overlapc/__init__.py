"""A ``torch.compile`` backend that overlaps collectives with the GEMMs they depend on.

``torch.compile(model, backend="overlapc", options={...})`` needs no import of this package. What is
public here loads on first use, so that planning and ``import overlapc`` need neither torch nor
triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overlapc.calibration import calibrate
    from overlapc.explaining import explain, report
    from overlapc.options import Options
    from overlapc.planning.schedule import Plan
    from overlapc.planning.search import plan_gemm as plan
    from overlapc.planning.target import Target
    from overlapc.reporting.records import Site
    from overlapc.reporting.report import Report

__version__ = "0.1.0"

__all__ = [
    "Options",
    "Plan",
    "Report",
    "Site",
    "Target",
    "calibrate",
    "explain",
    "plan",
    "report",
]

_HOME = {
    "Options": ("overlapc.options", "Options"),
    "Plan": ("overlapc.planning.schedule", "Plan"),
    "Report": ("overlapc.reporting.report", "Report"),
    "Site": ("overlapc.reporting.records", "Site"),
    "Target": ("overlapc.planning.target", "Target"),
    "calibrate": ("overlapc.calibration", "calibrate"),
    "explain": ("overlapc.explaining", "explain"),
    "plan": ("overlapc.planning.search", "plan_gemm"),
    "report": ("overlapc.explaining", "report"),
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'overlapc' has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value
