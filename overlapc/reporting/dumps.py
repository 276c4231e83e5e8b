"""The files of a dump directory: each graph before and after every pass, sites, modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

from overlapc.reporting.records import Site
from overlapc.reporting.report import Report


class GraphDump:
    """Writes what happens to one graph; writes nothing if ``directory`` is empty.

    One folder a graph, named by its hash: numbered texts in the order of the passes, and the
    files of ``Report.save``. Equal graphs of several compilations share the folder.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.numbers = count()

    def graph(self, graph_id: str, label: str, text: Callable[[], str]) -> None:
        """Write the text of the graph as it is after ``label``."""
        if self.directory:
            path = self._folder(graph_id) / f"{next(self.numbers):02d}_{label}.txt"
            path.write_text(text())

    def sites(self, graph_id: str, sites: Sequence[Site], modules: Mapping[str, str]) -> None:
        """Write the report of this graph's sites, and ``site_<number>.py`` for each module."""
        if not self.directory:
            return
        folder = self._folder(graph_id)
        Report(list(sites)).save(folder)
        for site_id, text in modules.items():
            number = int(site_id.rpartition(".")[2])
            (folder / f"site_{number:02d}.py").write_text(text)

    def _folder(self, graph_id: str) -> Path:
        folder = Path(self.directory) / graph_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder
