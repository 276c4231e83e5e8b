"""The op in place of linear layers: values, dispatch, and bad input."""

from __future__ import annotations

import pytest
import torch

from overlapc.errors import KernelError
from overlapc.planning.linear.regions import FORCED, LIBRARY, Regions
from overlapc.planning.linear.tiles import FLAT, GEMV
from overlapc.runtime.linear import op as linear
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.ops import by_library_of, calls_of
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step

X, W, B = (Ref("operand", index) for index in range(3))
MM = Program((ROWS, WHOLE), (Step("aten.mm.default", (X, W)),), None, (Ref("value", 0),))
ADDMM = Program(
    (ROWS, WHOLE, WHOLE), (Step("aten.addmm.default", (B, X, W)),), None, (Ref("value", 0),)
)
N, K = 75, 150

pytestmark = pytest.mark.usefixtures("fresh")


def operands(m, program=MM, dtype=torch.float32, layout="col"):
    w = torch.randn(N, K).t() if layout == "col" else torch.randn(K, N)
    found = [torch.randn(m, K), w, torch.randn(N)]
    return [tensor.to(dtype) for tensor in found[: len(program.modes)]]


def exact(program, given):
    x, w, *bias = (tensor.double() for tensor in given)
    return x @ w + (bias[0] if bias else 0)


def tolerance(dtype):
    return {torch.float32: 5e-5, torch.bfloat16: 2e-1}[dtype]


def close(found, wanted):
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("m", [1, 2, 3, 8, 33, 64])
@pytest.mark.parametrize("program", [MM, ADDMM], ids=["mm", "addmm"])
@pytest.mark.parametrize("layout", ["col", "row"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_of_a_processor(m, program, layout, dtype):
    given = operands(m, program, dtype, layout)
    spec = LayerSpec(program, FORCED, f"{m} {layout} {dtype} {len(program.modes)}")
    found = linear.OP(given, spec.text())
    wanted = exact(program, given)
    assert found.is_contiguous()
    assert found.dtype == dtype
    assert (found.double() - wanted).abs().max() < tolerance(dtype)
    assert calls_of(spec.site) == {GEMV if m < 3 else FLAT: 1}


@pytest.mark.parametrize("m", [0, 1, 5, 65, 300])
def test_the_library_computes_bit_for_bit_what_it_does(m):
    given = operands(m, ADDMM)
    spec = LayerSpec(ADDMM, Regions(2, 3, 5), f"library {m}")
    assert torch.equal(linear.OP(given, spec.text()), torch.addmm(given[2], given[0], given[1]))
    assert calls_of(spec.site) == {LIBRARY: 1}


def test_on_a_device_the_library_has_what_follows_it_fused(monkeypatch):
    """On a processor, where nothing follows it if rows vary, steps run as they stand. The mutant
    that never fuses makes another kernel of each step."""
    steps = (*MM.steps, Step("aten.relu.default", (Ref("value", 0),)),
             Step("aten.mul.Tensor", (Ref("value", 1), Ref("value", 0))))  # fmt: skip
    program = Program(MM.modes, steps, None, (Ref("value", 2),))
    given, fused = operands(3), torch.randn(3, N)
    monkeypatch.setattr(
        "overlapc.runtime.linear.op.fusing.function", lambda its, settings: lambda *_: (fused,)
    )
    library = linear._library_of.__wrapped__(program, "")
    x, w = given
    assert torch.equal(library(given), (x @ w).relu() * (x @ w))
    assert library([one.to("meta") for one in given]) is fused


def test_opcheck():
    spec = LayerSpec(ADDMM, FORCED, "checked").text()
    for m in (1, 4):
        torch.library.opcheck(linear.OP, (operands(m, ADDMM), spec))


def test_what_no_kernel_computes_the_library_does_and_says_so(monkeypatch):
    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_75")
    spec = LayerSpec(MM, FORCED, "of an old device")
    given = operands(4)
    assert torch.equal(linear.OP(given, spec.text()), given[0] @ given[1])
    assert calls_of(spec.site) == {LIBRARY: 1}
    (why,) = by_library_of(spec.site)
    assert "sm_75" in why


def test_in_a_capture_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(linear, "_is_capturing", lambda device: True)
    spec = LayerSpec(MM, FORCED, "captured")
    given = operands(4, dtype=torch.bfloat16)
    assert torch.equal(linear.OP(given, spec.text()), given[0] @ given[1])
    assert by_library_of(spec.site) == {linear.NOT_LOADED: 1}


@pytest.mark.parametrize("loaded", ["", "offset", "row stride", "one row"])
def test_what_triton_compiles_anew_was_not_loaded(monkeypatch, loaded):
    """In a capture it would be compiled; of the same kind of rows it runs."""
    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_90")

    def started(given, *_):
        return given[0] @ given[1], lambda given, *_: given[0] @ given[1]

    monkeypatch.setattr(linear, "by_kernel", lambda *_: started)
    x, w, longer = (torch.randn(*s).bfloat16() for s in ((5, 160), (160, N), (4 * 161,)))
    other = {
        "": x[:4],
        "offset": longer[1:641].view(4, 160),
        "row stride": longer.view(4, 161)[:, :160],
        "one row": x[:1],
    }[loaded]
    spec = LayerSpec(MM, Regions(1, 1, 65), f"loaded {loaded}")
    linear.OP([x[:5], w], spec.text())
    monkeypatch.setattr(linear, "_is_capturing", lambda device: True)
    linear.OP([other, w], spec.text())
    assert by_library_of(spec.site) == ({linear.NOT_LOADED: 1} if loaded else {})


def test_a_kernel_that_fails_leaves_its_calls_to_the_library(monkeypatch):
    tried = []

    def fails(*arguments):
        def run(given, *_):
            tried.append(given)
            raise KernelError("out of shared memory", where="here", remedy="none")

        return run

    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(linear, "by_kernel", fails)
    spec = LayerSpec(MM, FORCED, "fails")
    given = operands(4, dtype=torch.bfloat16)
    for _ in range(3):
        assert torch.equal(linear.OP(given, spec.text()), given[0] @ given[1])
    assert calls_of(spec.site) == {LIBRARY: 3}
    assert by_library_of(spec.site) == {"out of shared memory": 3}
    assert len(tried) == 1


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 70])
def test_a_call_outside_of_the_regions_is_the_librarys(rows):
    """Below, inside and above, and counted once. Mutants: either end is off by one, the library's
    call is not counted, the regions are not looked at."""
    spec = LayerSpec(MM, Regions(2, 2, 5), f"outside {rows}")
    layer = linear.Layer(spec, calls_of(spec.site), by_library_of(spec.site))
    given, ours = operands(rows), torch.full((rows, N), 7.0)
    layer._ours = lambda *_: ours
    found = layer.caller()(given, None, 0)
    is_ours = 2 <= rows < 5
    assert (found is ours) == is_ours
    assert is_ours or torch.equal(found, given[0] @ given[1])
    assert calls_of(spec.site) == ({} if is_ours else {LIBRARY: 1})
    assert by_library_of(spec.site) == {}


