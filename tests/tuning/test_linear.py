"""Calibration of linear layers: which problems, which rows, what is stored, what is then used."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import overlapc
from overlapc import cli
from overlapc.cli import callables
from overlapc.errors import ProblemError
from overlapc.planning.linear.prediction import predict
from overlapc.planning.linear.regions import (
    LIBRARY,
    MEASURED_ROWS,
    OURS,
    Gain,
    LinearTrial,
    Regions,
    entry_of,
)
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.linear.tiles import FLAT, GEMV
from overlapc.planning.target import Target
from overlapc.reporting.linears import describe_entry
from overlapc.runtime.linear.spec import LayerSpec
from overlapc.runtime.linear.trials import LinearTrials, products_of
from overlapc.runtime.machine import this_machine
from overlapc.runtime.measuring.clocks import on_device
from overlapc.runtime.ops import calls_of
from overlapc.runtime.programs.program import ROWS, WHOLE, Program, Ref, Step
from overlapc.tuning.linear import calibrate_linears, layers_of
from tests.passes.linear_spellings import READ

pytestmark = pytest.mark.usefixtures("private")


def model_and_inputs():
    layers = (nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24), nn.Linear(24, 40))
    return nn.Sequential(*layers), (torch.randn(4, 24),)


def test_each_problem_is_measured_once_at_every_row_count():
    asked = []

    def measure(layer, rows, seconds, ways):
        asked.append((layer.problem.n, rows, ways))
        assert seconds == pytest.approx(24 / (2 * len(MEASURED_ROWS)))
        return LinearTrial(rows, 1e-5, (Gain(FLAT, 1.5, 1.5, 1.5),))

    layers = layers_of(*model_and_inputs())
    table = calibrate_linears(layers, seconds=24, measure=measure)
    both = {rows: OURS if rows < 3 else (FLAT,) for rows in MEASURED_ROWS}
    assert asked == [(n, rows, ways) for n in (40, 24) for rows, ways in both.items()]
    assert [entry.regions for entry in table.entries] == [Regions(1, 1, 65)] * 2
    machine = this_machine("cpu")
    assert LinearTable.load(LinearTable.path(machine), machine) == table
    # A compilation uses it from now on.
    model, inputs = model_and_inputs()
    report = overlapc.explain(model)(*inputs)
    assert [(site.decision, site.code) for site in report.sites] == [("rewritten", "measured")] * 3


def test_models_that_a_table_changes_compute_the_same():
    """At row counts of every region, without compiling again.

    The op may cost what is not sure: a mutant that goes by the median leaves these as they were.
    """

    def measure(layer, rows, seconds, ways):
        gains = [Gain(FLAT, 1.5, 1.5, 1.5)] * (rows < 9) + [Gain(GEMV, 2.0, 2.0, 2.0)] * (rows < 3)
        return LinearTrial(rows, 1e-5, tuple(gains), by_op=Gain(LIBRARY, 0.9, 0.95, 1.0))

    calibrate_linears(layers_of(*model_and_inputs()), measure=measure)
    model, _ = model_and_inputs()
    run = torch.compile(model, backend="overlapc", dynamic=True)
    for rows in (4, 2, 8, 9, 64, 65):
        x = torch.randn(rows, 24)
        with torch.compiler.set_stance("default" if rows == 4 else "fail_on_recompile"):
            torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-5)
    sites = [site for site in overlapc.report().sites if site.code == "measured"]
    assert [site.calls for site in sites[-3:]] == [{FLAT: 2, GEMV: 1, LIBRARY: 3}] * 3


def test_no_win_leaves_the_library():
    def measure(layer, rows, seconds, ways):
        return LinearTrial(rows, 1e-5, (Gain(FLAT, 0.9, 1.1, 1.3), Gain(GEMV, 0.5, 0.5, 0.5)))

    table = calibrate_linears(layers_of(*model_and_inputs()), measure=measure)
    assert all(entry.regions.is_empty for entry in table.entries)
    model, inputs = model_and_inputs()
    report = overlapc.explain(model)(*inputs)
    assert {(site.decision, site.code) for site in report.sites} == {("kept", "library")}


def test_a_trial_compares_all_ways_with_the_library_on_other_weights_each():
    """And with the library as the op calls it. Mutant: the library alone in that place."""
    (layer, *_) = layers_of(*model_and_inputs())
    seconds = {"": 3.0, GEMV: 1.5, FLAT: 2.0, LIBRARY: 4.0}
    seen = []

    def counted():
        """By the op, whose cost on the host is part of what is measured."""
        return {way: calls_of(f"trial of {way}")[way] for way in (GEMV, FLAT, LIBRARY)}

    def clock(run, operands):
        weights = {one[1].data_ptr() for one in operands}
        assert len(weights) == len(operands) > 1
        before = counted()
        run(operands[0])
        name = next((way for way, count in counted().items() if count != before[way]), "")
        seen.append((name, len(operands[0][0])))
        return lambda: seconds[name]

    trials = LinearTrials(layer.spec, layer.operands, torch.device("cpu"), clock)
    found = trials.trial(2, 1.0)
    assert {name for name, _ in seen} == {"", GEMV, FLAT, LIBRARY}
    assert {rows for _, rows in seen} == {2}
    assert found.library_seconds == 3.0
    assert found.by_op == Gain(LIBRARY, 0.75, 0.75, 0.75)
    assert [(g.implementation, g.low, g.median) for g in found.gains] == [
        (GEMV, 2.0, 2.0),
        (FLAT, 1.5, 1.5),
    ]
    assert trials.trial(2, 1.0, (FLAT,)).gain(GEMV) is None


def test_a_trial_compares_what_a_host_launches_with_the_gemms_alone():
    (layer, *_) = layers_of(*model_and_inputs())
    trials = LinearTrials(layer.spec, layer.operands, torch.device("cpu"), lambda *_: lambda: 1.0)
    assert trials.trial(2, 1.0).launched is None
    before = calls_of("trial of flat").total()

    def launching(run, operands):
        result = run(operands[0])
        return lambda: 4.0 if result is None else 2.0  # the products give nothing

    trials.launching = launching
    found = trials.trial(2, 1.0)
    launched = found.launched or ()
    assert [(g.implementation, g.low) for g in launched] == [(GEMV, 2.0), (FLAT, 2.0)]
    assert all(gain.low == 1.0 for gain in found.gains)
    assert calls_of("trial of flat").total() > before


def test_what_cannot_win_is_not_measured_and_what_is_predicted_is_kept():
    """Mutants: bounds that are not asked, a prediction that is not stored or decides."""
    asked = []

    def measure(layer, rows, seconds, ways):
        asked.append((rows, ways, seconds))
        return LinearTrial(rows, 1e-5, tuple(Gain(way, 0.5, 0.5, 0.5) for way in ways))

    h100 = Target.load("h100-nvlink")
    (layer, *_) = layers_of(*model_and_inputs())
    table = calibrate_linears([layer], target=h100, seconds=6, measure=measure)
    # No kernel of float32 has more rows.
    assert asked == [(1, (GEMV,), 3.0), (2, (GEMV,), 3.0)]
    (entry,) = table.entries
    assert entry.predicted == predict(layer.problem, h100)
    assert entry.regions.is_empty
    assert not entry.predicted.regions.is_empty
    lines = describe_entry(entry).splitlines()
    assert "not measured, for h100-nvlink: gemv" in lines[1]
    likely = entry.predicted.trials[1]
    assert "gemv 0.50x [0.50, 0.50]; predicted library" in lines[3]
    assert lines[3].endswith(f"gemv {likely.gains[0].median:.2f}x")


@pytest.mark.parametrize("name", ["linear", "mlp", "qkv", "normed_qkv", "int8_up", "fp8_turned"])
def test_the_gemms_of_a_layer_alone(name):
    """Each by its weight as [k, n], whatever the graph does around it."""
    function, inputs, _ = READ[name]
    for layer in layers_of(function, inputs):
        trials = LinearTrials(
            layer.spec, layer.operands, torch.device("cpu"), lambda *_: lambda: 1.0
        )
        with Counting() as counted:
            products_of(layer.spec.program)(trials._operands(3)[0])
        problem = layer.problem
        columns = [problem.n] * problem.weights + list(problem.more)
        assert counted.shapes == [(3, problem.k, n) for n in columns]


class Counting(TorchDispatchMode):
    """Remembers the sizes of GEMMs."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.aten.mm.default:
            self.shapes.append((*args[0].shape, args[1].shape[1]))
        return op(*args, **(kwargs or {}))


