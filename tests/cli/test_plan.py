"""``overlapc plan``: what it prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overlapc.cli import main
from overlapc.planning.linear.prediction import predict
from overlapc.planning.linear.regions import LinearProblem, Prediction
from overlapc.planning.records import from_value
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan_gemm
from overlapc.planning.target import Target
from overlapc.reporting.linears import describe_prediction
from tests.cli.commands import GEMM, error_of

README = Path(__file__).parents[2] / "README.md"


def test_plan_prints_what_the_planner_says(capsys):
    assert main([*GEMM, "--collective", "all_reduce"]) == 0
    expected = plan_gemm(
        m=8192, n=8192, k=3584, world_size=8, dtype="bfloat16", target="h100-nvlink"
    )
    text = capsys.readouterr().out
    assert expected.reason in text
    assert "communication |" in text


def test_the_readme_shows_what_plan_prints(capsys):
    """Mutant: one digit of the README's plan."""
    shown = README.read_text().partition("The second prints:\n\n```\n")[2].partition("```")[0]
    assert main([*GEMM, "--collective", "all_reduce"]) == 0
    assert shown == capsys.readouterr().out


def test_plan_as_json_reads_back(capsys):
    assert main([*GEMM, "--json", "--dtype", "float16", "--schedule", "serial"]) == 0
    plan = Plan.from_json(capsys.readouterr().out)
    assert (plan.problem.dtype, plan.schedule, plan.problem.m) == ("float16", "serial", 8192)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--gemm", "8192x8192"), "MxNxK"),
        (("--gemm", "8192x8192x-3"), "MxNxK"),
        (("--world-size", "0"), "no number of ranks"),
        (("--dtype", "int4"), "invalid choice"),
        (("--collective", "broadcast"), "invalid choice"),
    ],
)
def test_plan_refuses_what_it_cannot_read(capsys, change, message):
    with pytest.raises(SystemExit) as caught:
        main([*GEMM, *change])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_plan_names_the_targets_when_it_does_not_know_one(capsys):
    text = error_of(capsys, *GEMM[:-1], "h100")
    assert "'h100'" in text
    assert "h100-nvlink" in text


def test_plan_takes_every_collective_in_its_orders(capsys):
    for collective, order, kind in (
        ("reduce_scatter", "gemm_first", "gemm_reduce_scatter"),
        ("all_gather", "collective_first", "all_gather_gemm"),
        ("all_to_all", "collective_first", "all_to_all_gemm"),
    ):
        assert main([*GEMM, "--collective", collective, "--order", order, "--json"]) == 0
        assert Plan.from_json(capsys.readouterr().out).problem.kind == kind
    text = error_of(capsys, *GEMM, "--collective", "all_gather", "--order", "gemm_first")
    assert "is not collective_first" in text


LINEAR = ("plan", "--target", "h100-nvlink", "--linear")


def test_plan_predicts_a_linear_layer(capsys):
    """Mutants: an option that does not come to the problem, M1 and M2 exchanged."""
    problem = LinearProblem(14336, 4096, "float16", weights=2, held="int8", epilogue="silu mul")
    options = ("--dtype", "float16", "--held", "int8", "--epilogue", "silu mul")
    assert main([*LINEAR, "2x14336x4096", *options]) == 0
    said, its = capsys.readouterr().out, predict(problem, Target.load("h100-nvlink"))
    assert said == describe_prediction(problem, its) + "\n"
    assert "M1 = 1, M2 = 65" in said
    legend = said.splitlines()[-1]
    assert all(word in legend for word in ("~ is", "[at worst, at best]", "Below M1", "from M2 on"))
    assert "not measured" in said
    assert main([*LINEAR, "4096+1024+1024x4096", "--held", "bfloat16", "--json"]) == 0
    together = LinearProblem(4096, 4096, "bfloat16", more=(1024, 1024))
    read = from_value(Prediction, json.loads(capsys.readouterr().out))
    assert read == predict(together, Target.load("h100-nvlink"))


@pytest.mark.parametrize("sizes", ["4096", "1x2x3x4", "0x8", "4+x8", "-1x4"])
def test_plan_refuses_sizes_of_a_layer_that_it_cannot_read(capsys, sizes):
    with pytest.raises(SystemExit) as caught:
        main([*LINEAR, sizes])
    assert caught.value.code == 2
    assert "NxK" in capsys.readouterr().err


@pytest.mark.parametrize("ops", ["nonsense", "silu nonsense mul"])
def test_plan_refuses_ops_that_no_kernel_computes(capsys, ops):
    """Mutant: any name is taken."""
    with pytest.raises(SystemExit) as caught:
        main([*LINEAR, "8x8", "--epilogue", ops])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "no kernel computes 'nonsense' after a GEMM" in said
    assert "silu, sin, softplus" in said


def test_plan_says_what_it_lacks(capsys):
    assert "--world-size" in error_of(capsys, "plan", "--gemm", "8x8x8", "--target", "cpu")
    said = error_of(capsys, "plan", "--linear", "8x8", "--target", "cpu")
    assert "for GPUs, and this target is of none" in said
    assert "target cpu" in said
    assert "calibrate --linear" in said
    assert "dtypes" not in said, "the target lists float32, and that would be of no use"
    assert "dtypes that overlapc targets lists" in error_of(
        capsys, *LINEAR, "8x8", "--dtype", "float64"
    )
    both = ("plan", "--linear", "8x8", "--gemm", "8x8x8", "--target", "cpu")
    with pytest.raises(SystemExit):
        main(both)


OF_GEMMS = {
    "--collective": "all_reduce",
    "--order": "gemm_first",
    "--world-size": "8",
    "--schedule": "auto",
}
OF_LAYERS = {"--epilogue": "silu", "--held": "int8"}


@pytest.mark.parametrize(("option", "value"), [*OF_GEMMS.items(), *OF_LAYERS.items()])
def test_plan_refuses_what_would_change_nothing(capsys, option, value):
    """Also where it says what is so anyhow. Mutant: an option that is in no list."""
    planned = (*LINEAR, "8x8") if option in OF_GEMMS else GEMM
    said = error_of(capsys, *planned, option, value)
    assert f"{option} would change nothing here." in said
    assert f"or plan --{'gemm' if option in OF_GEMMS else 'linear'}" in said
