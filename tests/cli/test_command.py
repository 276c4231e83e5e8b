"""The command line: what each command prints, and one message for each error of ours."""

from __future__ import annotations

import subprocess
import sys

import pytest

import overlapc
from overlapc.cli import main
from overlapc.errors import TargetError
from overlapc.planning.search import plan_gemm
from overlapc.planning.target import Target, shipped_names
from overlapc.reporting.measured import describe_target
from overlapc.reporting.report import Report
from tests.cli.commands import COMMAND, GEMM, error_of
from tests.reporting.examples import make_site


@pytest.mark.parametrize("command", ["calibrate --softmax nowhere:build", "targets"])
def test_a_misspelled_variable_is_an_error_of_every_command(capsys, monkeypatch, command):
    """Mutant: commands that leave the environment to what they compile, which may be nothing."""
    monkeypatch.setenv("OVERLAPC_DUMPS", "/tmp")
    assert "did you mean 'OVERLAPC_DUMP'" in error_of(capsys, *command.split())


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
        (b'{"overlapc_report": 2}', "cannot be read: "),
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
        assert "name a directory that Report.save wrote, or its report.json" in text


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


def test_the_package_can_be_run_in_place_of_the_command(run):
    """Mutant: what the command returned is dropped."""
    done = run("-m", "overlapc", "report", "absent", command=sys.executable)
    assert done.returncode == 2, done.stderr
    assert done.stderr == run("report", "absent").stderr


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


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"overlapc {overlapc.__version__}\n"
