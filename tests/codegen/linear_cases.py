"""Runs of generated linear layers in the interpreter, with everything about them checked.

Runs in a process of the ``interpreted`` fixture, so it imports Triton freely.
"""

from __future__ import annotations

import random
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from overlapc.codegen.builder import TEMPLATES, load
from overlapc.codegen.interpreting import correct_interpreter
from overlapc.codegen.linear.check import LinearCase
from overlapc.codegen.linear.kernel import LinearKernel, build_linear
from overlapc.codegen.linear.spec import LinearSpec
from tests.codegen.gemm_cases import shuffled_programs

correct_interpreter()


def run(
    text: str, *sizes: int, seed: int = 0, mutate: tuple[str, str] | None = None, calls: int = 2
) -> None:
    """Raise AssertionError unless the kernel of a spec computes every C[m, n] over k.

    Its programs run in random order, ``calls`` times: what a call leaves must do for the next.
    """
    spec = LinearSpec.parse(text)
    torch.manual_seed(seed)
    kernel = build_linear(spec)
    if mutate:
        kernel = mutant(kernel, mutate)
    m, n, k = sizes
    case = LinearCase.random(kernel, (m, n, k), "cpu")
    around = [torch.full((c.numel() + 6 * n,), torch.nan).to(c.dtype) for c in case.outs]
    outs = [
        it[3 * n : 3 * n + c.numel()].view_as(c) for it, c in zip(around, case.outs, strict=True)
    ]
    case = replace(case, outs=outs)
    generator, before = random.Random(seed), None
    for _ in range(calls):
        for each in around:
            each.fill_(torch.nan)
        with shuffled_programs(generator):
            case.run()
        written = [int((~each.float().isnan()).sum()) for each in around]
        assert not any(c.float().isnan().any() for c in outs), "an element of C was never written"
        assert written == [c.numel() for c in outs], "a store fell outside C"
        error = case.error()
        assert error <= 1, f"{error} of what roundings explain"
        found = torch.cat([c.flatten() for c in outs])
        assert before is None or torch.equal(before, found), "the order of programs changes C"
        before = found


def mutant(kernel: LinearKernel, change: tuple[str, str]) -> LinearKernel:
    """The kernel on templates, or in a module, in which one text is replaced."""
    old, new = change
    way = kernel.spec.way
    names = (way, "weights", "rows", "layer")
    files = [kernel.path, *(TEMPLATES / f"{name}.py" for name in names)]
    file = next((path for path in files if old in path.read_text()), None)
    assert file is not None, f"there is no single {old!r} to mutate"
    text = file.read_text()
    assert text.count(old) == 1, f"there is no single {old!r} to mutate"
    path = kernel.path.with_name(f"mutant_{abs(hash(change))}.py")
    path.write_text(text.replace(old, new))
    changed = load(path)
    if file == kernel.path:
        return replace(kernel, module=changed)
    products, whole = (load(TEMPLATES / f"{name}.py") for name in (way, "layer"))
    for template in (products, whole):
        known = template.__dict__
        known.update({name: its for name, its in changed.__dict__.items() if name in known})
    module = ModuleType(path.stem)
    module.__dict__.update(load(kernel.path).__dict__, KERNEL=whole.layer)
    module.__dict__["CONSTANTS"] = {
        **module.__dict__["CONSTANTS"],
        "PRODUCTS": products.__dict__[way],
    }
    return replace(kernel, module=module)


def main_of(text: str) -> int:
    """The exit code of a generated module that is run by itself."""
    from overlapc.codegen.linear.check import main

    return main(str(build_linear(LinearSpec.parse(text)).path))


def misfit(text: str, change: dict[str, Any]) -> None:
    """Call a kernel with one thing that does not fit its spec."""
    spec = LinearSpec.parse(text)
    sizes = (change.get("rows", spec.rows), 64, change.get("k", 4 * spec.block_k))
    case = LinearCase.random(build_linear(spec), sizes, "cpu")
    if "transposed" in change:
        case = replace(case, weights=[case.weights[0].contiguous()])
    if "dtype" in change:
        case = replace(case, x=case.x.to(getattr(torch, change["dtype"])))
    if "parts" in change:
        case = replace(case, parts=case.parts[: change["parts"]])
    if "arrivals" in change:
        case = replace(case, arrivals=case.arrivals[: change["arrivals"]])
    if "strided" in change:
        case = replace(case, outs=[torch.empty(64, spec.rows, dtype=case.outs[0].dtype).t()])
    case.run()


