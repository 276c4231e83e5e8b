"""The counter protocol for all interleavings, and the mistakes that this has to find."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.protocol.model import Model
from tests.protocol.protocol import Protocol, Scenario
from tests.protocol.search import STUCK, explore
from tests.protocol.source import SIGNAL, read, signals, templates

THREE_CTAS = Scenario()
PERSISTENT = Scenario(ctas=((0, 2), (1,)), stores=2)
"""One CTA goes on to a tile of the next group; stores of one warp overtake each other."""
COLD = Scenario(ctas=((0, 2), (1,)), runs=2)
"""A GEMM that runs twice before anything waits, as one that is tuned at its first launch."""
LATE = Protocol(tile=("atomic_add", "store", "debug_barrier"), late=True)
CASES = {
    "three CTAs": (Protocol(), THREE_CTAS),
    "persistent": (Protocol(), replace(PERSISTENT, stores=1)),
    "persistent, overtaking": (Protocol(), PERSISTENT),
    "cold": (Protocol(), COLD),
    "late": (LATE, replace(PERSISTENT, stores=1)),
}

MUTANTS = {
    "no barrier": (Protocol(tile=("store", "atomic_add")), "reads"),
    "barrier before the stores": (
        Protocol(tile=("debug_barrier", "store", "atomic_add")),
        "reads",
    ),
    "barrier after the add": (Protocol(tile=("store", "atomic_add", "debug_barrier")), "reads"),
    "signal before the stores": (
        Protocol(tile=("debug_barrier", "atomic_add", "store")),
        "reads",
    ),
    "TMA store": (Protocol(tile=("tma_store", "debug_barrier", "atomic_add")), "reads"),
    "relaxed add": (Protocol(releases=False), "reads"),
    "late, no barrier": (replace(LATE, tile=("atomic_add", "store")), "reads"),
    "late, barrier before the stores": (
        replace(LATE, tile=("atomic_add", "debug_barrier", "store")),
        "reads",
    ),
    "late, relaxed add": (replace(LATE, releases=False), "reads"),
    "waiter without acquire": (Protocol(acquires=False), "reads"),
    "counters not reset": (Protocol(zeroed="never"), "launch 2 reads"),
    "reset beside the GEMM": (Protocol(zeroed="beside"), ""),
    "no fork": (Protocol(forks=False), "launch 2 reads"),
    "no join": (Protocol(joins=False), ""),
}
"""Protocols with one mistake, and what the violation has to say."""

TEXTS = {
    "no barrier": ("    return cta_barrier(FLATTEN)\n", "    return 0\n"),
    "relaxed add": ('sem="release"', 'sem="relaxed"'),
    "add at the scope of the CTA": ('sem="release", scope="gpu"', 'sem="release", scope="cta"'),
    "acquire instead of release": ('sem="release"', 'sem="acquire"'),
    "waiter without acquire": ('sem="acquire"', 'sem="relaxed"'),
}
"""Mistakes in the text of ``signal.py``: what stands there, and what in its place."""


def signaling() -> dict[str, str]:
    return {name: text for name, text in templates().items() if name != SIGNAL and signals(text)}


def check(protocol: Protocol, scenario: Scenario):
    return explore(Model(protocol, scenario))


NAMES = [
    pytest.param(name, marks=pytest.mark.long) if name == "persistent, overtaking" else name
    for name in CASES
]


@pytest.mark.parametrize("name", NAMES)
def test_every_interleaving_keeps_the_properties(name, golden):
    found = check(*CASES[name])
    assert not found.violation, "\n".join(found.trace)
    golden(f"{name}: {found.states} states, no violation")


@pytest.mark.parametrize(
    "scenario", [THREE_CTAS, replace(PERSISTENT, stores=1)], ids=["three CTAs", "persistent"]
)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_mistake_is_found(mutant, scenario):
    protocol, says = MUTANTS[mutant]
    found = check(protocol, scenario)
    assert found.violation
    assert says in found.violation
    assert found.trace


def test_a_bump_of_another_groups_counter_is_found():
    assert check(Protocol(), replace(THREE_CTAS, announced=(0, 1, 1))).violation
    swapped = check(Protocol(), replace(THREE_CTAS, announced=(1, 0, 0)))
    assert "reads" in swapped.violation


def test_equality_hangs_where_a_gemm_ran_twice_and_nowhere_else():
    equality = Protocol(compare="==")
    assert check(equality, COLD).violation == STUCK
    # Counters never pass their targets in one run: only a repeated one tells the two apart.
    assert not check(equality, THREE_CTAS).violation


def test_the_shortest_way_to_a_violation_is_told():
    found = check(Protocol(tile=("store", "atomic_add")), THREE_CTAS)
    assert found.trace.count("zero") == found.trace.count("fork") == 1
    assert "waiter 0 is done" in found.trace or "waiter 1 is done" in found.trace
    assert sum(step.endswith("adds") for step in found.trace) <= 3


def test_one_warp_needs_no_barrier():
    lone = replace(THREE_CTAS, warps=1, stores=2)
    assert not check(Protocol(tile=("store", "atomic_add")), lone).violation
    assert check(Protocol(tile=("store", "atomic_add"), releases=False), lone).violation


def test_some_template_signals():
    assert signaling()


@pytest.mark.parametrize("name", signaling())
def test_the_model_is_of_the_templates(name):
    assert read(signaling()[name], templates()[SIGNAL]) == Protocol()
    assert read(signaling()[name], templates()[SIGNAL], late=True) == LATE


def test_a_last_tile_that_nobody_announces_is_found():
    announcing = "announce(counters, stored, COUNTER_STRIDE)"
    for source in signaling().values():
        assert source.count(announcing) == 1
        with pytest.raises(ValueError, match="the last one 0"):
            read(source.replace(announcing, "pass"), templates()[SIGNAL], late=True)


@pytest.mark.parametrize("mutant", TEXTS)
def test_a_mistake_in_the_source_is_found(mutant):
    old, new = TEXTS[mutant]
    text = templates()[SIGNAL]
    assert text.count(old) == 1
    for source in signaling().values():
        for late in (False, True):
            protocol = read(source, text.replace(old, new), late=late)
            assert check(protocol, THREE_CTAS).violation


@pytest.mark.parametrize("barrier", ["barrier.sync 0;", "tl.debug_barrier()"])
def test_a_barrier_of_one_kind_of_loop_alone_is_found(barrier: str):
    text = templates()[SIGNAL]
    assert text.count(barrier) == 1
    for source in signaling().values():
        with pytest.raises(ValueError, match="only some CTAs"):
            read(source, text.replace(barrier, "print()"))


def test_a_barrier_that_some_ctas_skip_is_found():
    text = templates()[SIGNAL]
    changed = text.replace(
        "    return cta_barrier(FLATTEN)\n", "    if late:\n        return cta_barrier(FLATTEN)\n"
    )
    assert changed != text
    for source in signaling().values():
        with pytest.raises(ValueError, match="only some CTAs meet a barrier: late"):
            read(source, changed)


def test_a_waiter_that_compares_for_equality_is_found():
    text = templates()[SIGNAL]
    changed = text.replace("while (seen < target)", "while (seen != target)")
    assert changed != text
    for source in signaling().values():
        assert check(read(source, changed), COLD).violation == STUCK


def test_stores_are_read_in_the_order_in_which_they_are_made():
    kernel = """
def finish(c, value):
    tl.store(c, value)

def kernel(c, counters, x):
    value = tl.load(x)
    if x:
        finish(c, value)
    else:
        tl.store(c, 2 * value)
    publish(counters, 0, 32)
"""
    signal = templates()[SIGNAL]
    assert read(kernel, signal) == Protocol()
    late = kernel + "    tl.store(c, value)\n"
    assert read(late, signal).tile == (*Protocol().tile, "store")
    by_tma = kernel.replace("tl.store(c, 2", "descriptor.store([0, 0], 2")
    assert "tma_store" in read(by_tma, signal).tile
    for changed in (late, by_tma):
        assert check(read(changed, signal), THREE_CTAS).violation
    with pytest.raises(ValueError, match="announced 2 times"):
        read(kernel + "    publish(counters, 1, 32)\n", signal)
