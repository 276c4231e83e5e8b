"""Every state that a model can reach, breadth first, and the shortest way to a violation."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tests.protocol.model import Model, State, Violation

MOST_STATES = 150_000
"""Beyond it a model is no longer checked in seconds: chosen."""
STUCK = "nothing can happen any more"


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    states: int
    """Visited: all, unless there is a violation."""
    violation: str = ""
    """Which property does not hold, if one does not."""
    trace: tuple[str, ...] = ()
    """The fewest steps that lead to the violation."""


def explore(model: Model) -> Found:
    """Visit every state that can be reached; MemoryError beyond ``MOST_STATES``."""
    came: dict[State, tuple[State, str] | None] = {model.start: None}
    waiting = deque(came)
    while waiting:
        state = waiting.popleft()
        try:
            following = list(model.steps(state))
        except Violation as violation:
            return Found(len(came), str(violation), _trace(came, state))
        if not following and not model.is_end(state):
            return Found(len(came), STUCK, _trace(came, state))
        for name, after in following:
            if after not in came:
                came[after] = (state, name)
                waiting.append(after)
        if len(came) > MOST_STATES:
            raise MemoryError(f"more than {MOST_STATES} states")
    return Found(len(came))


def _trace(came: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    names: list[str] = []
    while (step := came[state]) is not None:
        state, name = step
        names.append(name)
    return tuple(reversed(names))
