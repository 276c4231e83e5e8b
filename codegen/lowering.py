"""From a chain's calls to the epilogue of its GEMM, as far as they can be lowered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from overlapc.codegen.epilogue import Call, Dtype, Epilogue, Input, Ref
from overlapc.codegen.function import Function, bind, parameters
from overlapc.codegen.pointwise import CASTS
from overlapc.codegen.products import GEMMS
from overlapc.codegen.promotion import FLOATS, CannotLower, Value

RESHAPE = "aten.reshape.default"

SATURATED, SATURATES_FROM = "float8_e4m3fn", "2.13"
"""The dtype without infinity, and the first torch that was seen to make its largest number of what
is too large; 2.11 was seen to make NaN."""


@dataclass(frozen=True)
class Lowered:
    """What of a chain one kernel computes, and what is left to the library."""

    epilogue: Epilogue
    """Its last value is what the kernel stores, and all that ``rest`` needs of it."""
    dtype: str
    """Name of the dtype of that value."""
    a: int
    """Which operand of the chain is A."""
    b: int
    """Which is B."""
    operands: tuple[int, ...]
    """Which operand each input of the epilogue is."""
    rest: tuple[Call, ...]
    """The calls that follow, as they were given."""
    reason: str
    """Why the epilogue ends there: a sentence, empty where nothing is left."""
    fast: bool = False
    """Whether the GEMM allows sums of fp8 products of less than float32."""
    others: tuple[int, ...] = ()
    """Which operands are the B of further GEMMs of the same A."""


def lower(
    calls: Sequence[Call],
    operands: Sequence[Input | None],
    results: Sequence[Ref],
    *,
    dtype: str,
    columns: int | None = None,
    most_products: int = 1,
) -> Lowered:
    """Lower as many ``calls`` as one kernel can compute; the first has to be a GEMM, and others of
    the same A may follow, as many as ``most_products`` says.

    A ``Ref`` to an "input" is an index into ``operands``; an operand is None where no epilogue can
    read it. ``results`` are the values that the chain gives, ``dtype`` that of A and B, ``columns``
    the n of C, where it is known. Raises ``CannotLower`` where not even the GEMM can be lowered.
    """
    if dtype not in FLOATS:
        raise CannotLower(f"No GEMM is generated for operands of {dtype}.")
    function = Function(operands, dtype, most_products)
    reason = ""
    for call in calls:
        try:
            if call.op in GEMMS and 0 < function.products < most_products:
                _check_rows(calls[0], call)
            if call.op == RESHAPE:
                function.values.append(_reshaped(call, function, columns))
            else:
                _check_overflow(call)
                function.add(call)
        except CannotLower as error:
            reason = f"{call.op} ends the epilogue: {error}."
            if not function.values:
                raise CannotLower(reason) from None
            break
    end = _last_alone(calls, results, function)
    if end < len(function.values) and not reason:
        reason = f"{calls[end].op} ends the epilogue: one floating value alone can be stored."
    pairs = [gemm_operands(call) for call in calls[:end] if call.op in GEMMS]
    (a, b), *others = pairs
    kept = _with_operands([call for call in calls[:end] if call.op != RESHAPE])
    names = list(dict.fromkeys(value.text for value in function.values[:end]))
    numbers = [names.index(value.text) for value in function.values[:end]]
    if numbers[-1] != len(kept) - 1:
        raise CannotLower("A value that is needed is not the last that is computed.")
    used = tuple(dict.fromkeys(r.index for c in kept for r in refs(c) if r.kind == "input"))
    inputs = [operands[index] for index in used]
    return Lowered(
        Epilogue(
            tuple(item for item in inputs if item is not None),
            tuple(_renumbered(call, used, numbers) for call in kept),
        ),
        function.values[end - 1].dtype,
        a,
        b,
        used,
        tuple(calls[end:]),
        reason,
        bind(calls[0]).get("use_fast_accum", False),
        tuple(b for _, b in others),
    )


def _check_rows(first: Call, other: Call) -> None:
    if gemm_operands(first)[0] != gemm_operands(other)[0]:
        raise CannotLower("it multiplies other rows")


def _check_overflow(call: Call) -> None:
    """Raise ``CannotLower`` for a cast whose overflow torch gives another value than kernels."""
    if call.op not in CASTS or bind(call).get("dtype") != Dtype(SATURATED):
        return
    import torch

    if torch.__version__ < SATURATES_FROM:
        raise CannotLower(
            f"torch {torch.__version__} may make NaN of what is too large for {SATURATED}, where"
            " devices store the largest number"
        )


def _with_operands(calls: Sequence[Call]) -> list[Call]:
    """The calls with A and every B in their places: a tensor may be an operand and an input too."""
    found, products = [], 0
    for call in calls:
        if call.op in GEMMS:
            products += 1
            call = _with_operands_of(call, products)
        found.append(call)
    return found


def _with_operands_of(gemm: Call, b: int) -> Call:
    places = {GEMMS[gemm.op].a: Ref("gemm", 0), GEMMS[gemm.op].b: Ref("gemm", b)}
    names = zip(parameters(gemm.op), gemm.arguments, strict=False)
    args = tuple(places.get(name, arg) for name, arg in names)
    return Call(gemm.op, args, tuple((name, places.get(name, v)) for name, v in gemm.named))


def _renumbered(call: Call, used: Sequence[int], numbers: Sequence[int]) -> Call:
    def place(arg: Any) -> Any:
        match arg:
            case Ref("input", index):
                return Ref("input", used.index(index))
            case Ref("value", index):
                return Ref("value", numbers[index])
        return arg

    kwargs = tuple((name, place(arg)) for name, arg in call.named)
    return Call(call.op, tuple(place(arg) for arg in call.arguments), kwargs)


def _reshaped(call: Call, function: Function, columns: int | None) -> Value:
    """The same value: nothing but a reshape of C to its own shape can be left out."""
    source, shape = call.arguments
    if source.kind != "value" or shape != (-1, columns):
        raise CannotLower("a reshape to other columns is not lowered")
    return function.values[source.index]


def gemm_operands(call: Call) -> tuple[int, int]:
    """Which operands of a chain are A and B of its first call; raises ``CannotLower``."""
    if call.op not in GEMMS:
        raise CannotLower(f"{call.op} is no GEMM that is generated.")
    given, gemm = bind(call), GEMMS[call.op]
    a, b = given[gemm.a], given[gemm.b]
    if a.kind != "input" or b.kind != "input":
        raise CannotLower(f"{call.op} multiplies what the chain itself computes.")
    return a.index, b.index


def _last_alone(calls: Sequence[Call], results: Sequence[Ref], function: Function) -> int:
    """How many calls a kernel takes that stores the value of the last of them alone."""
    for end in range(len(function.values), 0, -1):
        later = [ref for call in calls[end:] for ref in refs(call)] + list(results)
        needed = {ref.index for ref in later if ref.kind == "value" and ref.index < end}
        if needed == {end - 1} and function.values[end - 1].dtype in FLOATS:
            return end
    raise CannotLower("More than one value of the GEMM is needed.")


def refs(call: Call) -> Iterator[Ref]:
    """Every tensor that a call takes, in order."""
    for item in (*call.arguments, *(value for _, value in call.named)):
        if isinstance(item, Ref):
            yield item
