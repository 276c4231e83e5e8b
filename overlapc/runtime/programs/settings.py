"""What is set of Inductor's configuration, as text that a specification carries.

Kernels between a chain's GEMMs are compiled at the first call, which may come in another process,
or in a thread of autograd, where nothing of it is set: torch keeps one configuration a context.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

from torch._inductor import config

T = TypeVar("T")

BESIDE = ("force_disable_caches", "joint_graph_constant_folding")
"""What we set to write dumps and to explain; neither changes what a kernel is."""
FIELD = "inductor"
"""The field of a specification that holds the text."""


def settings() -> str:
    """Return what differs here from torch's own configuration; empty if nothing does.

    Read in a pass, that is what Inductor compiles the pass's graph with. What has no text, such as
    a user's own passes and classes, is left out: it holds for the graph alone.
    """
    here = config.get_serializable_config_copy()
    own = Context().run(config.get_serializable_config_copy)
    differing = sorted(name for name in here if here[name] != own[name] and name not in BESIDE)
    kept = {name: here[name] for name in differing if _has_text(here[name])}
    return repr(kept) if kept else ""


def under(text: str, call: Callable[[], T]) -> T:
    """Return what ``call`` gives where that of Inductor is set which ``settings`` returned, and
    nothing else."""
    with_it = config.patch(ast.literal_eval(text))(call) if text else call
    return Context().run(with_it)


def stated(values: dict[str, Any]) -> dict[str, Any]:
    """Return a specification's fields without that of no settings."""
    return {name: value for name, value in values.items() if value or name != FIELD}


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return all fields of what ``stated`` returned; TypeError for anything but a dict."""
    return {FIELD: "", **values}


def _has_text(value: Any) -> bool:
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError):
        return False
