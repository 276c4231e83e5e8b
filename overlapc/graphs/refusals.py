"""How a walk over a graph ends early: with what becomes the result of the match."""

from __future__ import annotations

from typing import NoReturn

from torch import fx

from overlapc.graphs.collectives import Refusal


class Refused(Exception):
    """Ends a walk over a graph; what it carries becomes the result of the match."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


def refuse(node: fx.Node, code: str, reason: str) -> NoReturn:
    """End the match at ``node``."""
    raise Refused(Refusal(node, code, reason))
