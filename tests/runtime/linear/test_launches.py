"""Launches of linear layers' kernels: again they are given what they would be given anew."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from overlapc.codegen.linear.kernel import build_linear
from overlapc.codegen.relaunching import Launched
from overlapc.planning.linear.regions import FORCED
from overlapc.runtime import machine
from overlapc.runtime.linear import kernels as linear_kernels
from overlapc.runtime.linear import op as linear
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.programs.program import ROWS
from overlapc.tuning.linear import layers_of
from tests.passes.linear_spellings import INNER, READ, WIDE, bf16, rms_norm


def normed_and_biased(x, g, w, b):
    return torch.nn.functional.linear(rms_norm(x, g), w, b)


SPELLED = {
    **READ,
    "biased": (normed_and_biased, (bf16(4, WIDE), bf16(WIDE), bf16(INNER, WIDE), bf16(INNER)), 1),
}
NAMES = [
    "biased",
    *("linear", "conv1d", "mlp", "qkv", "normed_qkv", "normed_gemma", "int8_groups"),
    *("int8_zeros", "int8_zeros_up", "int8_wide_scale", "fp8_turned", "fp8_turned_repeated"),
]


class Kernel:
    """Triton's, but that it remembers what it was given, by whichever way."""

    def __init__(self, names):
        self.arg_names, self.calls, self.looked_up = names, [], 0

    def __getitem__(self, grid):
        def launch(*arguments, **named):
            self.looked_up += 1
            constants = [named[name] for name in self.arg_names[len(arguments) :]]
            self.calls.append((grid, (*arguments, *constants)))
            return {grid: lambda *given: self.calls.append((grid, given))}

        return launch


def said(part):
    """A tensor by its address; those that a call makes have one of their own."""
    if isinstance(part, tuple | list):
        return [said(one) for one in part]
    return part.data_ptr() if isinstance(part, torch.Tensor) else part


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """Every kernel that is built for a pretended device."""
    found = []

    def build(spec):
        kernel = build_linear(spec)
        fake = Kernel(kernel.module.KERNEL.arg_names)
        found.append(fake)
        module = SimpleNamespace(
            KERNEL=fake, CONSTANTS=kernel.module.CONSTANTS, OPTIONS=kernel.module.OPTIONS
        )
        return replace(kernel, module=module)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(linear_kernels, "build_linear", build)
    monkeypatch.setattr(machine, "architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(machine, "multiprocessors", lambda device: 132)
    yield found
    torch._dynamo.reset()


def made(layer, rows):
    """Operands of a layer, poisoned."""
    found = []
    for like, mode in zip(layer.operands, layer.spec.program.modes, strict=True):
        shape = (rows, *like.shape[1:]) if mode == ROWS else like.shape
        stride = like.stride() if mode != ROWS else torch.empty(shape, device="meta").stride()
        found.append(torch.empty_strided(shape, stride, dtype=like.dtype))
    return found


@pytest.mark.parametrize(
    ("name", "has_counters"), [("mlp", False), *((name, True) for name in NAMES)]
)
def test_a_launch_of_other_tensors_is_given_what_a_first_one_is(kernels, name, has_counters):
    """The mutants that give scales for zero points, or another result's, differ."""
    function, inputs, _ = SPELLED[name]
    with torch.no_grad():
        layers = layers_of(function, inputs)
    counters = torch.zeros(400, dtype=torch.int32) if has_counters else None
    for layer in layers:
        spec = LayerSpec(layer.spec.program, FORCED, name).text()
        op = linear.OP if len(layer.spec.program.kept) == 1 else linear.SEVERAL
        first, second = made(layer, 2), made(layer, 2)
        for operands in (first, second):
            op(operands, spec, counters, 8)
        linear._callers.clear()
        op(second, spec, counters, 8)
        again, anew = kernels
        assert (again.looked_up, anew.looked_up) == (1, 1)
        (grid, given), (same, wanted) = again.calls[1], anew.calls[0]
        assert grid == same
        fresh = ("outs", "parts") if has_counters else ("outs", "parts", "arrivals")
        for at, (one, other) in enumerate(zip(given, wanted, strict=True)):
            if again.arg_names[at] not in fresh:
                assert said(one) == said(other), again.arg_names[at]
            else:
                assert (one is None) == (other is None)
        kernels.clear()
        linear._callers.clear()


def test_results_of_a_launch_are_what_the_op_gives(kernels):
    function, inputs, _ = READ["qkv"]
    with torch.no_grad():
        (layer,) = layers_of(function, inputs)
    spec = LayerSpec(layer.spec.program, FORCED, "results").text()
    for _ in range(3):
        found = linear.SEVERAL(made(layer, 3), spec)
        (kernel,) = kernels
        _, given = kernel.calls[-1]
        assert said(found) == said(given[2])
        assert [one.shape[0] for one in found] == [3] * 3


def moved(operand, change):
    """The same values that lie otherwise: an element further in memory, or in longer rows."""
    (down, across), (far, near) = operand.shape, operand.stride()
    further = 8 if change == "stride" else 0
    strides = (far, near + further) if far == 1 else (far + further, near)
    room = torch.empty(1 + (max(strides) + 1) * max(down, across), dtype=operand.dtype)
    first = 1 if change == "address" else 0
    return room.as_strided((down, across), strides, first).copy_(operand)


@pytest.mark.parametrize("place", [0, 1], ids=["rows", "weight"])
@pytest.mark.parametrize("change", ["stride", "address"])
def test_operands_that_lie_otherwise_are_looked_up(kernels, place, change):
    """A launch knows strides, and its kernel what addresses are multiples of. The mutants that
    compare shapes and dtypes alone launch with those of the first call."""
    function, inputs, _ = READ["plain"]
    with torch.no_grad():
        (layer,) = layers_of(function, inputs)
    spec = LayerSpec(layer.spec.program, FORCED, f"moved {change} {place}").text()
    first = [one.zero_() for one in made(layer, 8)]
    other = [moved(one, change) if at == place else one for at, one in enumerate(first)]

    def looked_up(operands):
        linear.OP(operands, spec)
        return sum(kernel.looked_up for kernel in kernels)

    assert [looked_up(one) for one in (first, first, other, other, first)] == [1, 1, 2, 2, 2]


def test_a_gain_that_has_to_be_copied_is_copied_at_every_call(kernels):
    """The mutant that launches again with its place reads it with strides that it has not."""
    function, inputs, _ = READ["normed_mlp"]
    with torch.no_grad():
        (layer,) = layers_of(function, inputs)
    operands = made(layer, 1)
    at = next(i for i, one in enumerate(operands) if one.dim() == 1)
    operands[at] = torch.ones(2 * len(operands[at]), dtype=operands[at].dtype)[::2]
    spec = LayerSpec(layer.spec.program, FORCED, "gain").text()
    for _ in range(2):
        linear.OP(operands, spec)
    (kernel,) = kernels
    assert kernel.looked_up == 2
    assert all(given[4].is_contiguous() for _, given in kernel.calls)


def test_as_many_places_as_tensors():
    launched = Launched(print, (torch.ones(1), (torch.ones(1), 3)), ())
    with pytest.raises(AssertionError, match="more places"):
        launched.again([0, 1, 2])
