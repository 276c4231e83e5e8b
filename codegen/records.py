"""Frozen records of plain fields as one canonical line of text, and back."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, ClassVar, Self

from overlapc.errors import KernelError

NOTHING = "none"


class Canonical:
    """A frozen dataclass whose ``str`` is its line of text; those of each kind derive from it.

    Fields are of type str (without spaces), int, float, bool, or ``int | None``.
    """

    KIND: ClassVar[str]
    """The first word of the text."""
    NEEDS: ClassVar[str]
    """What is not to be had unless a rule holds, in the words of an error."""
    REMEDY: ClassVar[str]

    def __str__(self) -> str:
        return _to_line(self.KIND, self)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``str`` printed; KernelError on any other text."""
        return _from_line(cls.KIND, cls, text)

    def require(self, holds: bool, rule: str, of: str = "") -> None:
        """KernelError unless a rule holds; ``of`` says what else it depends on."""
        if not holds:
            raise KernelError(
                f"{self.NEEDS} unless {rule}.", where=f"{self}{of}", remedy=self.REMEDY
            )


def _to_line(kind: str, record: Any) -> str:
    """``kind name=value ...``, every field in its order; equal iff the records are."""
    pairs = (f"{field.name}={_text(getattr(record, field.name))}" for field in fields(record))
    return " ".join((kind, *pairs))


@lru_cache(maxsize=4096)
def _from_line(kind: str, record: type, text: str) -> Any:
    # Remembered: an op reads its own at each call.
    found, *pairs = text.split() or ("",)
    kinds = {field.name: str(field.type) for field in fields(record)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if found != kind or not equals or name not in kinds or name in values:
            raise _unreadable(record, text, pair)
        values[name] = _value(record, text, value, kinds[name])
    if set(values) != set(kinds):
        missing = ", ".join(sorted(set(kinds) - set(values)))
        raise _unreadable(record, text, f"missing {missing}")
    return record(**values)


def _text(value: Any) -> str:
    if value is None:
        return NOTHING
    return str(int(value)) if isinstance(value, bool) else str(value)


def _value(record: type, text: str, value: str, kind: str) -> str | int | float | bool | None:
    match kind:
        case "bool" if value in ("0", "1"):
            return value == "1"
        case "int | None" if value == NOTHING:
            return None
        case "int" | "int | None" if value.isascii() and value.isdigit():
            return int(value)
        case "float" if _is_float(value):
            return float(value)
        case "str":
            return value
    raise _unreadable(record, text, value)


def _is_float(value: str) -> bool:
    """Whether it is what Python prints of a float, and no other spelling of it."""
    try:
        return str(float(value)) == value
    except ValueError:
        return False


def _unreadable(record: type, text: str, part: str) -> KernelError:
    return KernelError(
        f"{part!r} cannot be read as part of a kernel's spec.",
        where=repr(text),
        remedy=f"give the text that str({record.__name__}(...)) prints",
    )
