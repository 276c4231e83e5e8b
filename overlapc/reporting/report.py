"""`Report`: all sites of a compilation, to be read, printed and saved."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from overlapc.errors import ReportError
from overlapc.reporting import encoding
from overlapc.reporting.records import Site


@dataclass(frozen=True)
class Report:
    """Every site of every graph that one compilation saw, in the order of the graphs."""

    sites: list[Site]
    """Empty for a model with nothing to rewrite."""

    def __post_init__(self) -> None:
        for site in self.sites:
            if not isinstance(site, Site):
                raise ReportError(
                    f"A report holds sites, not {type(site).__name__}.",
                    where="Report",
                    remedy="build it from Site records",
                )

    @property
    def decisions(self) -> Counter[str]:
        """How many sites were rewritten, kept and refused."""
        return Counter(site.decision for site in self.sites)

    def __str__(self) -> str:
        """The table, as plain text of a fixed width."""
        # rich takes longer to import than a compiled graph needs to start.
        from overlapc.reporting.table import to_text

        return to_text(self.sites)

    def save(self, directory: str | Path) -> Path:
        """Write report.json, report.txt and the predicted timelines; return the directory."""
        from overlapc.reporting.saving import save

        return save(self.sites, Path(directory))

    @staticmethod
    def load(directory: str | Path) -> Report:
        """The report that `save` wrote to a directory; raises ReportError where there is none."""
        from overlapc.reporting.saving import load

        return Report(load(Path(directory)))

    def to_json(self) -> str:
        """Text from which `from_json` makes an equal report."""
        return encoding.to_json(self.sites)

    @staticmethod
    def from_json(text: str, where: str = "Report.from_json") -> Report:
        """The report that `to_json` wrote; raises ReportError for anything else.

        ``where`` names the source of the text in the error.
        """
        return Report(encoding.from_json(text, where))
