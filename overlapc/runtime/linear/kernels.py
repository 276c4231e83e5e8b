"""Generated kernels of a linear layer as something to run: which one, and what it needs beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from overlapc.codegen.linear.choice import linear_spec_for
from overlapc.codegen.linear.kernel import LinearKernel, build_linear
from overlapc.codegen.linear.spec import MOST_RESULTS, MOST_WEIGHTS, LinearSpec
from overlapc.codegen.lowering import Lowered
from overlapc.codegen.relaunching import Launched
from overlapc.errors import KernelError
from overlapc.runtime.kernel_attempts import is_of_building
from overlapc.runtime.linear.norming import Norm, unnormed
from overlapc.runtime.linear.parts import parts_of
from overlapc.runtime.linear.widening import Loaded, loaded
from overlapc.runtime.programs.program import Program
from overlapc.runtime.signaled.kernels import lowered_program

Tensors = Sequence[torch.Tensor]
Run = Callable[[Tensors, torch.Tensor | None, int], Any]
"""From operands to the result, or to each of several. CTAs that share a k count in a tensor of
zeros, from an element on, and leave zeros; without one it is made."""
Start = Callable[[Tensors, torch.Tensor | None, int], tuple[Any, Run]]
"""Like a run; gives what is quicker for operands that lie just as these do as well."""


@dataclass(frozen=True)
class LoweredLayer:
    """A layer as one launch: of each result what is read, and what follows its product."""

    loaded: tuple[Loaded, ...]
    lowered: tuple[Lowered, ...]
    """Alike but for the operands."""
    norm: Norm | None = None
    """What is done to the rows first."""

    def x(self, operands: Tensors) -> torch.Tensor:
        """The rows."""
        return operands[self.lowered[0].a]

    def weights(self, operands: Tensors) -> list[torch.Tensor]:
        """Every weight as ``[k, n]``, of one result after the other."""
        found = []
        for its, one in zip(self.loaded, self.lowered, strict=True):
            given = its.operands(operands)
            found += [given[index] for index in (one.b, *one.others)]
        return found

    def scales(self, operands: Tensors) -> list[torch.Tensor]:
        """The scales of every weight as ``[groups, n]``; empty where none is scaled.

        KernelError where they are unlike.
        """
        pairs = zip(self.loaded, self.lowered, strict=True)
        found = [its.scales(operands, w) for its, one in pairs for w in (one.b, *one.others)]
        scales = [scale for scale in found if scale is not None]
        if scales and (len(scales) < len(found) or len({len(scale) for scale in scales}) > 1):
            raise _unlike("weights are scaled unlike")
        return scales

    def zeros(self, operands: Tensors) -> list[torch.Tensor]:
        """The zero points of every weight, likewise."""
        pairs = zip(self.loaded, self.lowered, strict=True)
        found = [its.zeros(operands, w) for its, one in pairs for w in (one.b, *one.others)]
        zeros = [zero for zero in found if zero is not None]
        if zeros and len(zeros) < len(found):
            raise _unlike("zero points are subtracted from some weights")
        return zeros

    def gain(self, operands: Tensors) -> torch.Tensor | None:
        """What normed rows are multiplied by."""
        if self.norm is None or self.norm.gain is None:
            return None
        return operands[self.norm.gain].contiguous()

    def inputs(self, operands: Tensors) -> list[list[torch.Tensor]]:
        """What each result's epilogue reads."""
        return [[operands[index] for index in one.operands] for one in self.lowered]

    def order(self, operands: int) -> list[int]:
        """Which operand each tensor of a launch is, in the order in which a kernel takes them; of
        those that are none every C comes first behind the operands, then parts and arrivals."""
        pairs = list(zip(self.loaded, self.lowered, strict=True))
        weights = [
            index for its, one in pairs for w in (one.b, *one.others)
            for index in (w, *its.beside(w))
        ]  # fmt: skip
        outs, more = operands, operands + len(self.lowered)
        inputs = [index for one in self.lowered for index in one.operands]
        gain = [self.norm.gain] if self.norm and self.norm.gain is not None else []
        return [self.lowered[0].a, *weights, *range(outs, more), *inputs, *gain, more, more + 1]


def lowered_layer(program: Program, operands: Tensors) -> LoweredLayer:
    """Return a layer as one kernel's, which widens its weights; ``KernelError`` where it is not.
    Fake operands do."""
    read = [unnormed(part) for part in parts_of(program)]
    its, norms = tuple(loaded(part) for part, _ in read), {norm for _, norm in read}
    lowered = tuple(
        lowered_program(one.program, one.operands(operands), MOST_WEIGHTS) for one in its
    )
    kinds = {(str(one.epilogue), one.dtype, one.a, len(one.others)) for one in lowered}
    if len(kinds) > 1 or len(its) > MOST_RESULTS or (len(its) > 1 and lowered[0].others):
        raise _unlike(f"{len(its)} results are not computed alike, each by one weight")
    (norm, *others) = norms
    if others:
        raise _unlike("its rows are normed unlike")
    found = LoweredLayer(its, lowered, norm)
    has_gain = norm is not None and norm.gain is not None
    if has_gain and found.x(operands).dtype == torch.float16:
        raise _unlike(
            "gains of float16 rows may overflow before the rows are divided by their root"
        )
    found.scales(operands)
    found.zeros(operands)
    return found