def op(rows: int, pair: bool, layout: str) -> tuple[float, dict[str, int], dict[str, int]]:
    """Run the op of a layer as on a GPU; its error over eager's, its calls, and the library's.

    Programs of kernels run in the interpreter; of the device only the names are pretended.
    """
    from overlapc.planning.linear.regions import FORCED
    from overlapc.planning.linear.tiles import most_counters
    from overlapc.runtime import machine
    from overlapc.runtime.linear import op as linear
    from overlapc.runtime.linear.spec import LayerSpec
    from overlapc.runtime.ops import by_library_of, calls_of
    from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

    machine.architecture_of = lambda device: "sm_90"
    machine.multiprocessors = lambda device: 12
    torch.manual_seed(rows)
    n, k = 75, 2100
    x, other = torch.randn(rows, k), torch.randn(rows, n)
    weights = [torch.randn(n, k).t() if layout == "col" else torch.randn(k, n) for _ in range(2)]
    operands = [tensor.bfloat16() for tensor in (x, *weights, other)]
    o, v = (lambda i: Ref("operand", i)), (lambda i: Ref("value", i))
    steps = [
        Step("aten.mm.default", (o(0), o(1))),
        Step("aten.silu.default", (v(0),)),
        Step("aten.mm.default", (o(0), o(2))) if pair else Step("aten.neg.default", (v(1),)),
        Step("aten.mul.Tensor", (v(1), v(2))),
        Step("aten.add.Tensor", (v(3), o(3))),
    ]
    program = Program((ROWS, WHOLE, WHOLE, ROWS), tuple(steps), None, (v(4),))
    spec = LayerSpec(program, FORCED, f"op {rows} {pair} {layout}")
    counters = torch.full((4 + most_counters([n]) + 4,), 7, dtype=torch.int32)
    counters[4:-4] = 0
    before = counters.clone()
    found = linear.OP(operands, spec.text(), counters, 4)
    assert torch.equal(counters, before), "others' counters are touched, or own ones not zero again"
    a, first, second, more = (tensor.double() for tensor in operands)
    gate = torch.nn.functional.silu(a @ first)
    wanted = gate * (a @ second if pair else -gate) + more
    error = ((found.double() - wanted).abs() / (1 + wanted.abs())).max().item() if rows else 0.0
    return error, dict(calls_of(spec.site)), dict(by_library_of(spec.site))


def op_of_int8(rows: int, is_turned: bool, sizes: list[tuple[int, int]]) -> list[float]:
    """Run one op of a weight of int8 on several n and k; the errors over eager's."""
    from overlapc.planning.linear.regions import FORCED
    from overlapc.runtime import machine
    from overlapc.runtime.linear import op as linear
    from overlapc.runtime.linear.spec import LayerSpec
    from overlapc.runtime.linear.widening import widened
    from overlapc.runtime.ops import calls_of
    from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

    machine.architecture_of = lambda device: "sm_90"
    machine.multiprocessors = lambda device: 12
    torch.manual_seed(rows)
    o, v = (lambda i: Ref("operand", i)), (lambda i: Ref("value", i))
    steps = (Step("aten.mm.default", (o(0), o(1))), Step("aten.mul.Tensor", (v(0), o(2))))
    program = Program((ROWS, WHOLE, WHOLE), steps, None, (v(1),))
    calls = [Step("prims.convert_element_type.default", (o(1), torch.bfloat16))]
    calls += [Step("aten.permute.default", (v(0), (1, 0)))] * is_turned
    program = widened(program, {1: calls}, 3)
    spec = LayerSpec(program, FORCED, f"int8 {rows} {is_turned}")
    errors = []
    for n, k in sizes:
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
        x, scale = torch.randn(rows, k).bfloat16(), torch.rand(n).bfloat16()
        held = weight if is_turned else weight.t()
        found = linear.OP([x, held, scale], spec.text())
        wanted = x.double() @ weight.double().t() * scale.double()
        errors.append(((found - wanted).abs() / (1 + wanted.abs())).max().item())
    assert sum(calls_of(spec.site).values()) == len(sizes)
    assert "library" not in calls_of(spec.site)
    return errors


