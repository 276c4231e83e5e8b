"""``overlapc explain``: what it reports of a user's callable, and mistakes in that."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch.distributed.distributed_c10d as c10d

from overlapc.cli import main
from overlapc.cli.callables import model_and_inputs
from overlapc.planning.search import plan, plan_gemm
from overlapc.planning.target import Target
from overlapc.reporting.report import Report
from tests.cli.commands import error_of
from tests.reporting.examples import make_site


def test_explain_plans_for_ranks_and_a_machine_that_are_not_here(run, tmp_path):
    arguments = ("--world-size", "8", "--target", "h100-nvlink", "--save", "saved")
    done = run("explain", "model:build", *arguments)
    assert done.returncode == 0, done.stderr
    report = Report.load(tmp_path / "saved")
    assert done.stdout == str(report)
    (site,) = (site for site in report.sites if site.graph == "forward")
    assert (site.kind, site.decision) == ("gemm_all_reduce", "rewritten")
    assert site.plan is not None
    asked = plan_gemm(m=8192, n=8192, k=3584, world_size=8, dtype="bfloat16", target="h100-nvlink")
    assert site.plan.problem.resolved() == asked.problem.resolved()
    # Compiled graphs take no generated kernel that was not tried here, and say what it might gain.
    expected = plan(asked.problem, Target.load("h100-nvlink"), untried_kernels=False)
    assert replace(site.plan, problem=expected.problem) == expected
    assert asked.schedule == "signaled" != expected.schedule
    assert "calibrate --chains tries it" in site.reason
    assert "model.py:" in site.where
    traces = list((tmp_path / "saved" / "timelines").iterdir())
    assert json.loads(traces[0].read_text())["otherData"]["target"] == "h100-nvlink"


@pytest.mark.long
def test_explain_reports_an_unknown_target_in_one_message(run):
    done = run("explain", "model:build", "--world-size", "8", "--target", "h100")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error: There is no target named 'h100'." in done.stderr


def test_explain_of_a_model_without_collectives(capsys, module):
    assert main(["explain", f"{module}:plain"]) == 0
    assert capsys.readouterr().out.startswith("No sites:")


def test_explain_passes_inputs_keywords_and_target(capsys, module, monkeypatch):
    def explain(model, options, *, dynamic):
        asked.append((model, options, dynamic))
        return lambda *args, **kwargs: Report([make_site(where=f"{args} {kwargs}")])

    asked = []
    monkeypatch.setattr("overlapc.explaining.explain", explain)
    assert main(["explain", f"{module}:with_keywords", "--target", "mi300x"]) == 0
    assert "(1, 2) {'c': 3}" in " ".join(capsys.readouterr().out.split())
    more = ["--dynamic", "--option", "overlap=chunked", "--option", "verify=true"]
    assert main(["explain", f"{module}:with_keywords", *more]) == 0
    options = {"overlap": "chunked", "verify": True}
    assert asked == [(sum, {"target": "mi300x"}, None), (sum, options, True)]


@pytest.mark.parametrize(("name", "given"), [("calls", (0, 2)), ("positional_calls", (2, 0))])
def test_explain_takes_the_first_of_several_calls(module, name, given):
    """Mutant: a list of them is the inputs of one."""
    model, args, kwargs = model_and_inputs(f"{module}:{name}")
    assert (len(args), len(kwargs)) == given
    assert model(*args, **kwargs).tolist() == [3.0, 3.0]


def test_a_dict_in_a_tuple_is_an_input(module):
    assert model_and_inputs(f"{module}:a_dict_that_is_an_input")[1] == ({"x": 1}, 3)


def test_a_list_of_tensors_may_be_either_and_is_refused(capsys, module):
    """`calibrate --softmax` calls the model with each. Mutant: here they are one call's inputs."""
    said = error_of(capsys, "explain", f"{module}:tensors")
    assert "A list of 2 may be the inputs of one call, or of as many calls." in said
    assert "a tuple of the inputs of one call" in said


@pytest.mark.parametrize("name", ["reduced", "asks_early"])
def test_a_model_that_needs_a_group_is_told_how_to_get_one(capsys, module, name):
    said = error_of(capsys, "explain", f"{module}:{name}")
    assert "there is no process group" in said
    assert f"{module}:{name}" in said
    assert "give --world-size" in said


