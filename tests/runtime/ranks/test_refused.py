"""One rank alone refuses a call: it keeps its own error, the others are told, nobody waits."""

from __future__ import annotations

import time
from contextlib import contextmanager
from unittest import mock

import pytest

from overlapc.errors import DisagreementError, OverlapcError
from overlapc.runtime import plans, preparing
from overlapc.runtime.ranks import agreement
from tests.runtime.chains import call, errors_of
from tests.runtime.test_bad_input import spec, tensors

SECONDS = 20.0
"""More than a test may take: who waited for a rank that says nothing fails it."""

UNEVEN = [5, 5], [5, 5]


def fault(*_):
    raise ZeroDivisionError("a fault of this rank")


def no_target(fingerprint):
    """As on a machine that never saw what the graph was planned for."""
    return plans.target_of(f"{fingerprint} of another machine")


@contextmanager
def nothing():
    yield


FAULTS = {
    "its operands": ("gemm_reduce_scatter", (), nothing, "5 rows are not", OverlapcError),
    "its target": (
        *("gemm_all_reduce", (), lambda: mock.patch.object(preparing, "target_of", no_target)),
        *("is unknown here", OverlapcError),
    ),
    "its chain": (
        *("gemm_all_reduce", (), lambda: mock.patch.object(agreement, "problem_of", fault)),
        *("a fault of this rank", ZeroDivisionError),
    ),
    "its plan": (
        *("gemm_all_to_all", UNEVEN, lambda: mock.patch.object(preparing, "plan_call", fault)),
        *("a fault of this rank", ZeroDivisionError),
    ),
}
"""A kind, sizes of its all-to-all, what is wrong on rank 1 (rows, where nothing), and its error."""


def refusing(rank, name, verify):
    """What each rank raises where rank 1 refuses, and how wrong the next call is."""
    kind, sizes, wrong, _, _ = FAULTS[name]
    named = f"refused.{name}.{verify}"
    chain = spec(kind, site=named, verify=verify, wait_seconds=SECONDS)
    fitting = tensors(10 if sizes else 8, seed=rank)
    given = tensors(5) if rank and name == "its operands" else fitting
    arguments = (1, *sizes) if sizes else ()
    started, said = time.monotonic(), None
    with wrong() if rank else nothing():
        try:
            call(chain, given, *arguments)
        except Exception as error:
            said = type(error), str(error)
    taken = time.monotonic() - started
    return said, taken, max(errors_of(chain, fitting, *arguments))


@pytest.mark.parametrize("verify", [False, True], ids=["", "verify"])
@pytest.mark.parametrize("name", FAULTS)
def test_who_refuses_alone_keeps_its_error_and_the_others_are_told(two_ranks, name, verify):
    """The mutant that tells nobody lets them wait until they only know who did not come."""
    (other, waited, after), (own, taken, own_after) = two_ranks.run(refusing, name, verify)
    _, _, _, text, kind = FAULTS[name]
    assert issubclass(own[0], kind)
    assert not issubclass(own[0], DisagreementError)
    assert text in own[1]
    assert other[0] is DisagreementError
    assert "ranks [1] refused a call" in other[1]
    assert f"Rank 1: refused: {own[1]}"[:60] in other[1]
    assert "see to the error of the rank that refused" in other[1]
    assert max(waited, taken) < SECONDS / 2
    assert max(after, own_after) < 1e-5, "nothing was left in flight, and ranks still meet"


def refusing_later(rank):
    """Rank 1 alone calls again, with rows that do not fit a chain that has run."""
    chain = spec("gemm_reduce_scatter", site="refused.later", wait_seconds=SECONDS)
    assert max(errors_of(chain, tensors(8))) < 1e-6
    started = time.monotonic()
    if rank:
        with pytest.raises(OverlapcError, match="5 rows are not"):
            call(chain, tensors(5))
    return time.monotonic() - started


def test_what_others_do_not_ask_is_not_told(two_ranks):
    """The mutant that always tells waits for ranks that ask nothing any more."""
    assert max(two_ranks.run(refusing_later)) < SECONDS / 2
