"""What ``MODULE:CALLABLE`` names on the command line, and what it returns."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from overlapc.errors import CommandError


def returned(name: str) -> Any:
    """Call what ``MODULE:CALLABLE`` names; its own exceptions pass through."""
    function = load(name)
    try:
        inspect.signature(function).bind()
    except ValueError:  # a builtin that does not tell what it takes
        pass
    except TypeError as error:
        raise CommandError(
            f"It cannot be called without arguments: {error}.",
            where=name,
            remedy="give a callable that takes nothing and returns (model, args)",
        ) from error
    return function()


def model_and_inputs(name: str) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """What ``MODULE:CALLABLE`` returns, for one call: of a list of calls, for the first."""
    model, args, kwargs = _for_one_call(name, returned(name))
    if not callable(model):
        raise CommandError(
            f"What it returned as the model is of type {type(model).__name__}, and no callable.",
            where=name,
            remedy="return a module or a function first, then a tuple of its inputs",
        )
    return model, args, kwargs


def _for_one_call(name: str, found: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    match found:
        case (model, list() as calls) if calls and all(map(_is_call, calls)):
            first = calls[0]
            return (model, first, {}) if isinstance(first, tuple) else (model, (), dict(first))
        case (_, list() as items) if len(items) > 1:
            raise CommandError(
                f"A list of {len(items)} may be the inputs of one call, or of as many calls.",
                where=name,
                remedy="give a tuple of the inputs of one call, or a list of such tuples",
            )
        case (model, tuple() | list() as args):
            return model, tuple(args), {}
        case (model, tuple() | list() as args, dict() as kwargs):
            return model, tuple(args), kwargs
        case other:
            raise CommandError(
                f"It returned {type(other).__name__}, not (model, args) or (model, args, kwargs).",
                where=name,
                remedy="return the model, a tuple of its inputs and, if needed, a dict of them",
            )


def _is_call(item: object) -> bool:
    """Whether an item of a list is a call's inputs, positional or named: a dict that is an input
    stands in a tuple of them."""
    is_named = isinstance(item, Mapping) and all(isinstance(key, str) for key in item)
    return isinstance(item, tuple) or is_named


def load(name: str) -> Any:
    """The callable itself; CommandError where there is none of that name."""
    module, _, attribute = name.partition(":")
    remedy = "give MODULE:CALLABLE, importable from the current folder"
    if not module or not attribute:
        raise CommandError(
            f"{name!r} is not MODULE:CALLABLE.", where="MODULE:CALLABLE", remedy=remedy
        )
    try:
        loaded = import_here(module)
    except ModuleNotFoundError as error:
        # A module that is there but lacks one of its own imports is the user's to see in full.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise CommandError(f"There is no module {module!r}.", where=name, remedy=remedy) from error
    found = getattr(loaded, attribute, None)
    if not callable(found):
        raise CommandError(
            f"Module {module!r} has no callable {attribute!r}.", where=name, remedy=remedy
        )
    return found


def import_here(module: str) -> ModuleType:
    """A module of the current folder, or of the installation."""
    # The console script has its own folder on the path, not the user's.
    sys.path.insert(0, "")
    return import_module(module)
