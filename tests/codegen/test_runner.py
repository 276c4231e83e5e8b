"""The order in which a staged GEMM launches, and what its result is, without a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen import GemmSpec

SPEC = GemmSpec("float32", "float32", 16, 16, 16, bias=True)
FORK, JOIN = "comm(-3) waits for compute", "compute waits for comm(-3)"
BANDS = [
    "comm(-3) awaits band 0",
    "all-reduce of 32 rows",
    "comm(-3) awaits band 1",
    "all-reduce of 13 rows",
]


def test_the_gemm_is_launched_before_any_waiter_and_between_fork_and_join(interpreted):
    first, second = interpreted("runner_cases.run_twice", str(SPEC), (32, 13), 45, 40, 30)
    assert second == [FORK, "GEMM on 4", *BANDS, JOIN]
    # Nothing is loaded behind a spinning waiter: the first call waits for the whole GEMM.
    assert first == [FORK, "GEMM on 4", FORK, *BANDS, JOIN]


def test_an_error_of_the_collective_still_joins(interpreted):
    log = interpreted("runner_cases.fail_in_the_middle", str(SPEC))
    assert log[-2:] == [JOIN, "raised the peer is gone"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("capture_cold", "during graph capture"),
        ("leave_no_sm", "cannot be left to the collective"),
        ("wrong_rows", "does not fit its kernel: C is not"),
    ],
)
def test_what_cannot_run_is_refused(interpreted, case, message):
    with pytest.raises(AssertionError, match=message):
        interpreted(f"runner_cases.{case}", str(SPEC))


def test_a_kernel_without_signals_is_refused(interpreted):
    silent = replace(SPEC, signals=False)
    with pytest.raises(AssertionError, match="has a kernel that signals"):
        interpreted("runner_cases.run_twice", str(silent), (45,), 45, 40, 30)
