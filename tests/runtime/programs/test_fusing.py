"""Steps between GEMMs as kernels of Inductor: which are one, and that they give what steps give.

But for the last test Inductor is left out: its graphs are run as they are, call by call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch._dynamo.convert_frame import compile_lock

from overlapc.runtime.programs import compiling, execution, fusing
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Step
from overlapc.runtime.programs.runs import parts_of
from tests.runtime.programs.cases import operand, value

K, N, M = 16, 1024, 48
CAST = "prims.convert_element_type.default"
x, gate, up, down, bias = map(operand, range(5))


def step(op: str, *args: object, **kwargs: object) -> Step:
    return Step(f"aten.{op}", args, tuple(kwargs.items()))


STEPS = (
    step("mm.default", x, gate),
    step("sigmoid.default", value(0)),
    step("mul.Tensor", value(0), value(1)),
    step("mm.default", x, up),
    step("mul.Tensor", value(2), value(3)),
    step("mul.Tensor", value(4), value(4)),
    step("mean.dim", value(5), (1,), True),
    step("add.Tensor", value(6), 1e-5),
    step("rsqrt.default", value(7)),
    step("mul.Tensor", value(4), value(8)),
    step("view.default", value(9), (-1, 8, N // 8)),
    step("mm.default", value(9), down),
    step("add.Tensor", value(11), bias),
    Step(CAST, (value(12), torch.bfloat16)),
)
"""Gate and up, a norm, and a GEMM with work of its own."""
PROGRAM = Program(
    (ROWS, WHOLE, WHOLE, WHOLE, WHOLE), STEPS, value(13), (value(10), value(3), value(12))
)
WRITTEN = (value(13), value(10))
SILU = (step("sigmoid.default", value(0)), step("mul.Tensor", value(0), value(1)))


def operands(rows: int) -> list[torch.Tensor]:
    """The rows are every second of a tensor's, and weights are transposed views."""
    weights = [torch.randn(n, k).t() / k**0.5 for n, k in ((N, K), (N, K), (M, N))]
    return [torch.randn(2 * rows, K)[::2], *weights, torch.randn(M)]


