"""The states of the counter protocol and the steps between them.

A store goes to a buffer first, and is visible to the other stream at any later moment, out of
order. What is granted is what the PTX memory model grants: a release orders what its own thread did
before and, across a barrier, what the other warps of its CTA did; an acquire keeps later loads
behind it; work of one stream is done in order, and the end of a kernel makes its stores visible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tests.protocol.protocol import Protocol, Scenario, Step, programs

POISON = 0
"""Of memory before the first launch; launch i stores i, and its collective leaves -i in place."""

Operation = tuple[str, int]
"""What a stream does, and for which launch."""
Moves = Iterator[tuple[str, "State"]]
"""Names of steps, and the states that they lead to."""


class State(NamedTuple):
    """Everything that decides what may happen next."""

    compute: int
    """Operations that the computing stream has completed."""
    communication: int
    """Operations that the communication stream has completed."""
    zeroings: int
    """Those that ran beside a GEMM."""
    warps: tuple[int, ...]
    """Steps that each warp has taken of the running GEMM."""
    buffered: int
    """Bits of the stores that have been issued and are not visible."""
    memory: tuple[int, ...]
    """What is visible in each place."""
    counters: tuple[int, ...]
    """What is visible in each counter."""
    loaded: frozenset[int] = frozenset()
    """Values that a collective loaded before its waiter was done, if it did."""


class Violation(Exception):
    """A property does not hold."""


@dataclass(frozen=True)
class Model:
    """What may happen in every state of a scenario under a protocol."""

    protocol: Protocol
    scenario: Scenario

    @cached_property
    def programs(self) -> tuple[tuple[Step, ...], ...]:
        """The steps of each warp, CTA after CTA."""
        return programs(self.protocol, self.scenario)

    @cached_property
    def on_compute(self) -> tuple[Operation, ...]:
        """What the computing stream does: zero, GEMM, join, and read the result."""
        each = ["zero"] if self.protocol.zeroed == "before" else []
        each += ["gemm"] * self.scenario.runs
        each += ["join", "read"] if self.protocol.joins else []
        return self._launched(each)

    @cached_property
    def on_communication(self) -> tuple[Operation, ...]:
        """What the communication stream does: fork, then wait and send, group by group."""
        groups = range(len(self.scenario.targets))
        return self._launched(
            ["fork", *(f"{what} {group}" for group in groups for what in ("wait", "send"))]
        )

    def _launched(self, each: list[str]) -> tuple[Operation, ...]:
        launches = range(1, self.scenario.launches + 1)
        return *((name, launch) for launch in launches for name in each), ("end", 0)

    @property
    def start(self) -> State:
        """Before the first launch."""
        s = self.scenario
        nothing = (0,) * len(s.targets)
        return State(0, 0, 0, (0,) * len(self.programs), 0, (POISON,) * s.places, nothing)

    def is_end(self, state: State) -> bool:
        """Whether everything has been done."""
        compute, communication = self._operations(state)
        return compute[0] == communication[0] == "end"

    def steps(self, state: State) -> Moves:
        """Everything that may happen next; ``Violation`` where a property does not hold."""
        (compute, launch), (communication, sends) = self._operations(state)
        if compute == "gemm":
            for warp, program in enumerate(self.programs):
                if state.warps[warp] < len(program):
                    yield from self._warp(state, warp, program[state.warps[warp]])
            yield from self._visible(state, launch)
            if self.protocol.zeroed == "beside" and state.zeroings < launch:
                zeros = (0,) * len(state.counters)
                yield "zero beside", state._replace(counters=zeros, zeroings=launch)
        yield from self._compute(state, compute, launch)
        yield from self._communication(state, communication, sends)

    def _operations(self, state: State) -> tuple[Operation, Operation]:
        return self.on_compute[state.compute], self.on_communication[state.communication]

    def _warp(self, state: State, warp: int, step: Step) -> Moves:
        warps = put(state.warps, warp, state.warps[warp] + 1)
        match step.name:
            case "store" | "tma_store":
                buffered = state.buffered | 1 << step.where
                yield f"warp {warp} stores", state._replace(warps=warps, buffered=buffered)
            case "debug_barrier" if warp % self.scenario.warps == 0:  # it speaks for its CTA
                yield from self._barrier(state, warp, step)
            case "atomic_add" if not state.buffered & step.after:
                counters = put(state.counters, step.where, state.counters[step.where] + 1)
                yield f"warp {warp} adds", state._replace(warps=warps, counters=counters)

    def _barrier(self, state: State, first: int, barrier: Step) -> Moves:
        peers = range(first, first + self.scenario.warps)
        if all(self._next(state, peer) == barrier for peer in peers):
            warps = (taken + (warp in peers) for warp, taken in enumerate(state.warps))
            yield f"warps {peers} pass a barrier", state._replace(warps=tuple(warps))

    def _next(self, state: State, warp: int) -> Step | None:
        program, taken = self.programs[warp], state.warps[warp]
        return program[taken] if taken < len(program) else None

    def _visible(self, state: State, launch: int) -> Moves:
        for place in range(self.scenario.places):
            if state.buffered >> place & 1:
                yield (
                    f"store {place} is visible",
                    state._replace(
                        buffered=state.buffered ^ 1 << place,
                        memory=put(state.memory, place, launch),
                    ),
                )

    def _compute(self, state: State, name: str, launch: int) -> Moves:
        done = state._replace(compute=state.compute + 1, warps=(0,) * len(self.programs))
        match name:
            case "zero":
                yield name, done._replace(counters=(0,) * len(state.counters))
            case "gemm" if self._gemm_ended(state, launch):
                if self.on_compute[state.compute + 1] != (name, launch):
                    self._check_counters(state)
                yield "GEMM ends", done
            case "join" if state.communication >= _end_of(self.on_communication, launch):
                yield name, done
            case "read":
                if set(state.memory) != {-launch}:
                    raise Violation(f"the result of launch {launch} is {state.memory}")
                yield name, done

    def _gemm_ended(self, state: State, launch: int) -> bool:
        ended = all(t == len(p) for t, p in zip(state.warps, self.programs, strict=True))
        zeroed = self.protocol.zeroed != "beside" or state.zeroings == launch
        return ended and zeroed and not state.buffered

    def _check_counters(self, state: State) -> None:
        announced = tuple(self.scenario.runs * target for target in self.scenario.targets)
        if state.counters != announced:
            raise Violation(f"the counters read {state.counters}, not {announced}")

    def _communication(self, state: State, operation: str, launch: int) -> Moves:
        done = state._replace(communication=state.communication + 1)
        name, _, group = operation.partition(" ")
        match name:
            case "fork" if state.compute >= self._forked(launch):
                yield name, done
            case "wait":
                yield from self._wait(state, done, int(group))
            case "send":
                yield operation, self._send(state, done, int(group), launch)

    def _forked(self, launch: int) -> int:
        """What the computing stream has done before the communication stream goes on."""
        if self.scenario.runs > 1:
            return _end_of(self.on_compute, launch, "gemm")
        if not self.protocol.forks or self.protocol.zeroed != "before":
            return 0
        return _end_of(self.on_compute, launch, "zero")

    def _wait(self, state: State, done: State, group: int) -> Moves:
        counter, target = state.counters[group], self.scenario.targets[group]
        if counter == target or (self.protocol.compare == ">=" and counter > target):
            yield f"waiter {group} is done", done
        if not self.protocol.acquires and not state.loaded:
            yield (
                f"collective {group} loads early",
                state._replace(loaded=self._values(state, group)),
            )

    def _send(self, state: State, done: State, group: int, launch: int) -> State:
        read = state.loaded or self._values(state, group)
        if read != {launch}:
            raise Violation(f"collective {group} of launch {launch} reads {sorted(read)}")
        sent = self.scenario.sent[group]
        memory = tuple(-launch if p in sent else value for p, value in enumerate(state.memory))
        return done._replace(memory=memory, loaded=frozenset())

    def _values(self, state: State, group: int) -> frozenset[int]:
        return frozenset(state.memory[place] for place in self.scenario.sent[group])


def put(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    """Return the values with one of them replaced."""
    return (*values[:at], value, *values[at + 1 :])


def _end_of(operations: tuple[Operation, ...], launch: int, name: str = "") -> int:
    """How many operations have been done after the last of a launch, of that name if given."""
    return 1 + max(
        at for at, (its, of) in enumerate(operations) if of == launch and its.startswith(name)
    )
