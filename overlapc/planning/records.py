"""Frozen records to JSON values and back, strictly: every field there, no other, right types."""

from __future__ import annotations

import types
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def to_value(record: Any) -> Any:
    """The JSON value of a record: objects for records, arrays for tuples."""
    if is_dataclass(record):
        return {field.name: to_value(getattr(record, field.name)) for field in fields(record)}
    if isinstance(record, tuple):
        return [to_value(item) for item in record]
    return record


def from_value(kind: type[Record], value: Any, where: str = "") -> Record:
    """The record of class ``kind`` that ``to_value`` turned into ``value``.

    What ``kind.GONE`` names is not read, where older texts hold it. Raises ValueError that names
    the field at fault, with ``where`` as its path.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the document'} is not an object")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    gone = getattr(kind, "GONE", frozenset())
    if unknown := sorted(set(value) - set(known) - gone):
        raise ValueError(f"unknown field {_path(where, unknown[0])}")
    if missing := [n for n, field in known.items() if n not in value and _is_required(field)]:
        raise ValueError(f"field {_path(where, missing[0])} is missing")
    given = {name: item for name, item in value.items() if name not in gone}
    read = {name: _read(hints[name], item, _path(where, name)) for name, item in given.items()}
    try:
        return kind(**read)
    except ValueError as error:
        raise ValueError(f"{where or 'the document'}: {error}") from error


def check_format(found: Any, newest: int) -> None:
    """Raise ValueError unless a text of version ``found`` can be read: one of 1 to ``newest``.

    An older text lacks fields, which have defaults; a newer one may hold fields unknown here.
    """
    if type(found) is int and 1 <= found <= newest:
        return
    newer = "a newer overlapc wrote it: " if type(found) is int and found > newest else ""
    known = f"formats 1 to {newest}" if newest > 1 else "format 1"
    raise ValueError(f"{newer}it has format {found!r}, and this overlapc reads {known}")


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _path(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _read(kind: Any, value: Any, where: str) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return from_value(kind, value, where)
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        (kind,) = (option for option in get_args(kind) if option is not type(None))
        return _read(kind, value, where)
    if get_origin(kind) is tuple:
        return _read_tuple(get_args(kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # bool is an int to Python, but a flag is no size.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r}, not {kind.__name__}")
    return value


def _read_tuple(items: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {value!r}, not an array")
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ValueError(f"{where} has {len(value)} items, not {len(items)}")
    return tuple(
        _read(kind, item, f"{where}[{index}]")
        for index, (kind, item) in enumerate(zip(items, value, strict=True))
    )
