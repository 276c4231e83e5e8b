"""Links in a user namespace: they work there, and the machine sees nothing of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import user_namespace

INSIDE = """
from benchmarks.processes.link import available, rate_limited_link
from benchmarks.processes import link
assert available() is None, available()
with rate_limited_link() as made:
    assert set(made.namespaces) <= set(link._namespaces())
    print("made", open("/proc/self/uid_map").read().split())
"""


@pytest.mark.skipif(not user_namespace.works(), reason="no user namespaces here")
def test_links_can_be_made_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    done = subprocess.run(
        user_namespace.command([sys.executable, "-c", INSIDE]), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("made ['0'")
    assert done.stdout.split()[-1] == "'1']", "one user is mapped: it is a namespace of its own"


def test_the_program_is_run_again_once_and_only_for_who_is_not_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replaced: list[list[str]] = []

    def replace(program: str, argv: list[str], environment: dict[str, str]) -> None:
        assert environment[user_namespace.ENTERED] == "1"
        replaced.append(argv)

    monkeypatch.setattr(os, "execvpe", replace)
    monkeypatch.setattr(sys, "argv", ["program", "--link", "1gbit"])
    monkeypatch.setattr(user_namespace, "works", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    user_namespace.rerun_if_it_helps("some.module")
    assert replaced == []
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    user_namespace.rerun_if_it_helps("some.module")
    assert replaced[0][-5:] == [sys.executable, "-m", "some.module", "--link", "1gbit"]
    monkeypatch.setenv(user_namespace.ENTERED, "1")
    user_namespace.rerun_if_it_helps("some.module")
    monkeypatch.delenv(user_namespace.ENTERED)
    monkeypatch.setattr(user_namespace, "works", lambda: False)
    user_namespace.rerun_if_it_helps("some.module")
    assert len(replaced) == 1