def linear_kernel_spec(
    program: Program, operands: Tensors, way: str, rows: int, *, architecture: str, sms: int
) -> tuple[LinearSpec, LoweredLayer]:
    """The kernel that computes a program of so many rows in this way. Fake operands do.

    KernelError where none does.
    """
    its = lowered_layer(program, operands)
    weights, scales = its.weights(operands), its.scales(operands)
    group = len(weights[0]) // len(scales[0]) if scales and len(scales[0]) > 1 else 0
    spec = linear_spec_for(
        way, rows, its.x(operands), weights, its.lowered[0],
        architecture=architecture, sms=sms, scales=scales, group=group,
        zeros=its.zeros(operands),
        eps=its.norm.eps if its.norm else None, gain=its.gain(operands),
        shift=its.norm.shift if its.norm else 0.0,
    )  # fmt: skip
    return spec, its


def by_kernel(spec: LinearSpec, its: LoweredLayer) -> Start:
    """Return how the whole program is run by its kernel; it loads and launches at the first call.

    KernelError where Triton cannot.
    """
    from triton.errors import TritonError

    kernel = build_linear(spec)

    def start(operands: Tensors, counters: torch.Tensor | None, first: int) -> tuple[Any, Run]:
        x, weights = its.x(operands), its.weights(operands)
        space = _Space.of(kernel, [weight.shape[1] for weight in weights[:: spec.weights]])
        outs, parts = space.results(x), space.parts(x)
        arrivals = space.arrivals(x, counters, first)
        gain = its.gain(operands)
        try:
            with torch.cuda.device_of(x):  # Triton launches on the current one
                launched = kernel(
                    x, weights, outs, inputs=its.inputs(operands), scales=its.scales(operands),
                    zeros=its.zeros(operands), gain=gain, parts=parts, arrivals=arrivals,
                )  # fmt: skip
        except (TritonError, RuntimeError) as error:
            if not is_of_building(error):
                raise
            raise KernelError(
                f"Triton cannot run its kernel: {error}.",
                where=str(spec),
                remedy="none is needed: the library computes it",
            ) from error
        result = outs if spec.results > 1 else outs[0]
        place = its.norm.gain if its.norm else None
        is_copied = place is not None and gain is not operands[place]
        if launched is None or is_copied:
            return result, lambda *given: start(*given)[0]
        return result, _again(launched, its, space, len(operands))

    return start


def _again(launched: Launched, its: LoweredLayer, space: _Space, count: int) -> Run:
    """What runs the kernel of a launch on as many operands, which lie as they did then."""
    order = its.order(count)
    launch = launched.again(order if space.elements else order[:-2])
    rows, is_one = order[0], len(space.sizes) == 1

    def run(operands: Tensors, counters: torch.Tensor | None, first: int) -> Any:
        x = operands[rows]
        outs = space.results(x)
        given: list[Any] = [*operands, *outs]
        if space.elements:
            # A tensor from an element on takes a microsecond to make, its address does not.
            has_counters = counters is not None
            at = counters.data_ptr() + 4 * first if has_counters else space.arrivals(x, None, 0)
            given += (space.parts(x), at)
        with torch.cuda.device_of(x):
            launch(given)
        return outs[0] if is_one else outs

    return run


@dataclass(frozen=True)
class _Space:
    """What a launch writes to, made at every call: what a call kept would be of the pool of a CUDA
    graph, and a graph may be replayed on any stream, beside whatever runs there."""

    sizes: tuple[int, ...]
    """Columns of each result."""
    dtype: torch.dtype
    """Of the results."""
    elements: int
    """Of parts of a split k; zero where it is not split."""
    tiles: int

    @classmethod
    def of(cls, kernel: LinearKernel, sizes: Sequence[int]) -> _Space:
        elements = kernel.part_elements(sizes) if kernel.spec.splits > 1 else 0
        dtype = getattr(torch, kernel.spec.out)
        return cls(tuple(sizes), dtype, elements, kernel.tiles(sizes) if elements else 0)

    def results(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x.new_empty((len(x), n), dtype=self.dtype) for n in self.sizes]

    def parts(self, x: torch.Tensor) -> torch.Tensor | None:
        return x.new_empty(self.elements, dtype=torch.float32) if self.elements else None

    def arrivals(
        self, x: torch.Tensor, counters: torch.Tensor | None, first: int
    ) -> torch.Tensor | None:
        if not self.elements:
            return None
        if counters is not None:
            return counters[first : first + self.tiles]
        return x.new_zeros(self.tiles, dtype=torch.int32)


def _unlike(what: str) -> KernelError:
    return KernelError(
        f"No kernel computes it: {what}.",
        where="the choice of a generated kernel",
        remedy="none is needed: the library computes what would be its",
    )
