"""Linear layers: what is read, what is left alone and why, and who takes what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._inductor import config as inductor_config

import overlapc
from overlapc.explaining import compilations_of
from overlapc.passes.base import Fuel
from overlapc.planning.linear.prediction import predict
from overlapc.planning.linear.regions import LIBRARY, Gain, LinearEntry, LinearTrial, Regions
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.target import Target
from overlapc.runtime.linear.tables import choices, fingerprint_of_tables
from overlapc.runtime.machine import this_machine
from overlapc.tuning.linear import layers_of
from tests.passes.catalogue import all_reduce
from tests.passes.linear_spellings import (
    INNER,
    READ,
    ROWS,
    WIDE,
    mlp,
    mlp_inputs,
    normed_mlp,
    plain,
    weight,
)
from tests.targets import SLOW_LINK

pytestmark = pytest.mark.usefixtures("inference")


@pytest.mark.parametrize("name", READ)
def test_what_is_read(name, explained, golden):
    function, inputs, wanted = READ[name]
    result = explained(function, *inputs, linear="flat")
    assert all(site.decision == "rewritten" for site in result.report.sites)
    golden(result.text())
    problems = [one.problem for one in layers_of(function, inputs)]
    found = [(one.weights, one.epilogue.rpartition(" ")[2]) for one in problems]
    assert wanted is None or found == wanted
    (_, after) = result.graphs["inference"]
    assert not any(f"= aten.{op}.default(" in after for op in ("mm", "addmm"))


@pytest.mark.parametrize(("name", "layout"), [("einsum", "col"), ("turned", "row")])
def test_how_a_shared_weight_lies(name, layout):
    """In the table and for the kernel. The mutant that takes what is reshaped to be copied lowers
    both for rows."""
    (layer,) = layers_of(*READ[name][:2])
    assert layer.problem.layout == layout
    assert layer.operands[1].stride() == ((1, WIDE) if layout == "col" else (INNER, 1))


def stored(problems_of, regions, **changes):
    """Store a table in which every problem has the same regions."""
    launched = changes.pop("launched", None)
    machine = replace(this_machine("cpu"), **changes)
    entries = (LinearEntry(layer.problem, regions, (), launched) for layer in problems_of)
    LinearTable(machine, tuple(entries)).save(LinearTable.path(machine))


def said(report):
    return [(site.decision, site.code) for site in report.sites]


def changed(explained, *args, **options):
    result = explained(*args, **options)
    return result.report, any(before != after for before, after in result.graphs.values())


def test_without_a_table_nothing_is_said_and_nothing_changes(explained):
    assert changed(explained, mlp, *mlp_inputs()) == (overlapc.explain(mlp)(*mlp_inputs()), False)
    assert explained(mlp, *mlp_inputs()).report.sites == []


@pytest.mark.parametrize(
    ("regions", "code", "rewrites"),
    [
        (Regions(1, 3, 9), "measured", True),
        (Regions(4, 4, 9), "library", False),
        (Regions(), "library", False),
    ],
    ids=str,
)
def test_a_site_where_the_library_wins_stays(explained, regions, code, rewrites):
    stored(layers_of(mlp, mlp_inputs()), regions)
    report, changes = changed(explained, mlp, *mlp_inputs())
    assert said(report) == [("rewritten" if rewrites else "kept", code)] * 3
    assert changes == rewrites
    assert all(site.shape.startswith("3x") for site in report.sites)


def test_what_was_not_measured_stays(explained):
    stored(layers_of(plain, (weight(2, 3), weight(3, 4))), Regions(1, 3, 9))
    report, changes = changed(explained, mlp, *mlp_inputs())
    assert (said(report), changes) == ([("kept", "not_measured")] * 3, False)
    assert "gemv at 1 to 2 rows or flat at 1 to 64 rows may win" in report.sites[0].reason
    torch._dynamo.reset()  # or the row count would be taken to vary
    report, changes = changed(explained, mlp, *mlp_inputs(shape=(1, 65)))
    assert (said(report), changes) == ([("kept", "many_rows")] * 3, False)


def test_what_is_predicted_is_told_and_changes_nothing(explained):
    """Mutants: the prediction decides, its target is not named, the machine's is taken instead."""
    stored([], Regions())
    two = mlp_inputs(shape=(1, 2))
    report, changes = changed(explained, mlp, *two, target="h100-nvlink")
    assert (said(report), changes) == ([("kept", "not_measured")] * 3, False)
    (gate, *_) = layers_of(mlp, two)
    its = predict(gate.problem, Target.load("h100-nvlink"))
    assert its is not None
    assert not its.regions.is_empty
    told = f"Predicted for h100-nvlink, not measured: {its.regions}."
    assert "gemv at 1 to 2 rows may win" in report.sites[0].reason  # no flat of float32 there
    assert report.sites[0].reason.endswith(told)
    torch._dynamo.reset()
    report, _ = changed(explained, mlp, *mlp_inputs(shape=(1, 3)), target="h100-nvlink")
    assert [site.reason for site in report.sites] == [
        "Nothing but the library can run, or may win, at 3 rows."
    ] * 3


