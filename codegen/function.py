"""The text of the Triton function that turns a tile of A @ B into a tile of C.

The rule of rounding is eager's: every call computes in float32 from its operands, and its value is
rounded at once to the dtype that torch gives it, even where the next call would take float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Input, Ref
from overlapc.codegen.pointwise import BITS, CASTS, COMPARE, FLOAT, LOGIC, RULES, Rule, write
from overlapc.codegen.products import GEMMS
from overlapc.codegen.promotion import (
    BOOL,
    FLOATS,
    FP8,
    HALVES,
    TRITON_NAMES,
    CannotLower,
    Value,
    common_dtype,
)

PARTS = {"matrix": 3, "column": 2, "vector": 2, "one": 1, "scalar": 1}
"""What a kernel is given for an input of each shape: a pointer, then strides."""
PRODUCTS = ("product", "other")
"""How a function calls the tiles of A @ B, one for each B."""
HEADER = '''\
@triton.jit
def epilogue({products}, tile, inputs):
    """A tile of C, of {dtype}, from that of A @ B, of float32."""
'''


@dataclass(frozen=True)
class Line:
    """One assignment of the function."""

    name: str
    text: str
    dtype: str = "float32"
    """What the text is rounded to."""
    comment: str = ""


class Function:
    """A function in the making; ``add`` appends one call of the chain."""

    parts: ClassVar[Mapping[str, int]] = PARTS
    truths: ClassVar[str] = "int8"
    """How truths that are read are held: as bytes. Those of a tile do not fit the predicates of a
    thread, to which int1 leads, and would be packed and unpacked on their way."""

    def __init__(self, inputs: Sequence[Input | None], dtype: str, most_products: int = 1) -> None:
        self.inputs = inputs
        self.dtype = dtype
        """Of A and B."""
        self.most_products = most_products
        """GEMMs of one A that the kernel computes."""
        self.products = 0
        self.values: list[Value] = []
        """Of the calls."""
        self.lines: list[Line] = []
        self.loaded: dict[int, Value] = {}

    def add(self, call: Call) -> None:
        """Append a call; ``CannotLower``, after which the function is of no use, if it has none."""
        given = bind(call)
        if call.op in GEMMS:
            self._add_product(call, given)
        elif not self.values:
            raise CannotLower("it is no GEMM that is generated")
        elif call.op in CASTS:
            self._add_cast(call, given)
        elif call.op in RULES:
            self._add_pointwise(call, RULES[call.op], given)
        else:
            raise CannotLower("it is not in the table of pointwise ops")

    def text(self) -> str:
        """The function, whole."""
        last = self.lines[-1]
        assert last.name == self.values[-1].text, "the last call's value is what is stored"
        body = [line_text(line) for line in self.lines[:-1]]
        # A cast rounds as well.
        body.append(line_text(replace(last, dtype="float32")))
        result = last.name
        if last.dtype != "float32":
            result = f"pointwise.cast({result}, tl.{TRITON_NAMES[last.dtype]})"
        products = ", ".join(PRODUCTS[: self.products])
        header = HEADER.format(products=products, dtype=last.dtype)
        return header + "".join(body) + f"    return {result}\n"

    def _add_product(self, call: Call, given: Mapping[str, Any]) -> None:
        if self.products == self.most_products:
            most = "one GEMM" if self.most_products == 1 else f"{self.most_products} GEMMs"
            raise CannotLower(f"a kernel computes {most}")
        name = PRODUCTS[self.products]
        product = GEMMS[call.op].write(given, self.dtype, self._value, name)
        self.products += 1
        self._append(call, product.text, product.dtype)

    def _add_cast(self, call: Call, given: Mapping[str, Any]) -> None:
        value = self._value(given.get("self", given.get("a")))
        target = given["dtype"]
        if given.get("device") is not None or given.get("layout") is not None:
            raise CannotLower("a copy to another device is not lowered")
        target = target or Dtype(value.dtype)
        if target.name == BOOL:
            self._append(call, _truth(value), BOOL)
        elif target.name in FLOATS:
            self._append(call, _number(value, target.name), target.name)
        else:
            raise CannotLower(f"values of {target.name} are not lowered")

    def _add_pointwise(self, call: Call, rule: Rule, given: Mapping[str, Any]) -> None:
        values = {k: self._value(v) for k, v in given.items() if isinstance(v, Ref)}
        if rule.kind == BITS and any(value.dtype != BOOL for value in values.values()):
            raise CannotLower("bits of numbers are not lowered")
        if rule.kind in (LOGIC, BITS):
            texts = {name: _truth(value) for name, value in values.items()}
            self._append(call, write(rule, {**given, **texts}), BOOL)
            return
        numbers = {name: value for name, value in values.items() if name != "condition"}
        common = common_dtype(list(numbers.values()))
        if common in FP8:
            raise CannotLower(f"torch has no arithmetic of {common}")
        if common == BOOL:
            if rule.kind not in (FLOAT, COMPARE):
                raise CannotLower("arithmetic of truths is not lowered")
            common = "float32"
        texts = {name: _number(value, common) for name, value in numbers.items()}
        if "condition" in values:
            texts["condition"] = _truth(values["condition"])
        if rule.kind == COMPARE:
            given = {k: _round(v, common) if _is_number(v) else v for k, v in given.items()}
        result = BOOL if rule.kind == COMPARE else common
        self._append(call, write(rule, {**given, **texts}), result, exact=rule.exact)

    def _append(self, call: Call, text: str, dtype: str, *, exact: bool = False) -> None:
        name = f"v{len(self.values)}"
        self.lines.append(Line(name, text, "float32" if exact else dtype, call.op))
        self.values.append(Value(name, dtype))

    def _value(self, ref: Ref) -> Value:
        if ref.kind == "value":
            return self.values[ref.index]
        if ref.kind != "input":
            raise CannotLower("A and B are no inputs of the epilogue")
        if ref.index not in self.loaded:
            self.loaded[ref.index] = self._load(ref.index)
        return self.loaded[ref.index]

    def _load(self, index: int) -> Value:
        item = self.inputs[index]
        if item is None or item.dtype not in (*FLOATS, BOOL):
            raise CannotLower("it takes a tensor that no kernel reads")
        before = [other for other in self.inputs[:index] if other is not None]
        first = sum(self.parts[other.shape] for other in before)
        count = self.parts[item.shape]
        parts = ", ".join(f"inputs[{first + part}]" for part in range(count))
        name, held = f"in{index}", self.truths if item.dtype == BOOL else "float32"
        text = f"{self._read(item.shape, parts)}.to(tl.{held})"
        self.lines.append(Line(name, text, comment=f"{item.dtype} {item.shape}"))
        return Value(f"({name} != 0)" if held == "int8" else name, item.dtype, item.shape)

    def _read(self, shape: str, parts: str) -> str:
        """The text that reads an input of ``parts``."""
        if shape in ("one", "scalar"):
            return f"operands.one({parts})"
        return f"operands.{shape}({parts}, tile)"


def function_of(epilogue: Epilogue, dtype: str, most_products: int = 1) -> Function:
    """The function of an epilogue after GEMMs on ``dtype``; raises ``CannotLower``."""
    function = Function(epilogue.inputs, dtype, most_products)
    for call in epilogue.calls:
        function.add(call)
    return function


def bind(call: Call) -> dict[str, Any]:
    """The arguments of a call by the names of its parameters, defaults included."""
    names = parameters(call.op)
    given = {name: default for name, default in names.items() if default is not _missing}
    given |= dict(zip(names, call.arguments, strict=False)) | dict(call.named)
    if len(call.arguments) > len(names) or set(given) != set(names):
        raise CannotLower("its arguments are not those of its schema")
    return given


_missing = object()


@cache
def parameters(op: str) -> dict[str, Any]:
    """The parameters of an overload, in order, with their defaults."""
    import torch

    found: Any = torch.ops
    try:
        for part in op.split("."):
            found = getattr(found, part)
        arguments = found._schema.arguments
    except AttributeError:
        raise CannotLower("torch has no such overload") from None
    return {a.name: a.default_value if a.has_default_value() else _missing for a in arguments}


def line_text(line: Line) -> str:
    """One assignment, under a comment that says what it is."""
    text = line.text
    if line.dtype in (*HALVES, *FP8):
        text = f"pointwise.rounded({text}, tl.{TRITON_NAMES[line.dtype]})"
    return f"    # {line.comment}\n    {line.name} = {text}\n"


def _number(value: Value, common: str) -> str:
    """A value as float32, cast to the common dtype where that loses something."""
    if value.dtype == BOOL:
        return f"{value.text}.to(tl.float32)"
    if value.is_scalar and common not in ("float32", value.dtype):
        return f"pointwise.rounded({value.text}, tl.{TRITON_NAMES[common]})"
    return value.text


def _truth(value: Value) -> str:
    return value.text if value.dtype == BOOL else f"({value.text} != 0.0)"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _round(value: float, dtype: str) -> float:
    import torch

    return torch.tensor(value, dtype=getattr(torch, dtype)).item()
