"""The text of the Triton function between Q @ K^T and softmax.

Scores are float32, whatever Q and K are: no call rounds but one that casts. That is how torch's
fused kernels add a mask, and no less exact than eager, which rounds every step to the dtype of Q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from overlapc.codegen.epilogue import Call, Epilogue, Input, Ref
from overlapc.codegen.function import Function, line_text
from overlapc.codegen.promotion import FLOATS, CannotLower, Value

PRODUCT = Call("aten.mm.default", (Ref("gemm", 0), Ref("gemm", 1)))
"""The first call of a program: the scaled product."""

PARTS = {"matrix": 5, "column": 4, "vector": 4, "one": 3, "scalar": 1}
"""What a kernel is given for an input of each shape: a pointer, then strides of batch and head
where torch sees dimensions, of rows, of keys."""

SCORES = '''\
@triton.jit
def scores(product, tile, inputs):
    """Scores, of float32, from the scaled product of queries and keys."""
'''


class ScoreFunction(Function):
    """A function of a tile of scores in the making."""

    parts: ClassVar[Mapping[str, int]] = PARTS
    truths: ClassVar[str] = "int1"

    def __init__(
        self,
        header: str,
        inputs: Sequence[Input | None],
        given: Sequence[str],
    ) -> None:
        super().__init__(inputs, "float32")
        self.header = header
        self.values = [Value(name, "float32") for name in given]

    def text(self) -> str:
        """The function, whole, which gives back the last value; raises ``CannotLower``."""
        last = self.values[-1]
        if last.dtype not in FLOATS:
            raise CannotLower(f"scores of {last.dtype} are none")
        body = "".join(map(line_text, self.lines))
        return f"{self.header}{body}    return {last.text}\n"

    def _read(self, shape: str, parts: str) -> str:
        if shape == "scalar":
            return f"operands.one({parts})"
        return f"score_inputs.{shape}({parts}, tile)"


def scores_text(program: Epilogue) -> str:
    """``scores(product, tile, inputs)``; raises ``CannotLower``.

    ``tile`` is as in ``templates/score_inputs.py``; ``inputs`` is flat, ``PARTS`` of each.
    """
    function = ScoreFunction(SCORES, program.inputs, ["product"])
    for call in after_product(program):
        function.add(call)
    return function.text()


def after_product(program: Epilogue) -> tuple[Call, ...]:
    """The calls of a program but its first; ``CannotLower`` where that is no product."""
    first, *calls = program.calls
    if first != PRODUCT:
        raise CannotLower(f"a program of scores begins with {PRODUCT.op} and not {first.op}")
    return tuple(calls)
