"""A fault of our own while a graph is read: it costs a rewrite, and not the user's program."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import fx

from overlapc.graphs.collectives import Refusal
from overlapc.graphs.origins import where

log = logging.getLogger(__name__)

Found = TypeVar("Found")


def fault_at(node: fx.Node, error: Exception) -> Refusal:
    """Return the refusal of a site that could not be read; the log is told where in our code.

    To be called where ``error`` is caught, with the graph as it was before.
    """
    log.exception("a fault of overlapc at %s", where(node))
    reason = f"A fault of overlapc, which its log tells, please report it: {error!r}."
    return Refusal(node, "internal", reason)


def unless_faulty(read: Callable[[], Found], otherwise: Found, what: str) -> Found:
    """Return what is read of a graph, of which nothing is changed yet; after a fault ``otherwise``.

    For what belongs to no one site: the log says that ``what``, a clause, and asks for a report.
    """
    try:
        return read()
    except Exception:
        log.exception("a fault of overlapc, please report it: %s", what)
        return otherwise


@contextmanager
def all_or_nothing(graph: fx.Graph) -> Iterator[None]:
    """Take out of a graph what was put in before a fault, which is raised again.

    Where somebody reads it already, that it cannot be taken out is raised: such a graph is no
    longer what it was.
    """
    before = set(graph.nodes)
    try:
        yield
    except Exception:
        for node in reversed(list(graph.nodes)):
            if node not in before:
                graph.erase_node(node)
        raise
