"""The command line: what each command prints, and one message for each error of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import overlapc
from overlapc.cli import main
from overlapc.errors import TargetError
from overlapc.planning.linear.prediction import predict
from overlapc.planning.linear.regions import LinearProblem, Prediction
from overlapc.planning.records import from_value
from overlapc.planning.schedule import Plan
from overlapc.planning.search import plan, plan_gemm
from overlapc.planning.target import Target, shipped_names
from overlapc.reporting.linears import describe_prediction
from overlapc.reporting.measured import describe_target
from overlapc.reporting.report import Report
from tests.reporting.examples import make_site

README = Path(__file__).parent.parent / "README.md"
COMMAND = Path(sys.executable).with_name("overlapc")

MODEL = """
import torch
import torch.distributed as dist


class RowParallel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(3584, 8192, bias=False, dtype=torch.bfloat16, device="meta")

    def forward(self, x):
        y = self.proj(x)
        dist.all_reduce(y)
        return y


def build():
    assert dist.get_world_size() == 8
    return RowParallel(), (torch.empty(8192, 3584, dtype=torch.bfloat16, device="meta"),)


def with_keywords():
    return "the model", (1, 2), {"c": 3}


def plain():
    return torch.nn.Linear(4, 4), [torch.randn(2, 4)]


def broken():
    raise KeyError("the user's own mistake")


def nothing():
    return None


number = 3
"""

GEMM = ("plan", "--gemm", "8192x8192x3584", "--world-size", "8", "--target", "h100-nvlink")


def error_of(capsys, *arguments: str) -> str:
    """The one message of a command that fails by an error of ours."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    lines = captured.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "  where", "  remedy"]
    return captured.err


@pytest.mark.parametrize("command", ["calibrate --softmax nowhere:build", "targets"])
def test_a_misspelled_variable_is_an_error_of_every_command(capsys, monkeypatch, command):
    """Mutant: commands that leave the environment to what they compile, which may be nothing."""
    monkeypatch.setenv("OVERLAPC_DUMPS", "/tmp")
    assert "did you mean 'OVERLAPC_DUMP'" in error_of(capsys, *command.split())


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
    shown = README.read_text().partition("The first prints:\n\n```\n")[2].partition("```")[0]
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


def test_targets_lists_shipped_and_stored(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "overlapc" / "targets"
    Target.load("cpu").renamed("my-box").save(folder / "my-box.json")
    (folder / "broken.json").write_text("{")
    assert main(["targets"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [words for words in lines if len(words) > 1]
    kinds = {row[0]: row[1] for row in rows}
    assert {name: "shipped" for name in shipped_names()}.items() <= kinds.items()
    assert kinds["my-box"] == "stored"
    (broken,) = (row for row in rows if row[0] == "broken")
    assert "unusable:" in broken


def test_report_prints_a_saved_report(capsys, tmp_path):
    report = Report([make_site(calls={"serial": 2})])
    report.save(tmp_path)
    for path in (tmp_path, tmp_path / "report.json"):
        assert main(["report", str(path)]) == 0
        assert capsys.readouterr().out == str(report)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "cannot be read: No such file or directory."),
        (b"", "cannot be read: Expecting value"),
        (b"\xff\xfe", "cannot be read: it is no text."),
        (b"[1]", "cannot be read: the text is no report."),
        (b'{"overlapc_report": 99}', "it has format 99, and this overlapc reads"),
        (b'{"overlapc_report": 1}', "cannot be read: "),
    ],
)
def test_report_of_what_is_none(capsys, tmp_path, content, what):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_bytes(content)
    for given in (tmp_path, path):
        text = error_of(capsys, "report", str(given))
        assert what in text
        assert f"where: {path}\n" in text


def test_report_of_a_file_of_another_name(capsys, tmp_path):
    """It is taken for a directory, and the message names what was looked for in it."""
    path = tmp_path / "notes.txt"
    path.write_text("{}")
    for given in (path, tmp_path / "absent.json"):
        text = error_of(capsys, "report", str(given))
        assert str(given) in text
        assert "name a directory that Report.save wrote" in text


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


def test_calibrate_takes_a_report_that_can_be_read(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    for path in (tmp_path, tmp_path / "report.json"):
        text = error_of(capsys, "calibrate", "--chains", str(path))
        assert str(tmp_path / "report.json") in text
    with pytest.raises(SystemExit):
        main(["calibrate", "--collectives", "gossip"])
    assert "gossip" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["--chains", "--linear", "--attention"])
