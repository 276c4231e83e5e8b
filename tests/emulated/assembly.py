"""The text of a kernel in PTX, as instructions. It reads what Triton writes, and says what it
cannot read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

REGISTER_BYTES = {"pred": 1, "b8": 1, "b16": 2, "b32": 4, "b64": 8}
"""Of a declared register by its type's width; a predicate is a truth."""
WIDTH = re.compile(r"[bsuf](\d+)")
DIGITS = "0123456789"
FLOAT = re.compile(r"0[fF]([0-9A-Fa-f]{8})|0[dD]([0-9A-Fa-f]{16})")
INTEGER = re.compile(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?")


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Number:
    """An immediate: an integer, or the bits of a float."""

    bits: int
    float_bytes: int = 0
    """0: an integer."""


@dataclass(frozen=True)
class Symbol:
    """A label, a parameter, or a variable in memory."""

    name: str


@dataclass(frozen=True)
class Vector:
    parts: tuple[Operand, ...]


@dataclass(frozen=True)
class Address:
    base: Operand
    offset: int = 0
    coordinates: tuple[Operand, ...] = ()
    """Of a tensor map."""


Operand = Register | Number | Symbol | Vector | Address


@dataclass(frozen=True)
class Instruction:
    op: str
    marks: tuple[str, ...]
    """What follows the op behind points, types last."""
    operands: tuple[Operand, ...]
    guard: str = ""
    """The predicate under which it is executed; empty: always."""
    negated: bool = False
    text: str = ""

    @property
    def kind(self) -> str:
        """The type of its operands."""
        return self.marks[-1]


@dataclass
class Kernel:
    name: str = ""
    threads: int = 0
    parameters: list[tuple[str, int]] = field(default_factory=list)
    """Names, and bytes."""
    registers: dict[str, int] = field(default_factory=dict)
    """Bytes of each name, or of all that begin so where it ends with ``<``."""
    variables: dict[str, tuple[str, int, bytes]] = field(default_factory=dict)
    """Space, bytes and content of each variable in memory."""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def bytes_of(self, register: str) -> int:
        """How wide a register is."""
        alone = self.registers.get(register)
        return self.registers[f"{register.rstrip(DIGITS)}<"] if alone is None else alone


def parse(text: str) -> Kernel:
    """Read the one kernel of a text."""
    kernel = Kernel()
    code = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    code = re.sub(r"^\s*\.(?:loc|file|pragma)\s.*$", "", code, flags=re.MULTILINE)
    head, _, body = code.partition(".entry")
    if ".entry" in body or ".func" in code:
        raise NotImplementedError("more than one function in a text")
    _declare(kernel, re.findall(r"\.(?:extern|global|shared|local)[^;\n]*", head))
    sign, _, rest = body.partition("{")
    kernel.name = sign.split("(")[0].strip()
    kernel.threads = _threads(sign)
    for found in re.finditer(r"\.param\s+([^,()\[\]]*?)([\w$]+)(?:\[(\d+)\])?\s*(?=[,)\n])", sign):
        kernel.parameters.append((found[2], int(found[3]) if found[3] else _width(found[1])))
    for line in _statements(_to_its_end(rest)):
        _read(kernel, line)
    return kernel


def _to_its_end(body: str) -> str:
    depth = 1
    for at, letter in enumerate(body):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return body[:at]
    raise NotImplementedError("a function without an end")


def _threads(sign: str) -> int:
    found = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", sign)
    if found is None:
        raise NotImplementedError("a kernel of any number of threads")
    return int(found[1])


def _width(text: str) -> int:
    found = WIDTH.search(text)
    assert found is not None, text
    return int(found[1]) // 8


def _declare(kernel: Kernel, lines: list[str]) -> None:
    for line in lines:
        found = re.match(
            r"\.(?:extern\s+)?\.?(\w+)\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)"
            r"(?:\[(\d*)\])?(?:\s*=\s*\{([^}]*)\})?", line,
        )  # fmt: skip
        assert found is not None, line
        space, kind, name, count, content = found.groups()
        width = _width("." + kind) if WIDTH.match(kind) else 1
        numbers = [int(each, 0) for each in content.split(",")] if content else []
        held = b"".join(each.to_bytes(width, "little") for each in numbers)
        kernel.variables[name] = (space, width * int(count or 0), held)


def _statements(body: str) -> list[str]:
    """Single statements and labels; braces of scopes are left out, those of vectors are not."""
    found: list[str] = []
    for line in body.split(";"):
        rest = line.strip()
        while rest:
            label = re.match(r"([$\w]+):(?!:)", rest)
            if label:
                found.append(label[0])
                rest = rest[label.end() :].strip()
            elif rest[0] in "{}":
                rest = rest[1:].strip()
            else:
                found.append(" ".join(rest.split()))
                break
    return found


def _read(kernel: Kernel, line: str) -> None:
    if line.endswith(":"):
        kernel.labels[line[:-1]] = len(kernel.instructions)
    elif line.startswith(".reg"):
        _, kind, *names = line.replace(",", " ").split()
        width = REGISTER_BYTES.get(kind[1:]) or _width(kind)
        kernel.registers |= {re.sub(r"<\d+>", "<", name): width for name in names}
    elif line.startswith("."):
        _declare(kernel, [line])
    else:
        kernel.instructions.append(_instruction(kernel, line))


def _instruction(kernel: Kernel, line: str) -> Instruction:
    guard, negated, rest = "", False, line
    if line.startswith("@"):
        guard, rest = line[1:].split(maxsplit=1)
        negated, guard = guard.startswith("!"), guard.lstrip("!")
    name, _, operands = rest.partition(" ")
    op, *marks = name.replace("::", "__").split(".")
    parts = tuple(_operand(kernel, part) for part in _split(operands, "[{(", "]})"))
    if op == "bra" and not operands.startswith("$") and operands in kernel.labels:
        # A label of a scope, of which others have one of that name.
        own = Symbol(f"{operands}@{kernel.labels[operands]}")
        kernel.labels[own.name] = kernel.labels[operands]
        parts = (own,)
    return Instruction(op, tuple(marks), parts, guard, negated, line)


def _split(text: str, opening: str, closing: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in opening) - (letter in closing)
        if depth or letter not in ",|":
            parts[-1] += letter
        else:
            parts.append("")
    return [part.strip() for part in parts if part.strip()]


def _operand(kernel: Kernel, text: str) -> Operand:
    if text[0] == "{":
        return Vector(tuple(_operand(kernel, part) for part in _split(text[1:-1], "[{(", "]})")))
    if text[0] == "[":
        base, *more = _split(text[1:-1], "{", "}")
        found = re.match(r"([^+\s]+)\s*(?:\+\s*(-?\w+))?$", base)
        assert found is not None, text
        inside = _operand(kernel, more[0]) if more else Vector(())
        assert isinstance(inside, Vector), text
        return Address(_operand(kernel, found[1]), int(found[2] or "0", 0), inside.parts)
    if is_float := FLOAT.fullmatch(text):
        digits = is_float[1] or is_float[2]
        return Number(int(digits, 16), len(digits) // 2)
    if INTEGER.fullmatch(text):
        return Number(int(text.rstrip("U"), 0))
    is_declared = text in kernel.registers or f"{text.rstrip(DIGITS)}<" in kernel.registers
    return Register(text) if text[0] in "%_" or is_declared else Symbol(text)
