"""Benchmarks of two ranks that need no page: what they take, and what they start."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import pytest

from benchmarks import hidden_order, varying_rows
from benchmarks.processes.link import LinkError, available

BOTH = pytest.mark.parametrize(
    "benchmark", [hidden_order, varying_rows], ids=lambda its: its.__name__
)


@pytest.fixture
def started(monkeypatch):
    """Commands of the ranks that are started, of which none runs."""
    found = []

    class Done:
        def check(self):
            pass

    def run_ranks(commands, *link, **named):
        found.extend(commands)
        return Done()

    for benchmark in (hidden_order, varying_rows):
        monkeypatch.setattr(benchmark, "run_ranks", run_ranks)
    return found


@BOTH
@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("--rond", 2)])
def test_a_question_starts_nothing(benchmark, argument, code, started, capsys):
    """Mutant: arguments that nobody reads."""
    with pytest.raises(SystemExit) as ended:
        benchmark.main([argument])
    assert ended.value.code == code
    assert started == []
    printed = capsys.readouterr()
    assert "--rounds" in printed.out + printed.err
    assert "--rank" not in printed.out + printed.err


@BOTH
def test_both_ranks_are_told_how_many_rounds(benchmark, started, monkeypatch):
    """And each rank measures so many. Mutants: the number is not handed on, or not read."""
    asked = []
    monkeypatch.setattr(benchmark, "measured_here", lambda group, rounds: asked.append(rounds))
    monkeypatch.setattr(hidden_order, "rate_limited_link", lambda ranks, rate: nullcontext(rate))
    benchmark.main(["--rounds", "7"])
    assert [command[:3] for command in started] == [[sys.executable, "-m", benchmark.__name__]] * 2
    monkeypatch.setattr(benchmark, "run_rank", lambda body: body(None))
    for command in list(started):
        benchmark.main(command[3:])
    assert asked == [7, 7]


@pytest.mark.skipif(available() is not None, reason="no emulated link here")
def test_a_rate_that_is_none_is_an_error(started):
    with pytest.raises(LinkError, match="not the rate"):
        hidden_order.main(["--rate", "fast"])
    assert started == []