def op_of_scaled(rows: int, spelled: str) -> tuple[float, dict[str, int]]:
    """Run one op of a weight as torchao dequantises it; root mean squares of its error over
    those of the exact result, and its calls."""
    from overlapc.planning.linear.regions import FORCED
    from overlapc.runtime import machine
    from overlapc.runtime.linear import op as linear
    from overlapc.runtime.linear.spec import LayerSpec
    from overlapc.runtime.ops import calls_of
    from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

    machine.architecture_of = lambda device: "sm_90"
    machine.multiprocessors = lambda device: 12
    torch.manual_seed(rows)
    o, v = (lambda i: Ref("operand", i)), (lambda i: Ref("value", i))
    n, k, group = 75, 2080, 32
    cast, narrow, wide = "prims.convert_element_type.default", torch.bfloat16, torch.float32
    x, w = torch.randn(rows, k).bfloat16(), torch.randint(-127, 128, (n, k), dtype=torch.int8)
    scale, zero = (
        torch.rand(n, k // group),
        torch.randint(-127, 128, (n, k // group)).to(torch.int8),
    )
    if spelled == "floating zeros":
        w, zero = w.view(torch.uint8), (zero.view(torch.uint8) + torch.rand(zero.shape)).bfloat16()
    if "zeros" in spelled:
        operands = [x, w, zero.view(n, -1, 1), scale.bfloat16().view(n, -1, 1)]
        calls = [
            Step("aten.reshape.default", (o(1), (n, -1, group))), Step(cast, (v(0), narrow)),
            Step(cast, (o(2), narrow)), Step("aten.sub.Tensor", (v(1), v(2))),
            Step("aten.mul.Tensor", (v(3), o(3))), Step("aten.reshape.default", (v(4), (n, k))),
            Step("aten.permute.default", (v(5), (1, 0))),
        ]  # fmt: skip
        exact = (w.double().view(n, -1, group) - operands[2].double()) * operands[3].double()
    else:
        w = (w / 128).to(torch.float8_e4m3fn)
        operands = [x, w.t(), scale.t().unsqueeze(1)]
        calls = [
            Step(cast, (o(1), wide)), Step("aten.expand.default", (o(2), (k // group, group, n))),
            Step("aten.reshape.default", (v(1), (k, n))), Step("aten.mul.Tensor", (v(0), v(2))),
            Step(cast, (v(3), narrow)),
        ]  # fmt: skip
        exact = w.double().view(n, -1, group) * scale.double().unsqueeze(2)
    calls.append(Step("aten.mm.default", (o(0), v(len(calls) - 1))))
    program = Program(
        (ROWS, *[WHOLE] * (len(operands) - 1)), tuple(calls), None, (v(len(calls) - 1),)
    )
    spec = LayerSpec(program, FORCED, f"{spelled} {rows}")
    found, wanted = linear.OP(operands, spec.text()), x.double() @ exact.reshape(n, k).t()
    error = (found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
    return error.item(), dict(calls_of(spec.site))


def op_of_normed_rows(rows: int, shift: float) -> tuple[float, float, dict[str, int]]:
    """Run one op of an RMSNorm and two layers; its error and eager's, over float64, and its calls.

    Rows are large in some columns, as residual streams are. With a shift the gain is Gemma's.
    """
    from overlapc.planning.linear.regions import FORCED
    from overlapc.runtime import machine
    from overlapc.runtime.linear import op as linear
    from overlapc.runtime.linear.spec import LayerSpec
    from overlapc.runtime.ops import calls_of
    from overlapc.runtime.programs.execution import function
    from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

    machine.architecture_of = lambda device: "sm_90"
    machine.multiprocessors = lambda device: 12
    torch.manual_seed(rows)
    o, v = (lambda i: Ref("operand", i)), (lambda i: Ref("value", i))
    cast = "prims.convert_element_type.default"
    gains = [
        Step(cast, (v(5), torch.bfloat16)),
        Step("aten.mul.Tensor", (o(3), v(6))),
    ]
    if shift:
        gains = [
            Step(cast, (o(3), torch.float32)),
            Step("aten.add.Tensor", (v(6), shift)),
            Step("aten.mul.Tensor", (v(5), v(7))),
            Step(cast, (v(8), torch.bfloat16)),
        ]
    normed = v(5 + len(gains))
    steps = (
        Step(cast, (o(0), torch.float32)),
        Step("aten.pow.Tensor_Scalar", (v(0), 2)),
        Step("aten.mean.dim", (v(1), (-1,), True)),
        Step("aten.add.Tensor", (v(2), 1e-5)),
        Step("aten.rsqrt.default", (v(3),)),
        Step("aten.mul.Tensor", (v(0), v(4))),
        *gains,
        Step("aten.mm.default", (normed, o(1))),
        Step("aten.mm.default", (normed, o(2))),
    )
    results = v(len(steps) - 2), v(len(steps) - 1)
    program = Program((ROWS, WHOLE, WHOLE, WHOLE), steps, None, results)
    k = 2100
    x = (torch.randn(rows, k) * (1 + 500 * (torch.rand(k) > 0.999))).bfloat16()
    weights = [torch.randn(n, k).bfloat16().t() for n in (75, 40)]
    operands = [x, *weights, (1 - shift + 0.2 * torch.randn(k)).bfloat16()]
    spec = LayerSpec(program, FORCED, f"normed {rows}")
    wide, gain = x.double(), operands[3].double() + shift
    exact = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain

    def error(found: list[torch.Tensor]) -> float:
        pairs = zip(found, weights, strict=True)
        errors = [c.double() - exact @ w.double() for c, w in pairs]
        return torch.cat([e.flatten() for e in errors]).square().mean().sqrt().item()

    ours, eagers = linear.SEVERAL(operands, spec.text()), function(program)(operands, ())
    return error(ours), error(list(eagers)), dict(calls_of(spec.site))