def test_calibrate_measures_one_kind_of_thing(capsys, other):
    """Mutant: options that all parse, of which one is obeyed."""
    with pytest.raises(SystemExit) as caught:
        main(["calibrate", other, "a:model", "--softmax", "a:prompts"])
    assert caught.value.code == 2
    assert "argument --softmax: not allowed with" in capsys.readouterr().err


def test_calibrate_alone_says_how_to_start_it(capsys, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert "torchrun" in error_of(capsys, "calibrate")


def test_no_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


@pytest.mark.parametrize("attribute", ["__cause__", "inner_exception"])
def test_an_error_of_ours_inside_another_is_found(capsys, monkeypatch, attribute):
    """Python keeps the cause of an error in one place, torch.compile in the other."""

    def failing(*_):
        with pytest.raises(TargetError) as ours:
            Target.load("nowhere")
        error = RuntimeError("the backend failed")
        setattr(error, attribute, ours.value)
        raise error

    monkeypatch.setattr("overlapc.cli._targets", failing)
    assert "'nowhere'" in error_of(capsys, "targets")


def test_an_error_that_is_not_ours_keeps_its_traceback(monkeypatch):
    def failing(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("overlapc.cli._targets", failing)
    with pytest.raises(ZeroDivisionError):
        main(["targets"])


def test_a_reader_that_has_read_enough_ends_it_quietly():
    """Without it the text of a plan ends in a traceback: `overlapc plan ... | head`."""
    process = subprocess.Popen(
        [str(COMMAND), *GEMM], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert (process.stderr.read(), process.wait(60)) == (b"", 0)
    process.stderr.close()


def test_a_broken_pipe_of_the_program_is_its_own(monkeypatch):
    def fails(*arguments, **named):
        raise BrokenPipeError("of a socket")

    monkeypatch.setattr("overlapc.cli.plan.plan_gemm", fails)
    with pytest.raises(BrokenPipeError, match="of a socket"):
        main([*GEMM])


LINEAR = ("plan", "--target", "h100-nvlink", "--linear")


def test_plan_predicts_a_linear_layer(capsys):
    """Mutants: an option that does not come to the problem, M1 and M2 exchanged."""
    problem = LinearProblem(14336, 4096, "float16", weights=2, held="int8", epilogue="silu mul")
    options = ("--dtype", "float16", "--held", "int8", "--epilogue", "silu mul")
    assert main([*LINEAR, "2x14336x4096", *options]) == 0
    said, its = capsys.readouterr().out, predict(problem, Target.load("h100-nvlink"))
    assert said == describe_prediction(problem, its) + "\n"
    assert "M1 = 1, M2 = 65" in said
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


def test_plan_says_what_it_lacks(capsys):
    assert "--world-size" in error_of(capsys, "plan", "--gemm", "8x8x8", "--target", "cpu")
    said = error_of(capsys, "plan", "--linear", "8x8", "--target", "cpu")
    assert "target cpu" in said
    assert "calibrate --linear" in said
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


@pytest.fixture
def run(tmp_path):
    """Run the installed command beside a module ``model`` and return what it did."""
    (tmp_path / "model.py").write_text(MODEL)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def call(*arguments: str, command: str = str(COMMAND)) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [command, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=110,
        )

    return call


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


@pytest.mark.long
def test_calibrate_stores_a_target_that_plans(run, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")
    options = ("calibrate", "--seconds", "1", "--collectives", "all_reduce")
    done = run(*launch, str(COMMAND), *options, command=sys.executable)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "cache" / "overlapc" / "targets").iterdir()
    assert done.stdout.split()[0] == path.stem
    assert done.stdout.count(str(path)) == 1, "one rank tells"
    assert "the same on all 2 ranks" in done.stdout
    assert describe_target(Target.load(path)) in done.stdout
    plan = plan_gemm(m=512, n=256, k=256, world_size=2, dtype="float32", target=path)
    assert plan.target == path.stem

    Report([make_site(plan=plan, id="f.0")]).save(tmp_path / "report")
    options = ("calibrate", "--chains", "report", "--seconds", "1")
    done = run(*launch, str(COMMAND), *options, command=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "gemm_all_reduce 512x256x256 float32 over 2: " in done.stdout
    (tuned,) = Target.load(path).tuned
    assert tuned.problem == plan.problem.resolved()
    assert plan_gemm(m=512, n=256, k=256, world_size=2, dtype="float32", target=path).code == (
        "measured_best"
    )


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The same module under a name that no other test has imported."""
    name = f"model_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


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
    assert asked == [("the model", {"target": "mi300x"}, None), ("the model", options, True)]


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


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"overlapc {overlapc.__version__}\n"


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