def test_a_table_of_another_version_is_said_to_be_of_no_use(explained):
    stored(layers_of(mlp, mlp_inputs()), Regions(1, 3, 9), versions="torch 1.0")
    report, changes = changed(explained, mlp, *mlp_inputs())
    assert (said(report), changes) == ([("kept", "no_table")] * 3, False)
    assert "torch 1.0" in report.sites[0].reason
    assert "overlapc calibrate --linear" in report.sites[0].reason


@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({"linear": "off"}, []),
        ({"disable": ("dispatch_linears",)}, ["disabled"] * 3),
        ({"fuel": 2}, ["forced", "forced", "fuel"]),
    ],
    ids=str,
)
def test_options(explained, options, sites, monkeypatch):
    monkeypatch.setattr(Fuel, "spent", 0)
    stored(layers_of(mlp, mlp_inputs()), Regions(1, 3, 9))
    result = explained(mlp, *mlp_inputs(), **{"linear": "flat", **options})
    assert [site.code for site in result.report.sites] == sites


@pytest.mark.parametrize(
    ("choice", "last"), [("flat", ("refused", "disabled")), ("auto", ("kept", "not_measured"))]
)
def test_a_pass_that_is_left_out_says_so_of_what_it_would_take(explained, choice, last):
    """For a reason that the user did not give, too. The mutants that say nothing, or of layers that
    are the library's anyhow, or rewrite them, are noticed."""
    stored(layers_of(mlp, mlp_inputs())[:1], Regions(1, 1, 65))
    with inductor_config.patch(cpp_wrapper=True):
        report, changes = changed(explained, mlp, *mlp_inputs(), linear=choice)
    assert (said(report), changes) == ([*[("refused", "disabled")] * 2, last], False)
    assert "cpp_wrapper" in report.sites[0].reason


def shard(x, up, down, other):
    """A layer of a tensor-parallel model: the second GEMM feeds a collective."""
    return all_reduce(F.silu(F.linear(x, up)) @ down) @ other


def shard_inputs():
    return weight(256, 64), weight(64, 64), weight(64, 64), weight(64, 8)