def test_a_device_captures_a_call_once_after_what_fills_its_operands(monkeypatch):
    """A capture for every round costs a run more than all that is timed."""
    log: list[str] = []

    class Stream:
        def wait_stream(self, other):
            log.append("waits")

        def synchronize(self):
            log.append("warm")

    @contextmanager
    def graph(cuda_graph):
        yield
        log.append("captured")

    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda _: 6)
    replayed = SimpleNamespace(replay=lambda: log.append("replayed"))
    fakes = {
        "Stream": Stream, "stream": lambda stream: nullcontext(), "current_stream": Stream,
        "graph": graph, "CUDAGraph": lambda: replayed, "Event": lambda enable_timing: event,
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    seconds = on_device(lambda operands: log.append(f"run {operands[0]}"), [["a"], ["b"]])
    assert log == ["waits", "run a", "warm", "run a", "run b", "captured"]
    log.clear()
    assert [seconds(), seconds()] == [0.003, 0.003]
    assert log == ["replayed"] * 4


@torch._dynamo.config.patch(recompile_limit=1)
def test_the_peer_of_a_whole_layer_is_one_graph(monkeypatch):
    """Fused by Inductor as the graph would be: of several programs in turn, past any limit."""
    compiled = []
    original = torch.compile

    def spied(module, **options):
        compiled.append(options)
        return original(module, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", spied)
    for width in range(8, 11):
        x, w, more = (torch.empty(*s, device="meta") for s in ((1, 6), (6, width), (1, width)))
        steps = (
            Step("aten.mm.default", (Ref("operand", 0), Ref("operand", 1))),
            Step("prims.convert_element_type.default", (Ref("value", 0), torch.float64)),
            Step("aten.add.Tensor", (Ref("value", 1), Ref("operand", 2))),
        )
        program = Program((ROWS, WHOLE, ROWS), steps, None, (Ref("value", 2),))
        trials = LinearTrials(LayerSpec(program, Regions()), [x, w, more], torch.device("cpu"))
        given = trials._operands(3)[0]
        found = trials._peer(given)
        assert found.dtype == torch.float64
        assert torch.equal(found, (given[0] @ given[1]).double() + given[2])
    assert all(options == {"dynamic": True, "fullgraph": True} for options in compiled)


def test_a_model_without_linear_layers_is_said_to_have_none():
    with pytest.raises(ProblemError, match="no linear layer"):
        calibrate_linears(layers_of(torch.sin, (torch.randn(3),)))


def test_the_command_measures_stores_and_prints(monkeypatch, capsys):
    """And says what its lines mean, and what it does not measure. Mutants: not a word of packed
    weights, or of what stands in brackets."""
    monkeypatch.setattr("overlapc.tuning.linear.MEASURED_ROWS", (1, 4))
    monkeypatch.setattr("overlapc.runtime.linear.trials.COLD_BYTES", 1)
    name = f"{__name__}:model_and_inputs"
    monkeypatch.setattr(
        callables, "load", lambda given: model_and_inputs if given == name else None
    )
    assert cli.main(["calibrate", "--linear", name, "--seconds", "0.1"]) == 0
    said = capsys.readouterr().out
    assert str(LinearTable.path(this_machine("cpu"))) in said
    assert "~x40x24 float32" in said
    assert "4 rows: library" in said
    legend, packed = said.splitlines()[-2:]
    assert "[95 % interval]" in legend
    assert packed.startswith("not a candidate: Inductor's C++ templates")


@pytest.mark.parametrize("kind", ["linear", "attention"])
def test_the_command_takes_the_graphs_of_inference(monkeypatch, capsys, kind):
    """Those of training keep values for the backward, and fuse less. Mutant: the mode that is."""
    found: list[bool] = []
    name = {"linear": "tuning.linear.layers_of", "attention": "tuning.attention.shapes_of"}[kind]
    monkeypatch.setattr(
        f"overlapc.{name}", lambda *_, **__: found.append(torch.is_grad_enabled()) or []
    )
    monkeypatch.setattr(callables, "load", lambda given: model_and_inputs)
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            assert cli.main(["calibrate", f"--{kind}", "a:model"]) != 0  # as nothing was found
            assert cli.main(["calibrate", f"--{kind}", "a:model", "--training"]) != 0
            assert torch.is_grad_enabled() == mode
    assert found == [False, True] * 2
    capsys.readouterr()
    assert cli.main(["calibrate", "--training"]) != 0
    assert "and none is" in capsys.readouterr().err


class Block(nn.Module):
    """Of a decoder, without its attention."""

    def __init__(self):
        super().__init__()
        self.norm = nn.RMSNorm(24)
        self.q, self.k, self.v = (nn.Linear(24, n) for n in (24, 8, 8))
        self.gate, self.up, self.down = nn.Linear(24, 40), nn.Linear(24, 40), nn.Linear(40, 24)

    def forward(self, x):
        y = self.norm(x)
        z = nn.functional.silu(self.gate(x)) * self.up(x)
        return self.q(y), self.k(y), self.v(y), x + self.down(z)


@pytest.mark.parametrize("rows", [4, pytest.param(1, marks=pytest.mark.long)])
def test_what_the_command_measured_is_found_by_every_compilation(monkeypatch, rows):
    """Of these rows, of others, and where they vary: each another graph, with the same layers.

    Mutants: it traces with gradients; rows that vary are left out; a joined layer is read alone.
    """
    asked = []

    def measure(layer, rows, seconds, ways):
        asked.append((layer.problem, rows, seconds))
        same = Gain(LIBRARY, 1.0, 1.0, 1.0)
        return LinearTrial(rows, 1e-5, (Gain(FLAT, 1.5, 1.5, 1.5),), by_op=same)

    monkeypatch.setattr("overlapc.passes.dispatch_linears.may_fuse", lambda layer: True)
    monkeypatch.setattr("overlapc.tuning.linear._measure", lambda device: measure)
    model = Block()
    monkeypatch.setattr(callables, "load", lambda _: lambda: (model, (torch.randn(1, rows, 24),)))
    with torch.enable_grad():
        assert cli.main(["calibrate", "--linear", "a:model", "--seconds", "6"]) == 0
    assert len({(problem, rows) for problem, rows, _ in asked}) == len(asked)
    assert sum(seconds for *_, seconds in asked) == pytest.approx(6)
    torch._dynamo.reset()
    shapes = []
    for count, dynamic in ((4, None), (5, None), (6, True)):
        if dynamic:
            torch._dynamo.reset()
        sites = overlapc.explain(model, dynamic=dynamic)(torch.randn(1, count, 24)).sites
        assert {(site.decision, site.code) for site in sites} == {("rewritten", "measured")}
        shapes.append([site.shape for site in sites])
    sizes = [sorted(shape.split(" ")[0] for shape in of_one) for of_one in shapes]
    assert sizes[0] == ["4x24+8+8x24", "4x24x40", "4x2x40x24"]
    assert sizes[1] == ["~5x24+8+8x24", "~5x24x40", "~5x2x40x24"]
    assert len(sizes[2]) == 3


def test_a_description_tells_regions_and_spread():
    trial = LinearTrial(1, 1e-5, (Gain(FLAT, 1.1, 1.2, 1.3),))
    table = calibrate_linears(
        layers_of(*model_and_inputs()), rows=(1,), measure=lambda *_: trial, save=False
    )
    lines = describe_entry(table.entries[0]).splitlines()
    assert lines[0].endswith("flat 1..1 rows, else the library")
    assert "flat 1.20x [1.10, 1.30]" in lines[1]
    lines = describe_entry(
        entry_of(table.entries[0].problem, [replace(trial, launched=())])
    ).splitlines()
    assert lines[0].endswith("launched one by one the library at every row count")
