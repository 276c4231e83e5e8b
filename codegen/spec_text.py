"""The canonical one-line text of a kernel's spec: a kind and every field, in their order."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from overlapc.errors import KernelError

Spec = TypeVar("Spec")


def text_of(kind: str, spec: Any) -> str:
    """The text of a record of bools, ints and strings without spaces."""
    pairs = (f"{field.name}={_text(getattr(spec, field.name))}" for field in fields(spec))
    return " ".join((kind, *pairs))


def parsed(kind: str, record: type[Spec], text: str) -> Spec:
    """Read what ``text_of`` printed of a ``record``; KernelError on any other text."""
    found, *pairs = text.split() or ("",)
    names = {field.name: str(field.type) for field in fields(record)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if found != kind or not equals or name not in names or name in values:
            raise _unreadable(text, pair)
        values[name] = _value(text, value, names[name])
    if set(values) != set(names):
        raise _unreadable(text, f"missing {', '.join(sorted(set(names) - set(values)))}")
    return record(**values)


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _value(text: str, value: str, kind: str) -> str | int | bool:
    match kind:
        case "bool" if value in ("0", "1"):
            return value == "1"
        case "int" if value.isascii() and value.isdigit():
            return int(value)
        case "str":
            return value
    raise _unreadable(text, value)


def _unreadable(text: str, part: str) -> KernelError:
    return KernelError(
        f"{part!r} cannot be read as part of a kernel's spec.",
        where=repr(text),
        remedy="give the text that str() prints of a spec",
    )
