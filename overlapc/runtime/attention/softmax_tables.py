"""What prompts said of the attentions of the graph whose weights these are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from overlapc.errors import TargetError
from overlapc.planning.attention.softmax import SiteScores
from overlapc.planning.attention.softmax_table import AGAIN, SoftmaxTable, table_path
from overlapc.runtime.weights import content_of, structure_of


@dataclass(frozen=True)
class Calibration:
    """Of one graph."""

    sites: tuple[SiteScores, ...] = ()
    """In the order of the graph; empty: nothing is known."""
    problem: str = ""
    """Why what is stored cannot be used, in sentences, where that is so."""

    def site(self, index: int, count: int, attention: str) -> SiteScores | str:
        """Of one of so many attentions of the graph, or why it cannot be used: empty without one.

        ``attention`` is what `score_watching.attention_text` says of it.
        """
        if not self.sites:
            return self.problem
        if len(self.sites) != count:
            return (
                f"It was calibrated as one of {len(self.sites)} attentions of a graph, not {count}."
            )
        seen = self.sites[index]
        if seen.heads and seen.attention != attention:
            return f"It was calibrated as {seen.attention}, and has {attention}: {AGAIN}."
        return seen if seen.heads else ""


NOT_CALIBRATED = Calibration()


def calibration_of(weights: Sequence[torch.Tensor]) -> Calibration:
    """Return what was stored for a graph with these weights; a changed model is a problem.

    Reads all weights once, where anything was stored for others of their sizes.
    """
    path = table_path(structure_of(weights))
    if not weights or not path.exists():
        return NOT_CALIBRATED
    try:
        table = SoftmaxTable.load(path)
    except TargetError as error:
        return Calibration(problem=f"{error.what} Remedy: {error.remedy}.")
    content = content_of(weights)
    if not content:
        return Calibration(problem="Its weights cannot be read, so nobody knows which it is.")
    if found := table.graph(content):
        return Calibration(found.sites)
    others = ", ".join(graph.weights for graph in table.graphs)
    return Calibration(
        problem=f"Its weights ({content}) are not those of the calibration ({others}): {AGAIN}."
    )