def test_what_ranks_compare_follows_what_tables_say(explained):
    """Not what was measured: and nothing without a table, or where it is not used."""
    layers = layers_of(mlp, mlp_inputs())
    assert choices("digest", "auto") == "digest"
    found = []
    for regions in (Regions(1, 3, 9), Regions(1, 3, 8), Regions(1, 3, 9)):
        stored(layers, regions)
        found.append(choices("digest", "auto"))
    assert found[0] == found[2] != found[1]
    assert choices("digest", "off") == "digest"
    wins = found[2]
    # Who has no table, or one of another version, computes all by the library as well.
    for regions, changes in ((Regions(), {}), (Regions(1, 3, 9), {"versions": "torch 1.0"})):
        before = fingerprint_of_tables()
        stored(layers, regions, **changes)
        assert choices("digest", "auto") == "digest"
        assert fingerprint_of_tables() not in ("", before)
    stored(layers, Regions(1, 3, 9))
    assert choices("digest", "auto") == wins
    only = {"disable": ("hide_collectives", "split_all_reduces")}
    (_, after) = explained(shard, *shard_inputs(), target=SLOW_LINK, **only).graphs["inference"]
    assert found[2].removeprefix("digest") in after


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({}, "measured"),
        ({"max_autotune": True}, "autotuned"),
        ({"max_autotune_gemm": True}, "autotuned"),
        ({"freezing": True}, "autotuned"),
    ],
    ids=str,
)
def test_what_was_measured_against_says_nothing_of_what_inductor_tunes(explained, config, code):
    stored(layers_of(mlp, mlp_inputs()), Regions(1, 3, 9))
    with torch._inductor.config.patch(config):
        report, changes = changed(explained, mlp, *mlp_inputs())
    decision = "kept" if config else "rewritten"
    assert (said(report), changes) == ([(decision, code)] * 3, not config)


@pytest.mark.parametrize("in_graphs", [True, False])
def test_what_wins_in_cuda_graphs_alone_is_taken_there_alone(explained, in_graphs):
    stored(layers_of(mlp, mlp_inputs()), Regions(1, 3, 9), launched=Regions(4, 4, 9))
    assert choices("digest", "auto") != "digest"
    with torch._inductor.config.patch({"triton.cudagraphs": in_graphs}):
        report, changes = changed(explained, mlp, *mlp_inputs())
    wanted = ("rewritten", "measured") if in_graphs else ("kept", "library")
    assert (said(report), changes) == ([wanted] * 3, in_graphs)
    assert in_graphs or "in CUDA graphs something did" in report.sites[0].reason


def test_rows_that_vary_take_what_products_alone_read(explained):
    """On a device: gate and up with what makes one of them. A residual stays, for Inductor fuses it
    with what reads it at row counts that the library computes. Mutants: all is taken, nothing is;
    calibration is given another problem than a graph has."""
    x, *weights = mlp_inputs("meta", torch.bfloat16, shape=(4, ROWS))
    found = {}
    for varies in (True, False):
        torch._dynamo.reset()
        given = x.clone()
        if varies:
            torch._dynamo.mark_dynamic(given, 1)
        (compiled,) = compilations_of(mlp, {"linear": "flat"})(given, *weights)
        assert [site.shape[0] == "~" for site in compiled.sites] == [varies] * 2
        found[varies] = [layer.problem for layer in compiled.layers.values()]
        assert [layer.problem for layer in compiled.varying] == found[True]
    last = [(one.weights, one.epilogue.rpartition(" ")[2]) for one in found[True]]
    assert last == [(2, "mul"), (1, "")]
    assert found[True][0] == found[False][0]
    assert found[False][1].epilogue == "add"


def normed_layers(x, g, gate, up, down):
    """Whose gate and up a product alone reads."""
    return F.linear(normed_mlp(x, g, gate, up)[1], down)


@pytest.mark.parametrize("varies", [True, False])
def test_a_norm_before_stays_where_rows_vary(varies, explained):
    """The mutant that takes it norms once for each launch at row counts of the library."""
    _, (x, *weights), _ = READ["normed_mlp"]
    down = weight(WIDE, INNER, device="meta", dtype=torch.bfloat16)
    if varies:
        torch._dynamo.mark_dynamic(x := x.clone(), 0)
    (compiled,) = compilations_of(normed_layers, {"linear": "flat"})(x, *weights, down)
    before = [layer.problem.before for layer in compiled.layers.values()]
    assert before == ["" if varies else "rms_norm", ""]