def test_a_kernel_that_fails_once_it_ran_leaves_its_call_to_the_library(monkeypatch):
    """The mutant that forgets nothing tries what failed again."""
    tried = []

    def fails(given, *_):
        tried.append(given)
        raise KernelError("gone", where="here", remedy="none")

    monkeypatch.setattr("overlapc.runtime.machine.architecture_of", lambda device: "sm_90")
    monkeypatch.setattr(
        linear, "by_kernel", lambda *_: lambda given, *_: (given[0] @ given[1], fails)
    )
    spec = LayerSpec(MM, FORCED, "fails later")
    given = operands(4, dtype=torch.bfloat16)
    for _ in range(3):
        assert torch.equal(linear.run(given, spec.text()), given[0] @ given[1])
    assert calls_of(spec.site) == {FLAT: 2, LIBRARY: 1}
    assert by_library_of(spec.site) == {"gone": 1}
    assert len(tried) == 1


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", LayerSpec(MM, FORCED).text().replace("flat_from", "flat_to"),
     LayerSpec(MM, FORCED).text().replace('"library_from":65', '"library_from":2')],
    ids=str,
)  # fmt: skip
def test_another_text_is_refused(text):
    with pytest.raises(KernelError, match="no specification of a linear layer"):
        linear.OP(operands(1), text)


def test_a_text_is_read_back():
    spec = LayerSpec(ADDMM, Regions(1, 2, 7), "a")
    assert LayerSpec.parse(spec.text()) == spec
    assert spec.key == LayerSpec(ADDMM, Regions(1, 2, 7), "b").key


def test_every_result_of_one_op():
    """In each way what single ops give, contiguous, and counted once."""
    o = [Ref("operand", index) for index in range(5)]
    steps = (Step("aten.mm.default", (o[0], o[1])), Step("aten.addmm.default", (o[2], o[0], o[3])),
             Step("aten.mm.default", (o[0], o[4])))  # fmt: skip
    modes = (ROWS, *[WHOLE] * 4)
    program = Program(modes, steps, None, (Ref("value", 0), Ref("value", 1), Ref("value", 2)))
    spec = LayerSpec(program, FORCED, "several")
    w, v, u = torch.randn(K, N), torch.randn(7, K).t(), torch.randn(K, N)
    for m, way in ((1, GEMV), (5, FLAT), (70, LIBRARY), (0, LIBRARY)):
        x, b = torch.randn(m, K), torch.randn(7)
        found = linear.SEVERAL([x, w, b, v, u], spec.text())
        for one, wanted in zip(found, (x @ w, x @ v + b, x @ u), strict=True):
            close(one, wanted)
            assert one.is_contiguous()
        assert calls_of(spec.site).pop(way) >= 1
    torch.library.opcheck(linear.SEVERAL, ([torch.randn(3, K), w, b, v, u], spec.text()))


# Whole graphs