def places(rows: int) -> list[torch.Tensor]:
    """What is written, poisoned: a matrix, and columns of a wider one as they are read."""
    wide = torch.full((rows, 2 * N), torch.nan)
    return [torch.full((rows, M), torch.nan, dtype=torch.bfloat16),
            wide[:, N:].unflatten(1, (8, N // 8))]  # fmt: skip


def check(run: execution.Function, rows: int, program=PROGRAM, given=None) -> None:
    """A run gives and writes what the steps give in float64."""
    given, to = given or operands(rows), places(rows) if program is PROGRAM else []
    found = run(given, to)
    assert not to or (found[0] is to[0] and found[1] is to[1])
    double = Program(program.modes, tuple(map(_exact, program.steps)), None, program.results)
    wanted = execution.function(double)([tensor.double() for tensor in given], ())
    for one, other in zip(found, wanted, strict=True):
        bound = 2e-2 if one.dtype == torch.bfloat16 else 2e-5
        torch.testing.assert_close(one.double(), other, atol=bound, rtol=bound)


def _exact(its: Step) -> Step:
    return Step(CAST, (its.args[0], torch.float64)) if its.op == CAST else its


@pytest.fixture
def compiled(monkeypatch):
    """The graphs that Inductor was given, which run as they are."""
    graphs = []

    def as_is(graph, inputs):
        graphs.append(graph)
        return lambda given: graph(*given)

    monkeypatch.setattr(compiling, "by_inductor", as_is)
    fusing._function.cache_clear()
    yield graphs
    fusing._function.cache_clear()


def test_gemms_run_early_and_what_lies_between_them_together():
    """Mutants: a step as early as it can run (the mul of the gate alone), views counted as work."""
    assert [run.steps for run in parts_of(PROGRAM)] == [
        (0,), (3,), (1, 2, 4, 5, 6, 7, 8, 9), (11,), (10, 12, 13),
    ]  # fmt: skip
    run = parts_of(PROGRAM)[2]
    assert (run.reads, run.gives) == ((value(0), value(3)), (value(9),))
    one = Program((ROWS, WHOLE), (STEPS[0], step("view.default", value(0), (-1, 2, N // 2)),
                  step("relu.default", value(1))), value(2))  # fmt: skip
    assert [run.steps for run in parts_of(one)] == [(0,), (1,), (2,)]
    assert not isinstance(fusing.function(one), fusing.Fusing)


def test_any_rows_of_a_layout_are_one_compilation(compiled):
    """Mutants: what is written left out of the body; reads in another order; rows in the key, or
    no strides."""
    run = fusing.function(PROGRAM, WRITTEN)
    for rows in (2, 1, 7, 64):
        check(run, rows)
    assert len(compiled) == 2
    check(run, 3, given=[operands(3)[0].contiguous(), *operands(3)[1:]])
    assert len(compiled) == 4
    check(fusing.function(PROGRAM), 5, Program(PROGRAM.modes, STEPS, value(13), PROGRAM.kept))


class Watched:
    """What Inductor gives: around a call of a kernel there is work for the first one's sake."""

    def __init__(self, kernel, calls):
        self.calls = calls
        self.current_callable = kernel

    def __call__(self, given):
        self.calls.append("with work around")
        return self.current_callable(given)


def test_after_a_first_run_of_one_shape_nothing_is_left_but_the_kernel(monkeypatch, compiled):
    """Mutants: what runs is found by shapes alone; what was compiled is kept as Inductor gave it;
    it is kept when it has not run; autocast is not asked."""
    watched, walks, ran = [], [], []

    def by_inductor(graph, _):
        return Watched(lambda given: ran.append(1) or graph(*given), watched)

    monkeypatch.setattr(compiling, "by_inductor", by_inductor)
    original = fusing.Fusing.__call__
    monkeypatch.setattr(
        fusing.Fusing, "__call__", lambda *given: walks.append(1) or original(*given)
    )
    run = fusing.of_one_shape(fusing.function(PROGRAM, WRITTEN))
    (rows, *rest), others = operands(7), operands(7)[0].contiguous()
    for given in (rows, rows, rows, others, others, rows):
        check(run, 7, given=[given, *rest])
    assert len(watched) == 2 * len(walks) == 4  # of two layouts, each of two kernels
    program = Program((ROWS, WHOLE), (STEPS[0], *SILU), value(2))
    run, given = fusing.of_one_shape(fusing.function(program)), operands(7)[:2]
    check(run, 7, program, given)
    before = len(ran)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(given, ())[0].dtype == torch.bfloat16
    assert len(ran) == before  # for kernels were made for what GEMMs give without it
    check(run, 7, program, given)
    assert len(ran) > before
    assert fusing.of_one_shape(steps := execution.function(program)) is steps


def test_few_elements_and_no_rows_run_as_steps(compiled):
    program = Program((ROWS, ROWS), (step("mul.Tensor", x, gate), step("exp.default", value(0))),
                      value(1))  # fmt: skip
    run = fusing.function(program)
    for rows in (0, 1, fusing.LEAST_ELEMENTS // 8 - 1):
        check(run, rows, program, [torch.randn(rows, 8), torch.randn(rows, 8)])
    assert not compiled
    check(run, 128, program, [torch.randn(128, 8), torch.randn(128, 8)])
    assert len(compiled) == 1


def test_columns_may_vary_too(compiled):
    """Mutant: strides of what is written taken for those of other columns."""
    steps = (STEPS[0], step("neg.default", value(0)), step("exp.default", value(1)))
    program = Program((ROWS, WHOLE), steps, value(2))
    run = fusing.function(program, (value(2),), (False, True))
    for columns in (512, 65, 1):
        given = [torch.randn(64, K), torch.randn(columns, K).t()]
        to = torch.full((64, columns), torch.nan)
        (found,) = run(given, [to])
        torch.testing.assert_close(found, (-(given[0] @ given[1])).exp(), atol=1e-5, rtol=1e-5)
        assert found is to
    (graph,) = compiled
    *_, place = (node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder")
    assert isinstance(place.stride(0), torch.SymInt)


def test_where_a_guard_of_inductor_fails_steps_run(compiled, monkeypatch):
    """As one on indices of 32 bits may. Mutant: ``holds`` is always true."""
    called = []

    def guarded(graph, inputs):
        assert inputs[0] > 100
        return lambda given: (called.append(given[0]), graph(*given))[1]

    monkeypatch.setattr(compiling, "by_inductor", guarded)
    run = fusing.function(Program(PROGRAM.modes[:3], STEPS[:5], value(4)))
    for rows in (64, 128, 100, 101):
        given = operands(rows)[:3]
        check(run, rows, Program(PROGRAM.modes[:3], STEPS[:5], value(4)), given)
    assert called == [128, 101]


def test_what_inductor_cannot_compile_runs_as_steps_and_says_so(compiled, monkeypatch):
    def fails(*_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiling, "by_inductor", fails)
    monkeypatch.setattr(fusing, "_reasons", {})
    run = fusing.function(PROGRAM, WRITTEN)
    assert fusing.why_in_steps(PROGRAM) == ""
    check(run, 4)
    assert "no compiler" in fusing.why_in_steps(PROGRAM)


def test_nothing_is_compiled_in_a_capture(compiled, monkeypatch):
    monkeypatch.setattr(fusing, "_reasons", {})
    run = fusing.function(PROGRAM, WRITTEN)
    with monkeypatch.context() as patch:
        patch.setattr(fusing, "_is_capturing", lambda device: True)
        check(run, 4)
        assert not compiled
        assert fusing.why_in_steps(PROGRAM) == fusing.CAPTURING
    check(run, 4)
    assert len(compiled) == 2


def test_nothing_is_in_flight_when_a_kernel_runs_first(compiled, monkeypatch):
    """It may be tuned then. Mutants: it is compiled, or tuned, beside what is in flight; every call
    waits."""
    log = []

    def watching(graph, inputs):
        log.append("compiled")
        return lambda given: (log.append("run"), graph(*given))[1]

    monkeypatch.setattr(compiling, "by_inductor", watching)
    monkeypatch.setattr(fusing, "_drain", lambda device: log.append(f"{device} is drained"))
    run = fusing.function(PROGRAM, WRITTEN)
    check(run, 4)
    assert log == ["cpu is drained", "compiled", "compiled", "run", "run"]
    check(run, 4)
    check(run, 9)
    assert log[5:] == ["run"] * 4


def test_a_gpu_is_drained_and_a_processor_has_nothing_in_flight(monkeypatch):
    log = []
    monkeypatch.setattr(torch.cuda, "synchronize", log.append)
    for name in ("cpu", "cuda:1"):
        fusing._drain(torch.device(name))
    assert log == [torch.device("cuda:1")]


def test_gemms_that_autocast_changes_run_beside_steps(compiled):
    """Kernels are compiled for the dtypes that GEMMs give without it. Mutant: they are called."""
    run, given = fusing.function(PROGRAM), operands(4)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = run(given, ()), execution.function(PROGRAM)(given, ())
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert not compiled


def test_layouts_are_compiled_up_to_a_number(compiled, monkeypatch):
    """A transposed operand's strides are its rows: another layout at each number."""
    monkeypatch.setattr(fusing, "_reasons", {})
    program = Program((ROWS, ROWS), (step("mul.Tensor", x, gate), step("exp.default", value(0))),
                      value(1))  # fmt: skip
    run = fusing.function(program)
    for rows in range(128, 128 + fusing.MOST_LAYOUTS + 2):
        check(run, rows, program, [torch.randn(8, rows).t(), torch.randn(rows, 8)])
    assert len(compiled) == fusing.MOST_LAYOUTS
    assert fusing.why_in_steps(program) == fusing.TOO_MANY


def test_inductor_writes_results_where_they_belong(monkeypatch):
    """By its kernels. Mutants: one more layout where rows are one; a written tensor that is taken
    to be contiguous, so that Inductor's own checks raise."""
    monkeypatch.setattr(fusing, "_reasons", {})
    program = Program(PROGRAM.modes[:3], STEPS[:10], value(9), (value(4),))
    run = fusing.function(program, (value(9),))
    wide = torch.full((33, 2 * N), torch.nan)
    for rows in (2, 1, 33):
        given, to = operands(rows)[:3], wide[:rows, N:]
        with torch.inference_mode():
            found = run(given, [to])
        wanted = execution.function(program)([tensor.double() for tensor in given], ())
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one.double(), other, atol=2e-5, rtol=2e-5)
        assert found[0] is to
    assert wide[:, :N].isnan().all()
    assert not fusing.why_in_steps(program)
    assert isinstance(run, fusing.Fusing)
    (layout,) = run.layouts.values()
    assert layout.run is not run.steps


def test_views_of_what_is_written_lie_as_their_place_does(monkeypatch, compiled):
    """Mutant: every value is traced before places are put in: the view has rows without gaps."""
    seen = []

    def watching(graph, inputs):
        def run(given):
            seen.extend(
                (tuple(fake.stride()), real.stride())
                for fake, real in zip(inputs, given, strict=True)
                if isinstance(real, torch.Tensor)
            )
            return graph(*given)

        return run

    monkeypatch.setattr(compiling, "by_inductor", watching)
    part = step("slice.Tensor", value(0), 1, 0, K)
    rest = (step("mm.default", value(1), operand(2)), step("mul.Tensor", value(1), value(2)),
            step("exp.default", value(3)))  # fmt: skip
    modes = (ROWS, WHOLE, WHOLE)
    program = Program(modes, (STEPS[0], part, *rest), None, (value(0), value(4)))
    given = [torch.randn(96, K), torch.randn(K, 64), torch.randn(K, K) / K]
    place = torch.full((96, 128), torch.nan)[:, :64]
    found = fusing.function(program, (value(0),))(given, [place])
    wanted = given[0] @ given[1]
    torch.testing.assert_close(found[0], wanted)
    left = wanted[:, :K]
    torch.testing.assert_close(found[1], (left * (left @ given[2])).exp(), atol=1e-4, rtol=1e-4)
    assert seen
    assert all(fake == real for fake, real in seen)


def test_who_compiles_may_make_a_first_call_beside_another(compiled):
    """Mutant: Dynamo's lock is taken under ours: each of two threads has what the other wants."""
    program = Program((ROWS, WHOLE), (STEPS[0], *SILU), value(2))
    run, given = fusing.function(program), [torch.randn(M, K), torch.randn(K, N)]
    holds, starts = threading.Event(), threading.Event()

    def compiles() -> None:
        with compile_lock:
            holds.set()
            starts.wait(10)
            time.sleep(0.2)
            run(given, ())

    def calls() -> None:
        holds.wait(10)
        starts.set()
        run(given, ())

    threads = [threading.Thread(target=target, daemon=True) for target in (compiles, calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_a_kernel_that_fails_when_it_runs_is_no_error(monkeypatch, compiled):
    """Peers would wait in the collective. Mutant: only compiling may fail."""

    def fails(graph, inputs):
        def run(given):
            raise RuntimeError("no such device")

        return run

    monkeypatch.setattr(compiling, "by_inductor", fails)
    program = Program((ROWS, WHOLE), (STEPS[0], *SILU), value(2))
    check(fusing.function(program), M, program, [torch.randn(M, K), torch.randn(K, N)])
    assert "no such device" in fusing.why_in_steps(program)


def called_by(threads: int, call: Callable[[], None]) -> None:
    """Threads call at once, and all return."""
    together = threading.Barrier(threads)

    def run() -> None:
        together.wait(10)
        call()

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run) for _ in range(threads)]:
            done.result(20)


def test_threads_at_once_have_one_kernel(monkeypatch, compiled):
    """Mutants: no lock around what makes a function; each thread keeps the layout that it made."""

    def slowly(one):
        def run(*args):
            time.sleep(0.05)
            return one(*args)

        return run

    monkeypatch.setattr(fusing, "_reasons", {})
    monkeypatch.setattr(execution, "function", slowly(execution.function))
    monkeypatch.setattr(fusing.Fusing, "_largest", slowly(fusing.Fusing._largest))
    program = Program((ROWS, WHOLE), (STEPS[0], *SILU), value(2))
    given = [torch.randn(M, K), torch.randn(K, N)]
    called_by(3, lambda: check(fusing.function(program), M, program, given))
    assert len(compiled) == 1
    assert not fusing.why_in_steps(program)


def test_a_capture_beside_a_first_run_launches_nothing_new(monkeypatch, compiled):
    """A kernel's first launch loads it. Mutant: it is kept when it is compiled."""
    monkeypatch.setattr(fusing, "_reasons", {})
    program = Program((ROWS, WHOLE), (STEPS[0], *SILU), value(2))
    given, ran, starts, ends = operands(M)[:2], [], threading.Event(), threading.Event()

    def waiting(graph, inputs):
        def run(given):
            ran.append(threading.get_ident())
            starts.set()
            ends.wait(10)
            return graph(*given)

        return run

    monkeypatch.setattr(compiling, "by_inductor", waiting)
    here = threading.get_ident()
    monkeypatch.setattr(fusing, "_is_capturing", lambda _: threading.get_ident() == here)
    first = threading.Thread(target=check, args=(fusing.function(program), M, program, given))
    first.start()
    assert starts.wait(10)
    check(fusing.function(program), M, program, given)
    ends.set()
    first.join(10)
    assert here not in ran
    assert fusing.why_in_steps(program) == fusing.CAPTURING
    check(fusing.function(program), M, program, given)
    assert here in ran


def test_a_capture_is_asked_of_the_operands_device(monkeypatch):
    """Mutant: of the device that is current."""
    current = [torch.device("cuda", 0)]

    @contextmanager
    def device(chosen):
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[-1].index == 1)
    found = [fusing._is_capturing(torch.device(name)) for name in ("cuda:1", "cuda:0", "cpu")]
    assert found == [True, False, False]