def test_more_rows_than_were_measured_are_the_librarys(explained):
    """A graph of 200 stays; one of any row count has the op only where, at the most rows that were
    measured, the library cost no more by it. Mutants: a region goes on above its end; what was
    measured there counts only where the region leaves it to the library."""
    w = weight(24, 40)
    (layer,) = layers_of(plain, (weight(2, 24), w))
    machine = this_machine("cpu")
    for by_op, code in ((Gain(LIBRARY, 0.98, 1.0, 1.01), "measured"),
                        (Gain(LIBRARY, 0.9, 0.95, 0.99), "op_slower")):  # fmt: skip
        trials = (LinearTrial(64, 1e-5, (), by_op=by_op),)
        LinearTable(machine, (LinearEntry(layer.problem, Regions(1, 1, 65), trials),)).save(
            LinearTable.path(machine)
        )
        torch._dynamo.reset()
        report, changes = changed(explained, plain, weight(200, 24), w)
        assert (said(report), changes) == ([("kept", "library")], False)
        assert report.sites[0].reason == "Nothing was measured to beat the library at 200 rows."
        torch._dynamo.reset()
        x = weight(2, 24)
        torch._dynamo.mark_dynamic(x, 0)
        assert [code for _, code in said(overlapc.explain(plain)(x, w))] == [code]


COSTS = {
    "op_slower": Gain(LIBRARY, 0.9, 0.95, 0.99),
    "op_not_measured": None,
    "measured": Gain(LIBRARY, 0.9, 0.95, 1.0),
}


def test_rows_vary_only_where_the_library_costs_no_more_by_the_op():
    """On a processor, a graph of two rows has the op whatever that costs at eight.

    Mutants: the table is not asked; it is of a known row count too; what a cache of graphs and
    ranks compare does not follow it.
    """
    w = weight(24, 40)
    (layer,) = layers_of(plain, (weight(2, 24), w))
    machine, known = this_machine("cpu"), set()
    for code, by_op in COSTS.items():
        trials = (LinearTrial(8, 1e-5, (), by_op=by_op),)
        entry = LinearEntry(layer.problem, Regions(1, 1, 3), trials)
        LinearTable(machine, (entry,)).save(LinearTable.path(machine))
        found = {}
        for varies in (False, True):
            torch._dynamo.reset()
            x = torch.randn(2, 24)
            if varies:
                torch._dynamo.mark_dynamic(x, 0)
            found[varies] = said(overlapc.explain(plain)(x, w))
        kept = "rewritten" if code == "measured" else "kept"
        assert found == {False: [("rewritten", "measured")], True: [(kept, code)]}
        known.add((fingerprint_of_tables(), choices("", "auto")))
    assert len(known) == len(COSTS)


FAULTY = {
    "reading": "overlapc.passes.dispatch_linears.read_linear",
    "deciding": "overlapc.passes.dispatch_linears.decide",
    "telling the op": "overlapc.passes.dispatch_linears.LayerSpec",
    "with the op put in": "overlapc.graphs.replacing._shaped",
}


@pytest.mark.parametrize("at", FAULTY)
def test_a_fault_leaves_the_program_as_it_was(explained, monkeypatch, at):
    def fails(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(FAULTY[at], fails)
    report, changes = changed(explained, mlp, *mlp_inputs(), linear="flat")
    assert (said(report), changes) == ([("refused", "internal")] * 3, False)


def test_training_takes_the_forward_and_gradients(explained):
    with torch.enable_grad():
        x, w = weight(ROWS, WIDE).requires_grad_(), weight(INNER, WIDE).requires_grad_()
        result = explained(lambda x, w: F.linear(x, w).sin(), x, w, linear="flat")
    assert sorted(site.graph for site in result.report.sites) == ["backward", "forward"]
