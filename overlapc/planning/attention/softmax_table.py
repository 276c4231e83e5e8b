"""The scores that prompts gave the attentions of a graph: a file that only its weights can use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from overlapc.cache import cache_dir
from overlapc.planning.attention.softmax import SiteScores
from overlapc.planning.stored import read, write

FORMAT = 1
"""Version of the files; a newer one is refused."""
KEY = "overlapc_softmax"
AGAIN = "run overlapc calibrate --softmax with this model"


@dataclass(frozen=True)
class GraphScores:
    """The attentions of one graph with one set of weights, in the order of the graph."""

    weights: str
    """Hash of what the weights hold."""
    sites: tuple[SiteScores, ...]


@dataclass(frozen=True)
class SoftmaxTable:
    """What was seen of graphs whose weights have the same sizes: fine-tuned models, layers."""

    structure: str
    """Hash of the sizes and dtypes of the weights."""
    graphs: tuple[GraphScores, ...] = ()

    def graph(self, weights: str) -> GraphScores | None:
        """What was seen with exactly these weights."""
        return next((graph for graph in self.graphs if graph.weights == weights), None)

    def with_graph(self, graph: GraphScores) -> SoftmaxTable:
        """The table with this in place of what it has of the same weights."""
        kept = tuple(old for old in self.graphs if old.weights != graph.weights)
        return replace(self, graphs=(*kept, graph))

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads; its folder is made if needed, the write is atomic."""
        write(Path(path), KEY, FORMAT, self)

    @staticmethod
    def load(path: str | Path) -> SoftmaxTable:
        """The table in a file; TargetError for what is not found, not ours, or newer."""
        return read(Path(path), KEY, FORMAT, SoftmaxTable, "calibration of softmax", AGAIN)


def table_path(structure: str) -> Path:
    """Where calibration keeps what it saw of graphs of a structure."""
    return cache_dir() / "softmax" / f"{structure}.json"