def test_a_group_that_cannot_be_made_keeps_torchs_reason(capsys, module, monkeypatch):
    """Mutant: who calls init_process_group already is told to, and no more."""
    monkeypatch.delenv("RANK", raising=False)
    # The failed call has counted a group, after which the world of later tests would not be "0".
    monkeypatch.setattr(c10d, "_group_count", c10d._group_count)
    assert "RANK expected" in error_of(capsys, "explain", f"{module}:makes_one_wrongly")


def test_a_model_is_something_to_call(capsys, module):
    """Mutant: it is not looked at, and torch asserts that it is callable."""
    said = error_of(capsys, "explain", f"{module}:no_model")
    assert "of type int, and no callable" in said


def test_other_errors_of_a_model_stay_its_own(module):
    """Mutant: whatever is raised without a group is taken for the lack of one."""
    with pytest.raises(ValueError, match="the user's own mistake"):
        main(["explain", f"{module}:its_own_mistake"])


@pytest.mark.parametrize("more", [(), ("--inference",)])
def test_explain_is_asked_for_inference(capsys, module, more):
    """A model in eval mode alone is one of training. Mutant: the option changes nothing."""
    assert main(["explain", f"{module}:in_eval", *more]) == 0
    said = capsys.readouterr().out
    assert ("inference" in said, "forward" in said) == (bool(more), not more)


@pytest.mark.parametrize(
    ("option", "what", "remedy"),
    [
        ("overlp=chunked", "There is no option 'overlp'.", "did you mean 'overlap'?"),
        ("overlap=chunkd", "'overlap' cannot be 'chunkd'.", "did you mean 'chunked'?"),
        ("overlap=", "'overlap' cannot be ''.", "choose one of 'auto'"),
        ("overlap=5", "is 5 of type int.", "type str"),
        ("fuel=many", "is 'many' of type str.", "type int"),
        ("fuel=-2", "'fuel' cannot be -2.", "-1 for no limit"),
        ("verify=1", "is 1 of type int.", "type bool"),
        ("agreement_seconds=NaN", "cannot be nan.", "above zero"),
        ("disable=overlap_chains", "of type str.", "list"),
        ('disable=["overlap_chain"]', "no pass 'overlap_chain'", "overlap_chains"),
        ("target=nowhere", "no target named 'nowhere'", "overlapc calibrate"),
    ],
)
def test_explain_says_what_is_wrong_with_an_option(capsys, module, option, what, remedy):
    text = error_of(capsys, "explain", f"{module}:plain", "--dynamic", "--option", option)
    said = dict(line.strip().split(": ", 1) for line in text.splitlines())
    assert what in said["error"]
    assert said["where"]
    assert remedy in said["remedy"]


def test_explain_says_what_is_wrong_with_an_option_of_inductor(capsys, module):
    option = 'inductor={"cpp_wraper": true}'
    text = error_of(capsys, "explain", f"{module}:plain", "--option", option)
    assert "Inductor has no configuration 'cpp_wraper'" in text
    assert "did you mean 'cpp_wrapper'?" in text


@pytest.mark.parametrize("option", ["overlap", "=chunked", ""])
def test_explain_takes_options_with_a_name_and_a_value(capsys, module, option):
    with pytest.raises(SystemExit) as caught:
        main(["explain", f"{module}:plain", "--option", option])
    assert caught.value.code == 2
    assert f"{option!r} is not NAME=VALUE, such as overlap=chunked" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("callable_name", "message"),
    [
        ("{}", "is not MODULE:CALLABLE"),
        ("{}:", "is not MODULE:CALLABLE"),
        ("absent_{}:build", "There is no module"),
        ("{}.deeper:build", "There is no module"),
        ("{}:absent", "has no callable 'absent'"),
        ("{}:number", "has no callable 'number'"),
        ("{}:nothing", "returned NoneType"),
        ("json:dumps", "cannot be called without arguments"),
    ],
)
def test_explain_says_what_is_wrong_with_its_callable(capsys, module, callable_name, message):
    assert message in error_of(capsys, "explain", callable_name.format(module))


def test_a_mistake_in_the_users_module_keeps_its_traceback(module, tmp_path):
    with pytest.raises(KeyError, match="own mistake"):
        main(["explain", f"{module}:broken"])
    (tmp_path / "imports_absent.py").write_text("import absent_dependency")
    with pytest.raises(ModuleNotFoundError, match="absent_dependency"):
        main(["explain", "imports_absent:build"])
