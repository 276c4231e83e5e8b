"""Where the cost model puts each way to compute a linear layer, and where none of ours may win.

Each way is said thrice, with figures that are likely and with the best and worst that are thought
possible. What loses with its best ones to a library with its worst ones need not be measured; all
else only a measurement decides. No torch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from overlapc.planning.linear.costs import BEST, LIKELY, WORST, Device, library, ours
from overlapc.planning.linear.regions import (
    LEAST_GAIN,
    MEASURED_ROWS,
    OURS,
    Gain,
    LinearProblem,
    LinearTrial,
    Prediction,
    choose,
    most_rows,
)
from overlapc.planning.linear.tiles import FLAT_MOST
from overlapc.planning.target import Target


def predicted_trial(problem: LinearProblem, device: Device, rows: int) -> LinearTrial:
    """What is likely at a row count, and between which bounds."""
    best, likely, worst = (library(problem, rows, device, f) for f in (BEST, LIKELY, WORST))
    gains = []
    for way in OURS:
        mine = [ours(problem, way, rows, device, figures) for figures in (WORST, LIKELY, BEST)]
        low, middle, high = (0.0 if one is None else one for one in mine)
        if high:
            gains.append(Gain(way, best / low, likely / middle, worst / high))
    return LinearTrial(rows, likely, tuple(gains))


@lru_cache(maxsize=256)
def _trials_on(problem: LinearProblem, device: Device) -> tuple[LinearTrial, ...]:
    """At every row count for which a kernel may be there."""
    return tuple(predicted_trial(problem, device, rows) for rows in range(1, FLAT_MOST + 1))


def _trials(problem: LinearProblem, target: Target | None) -> tuple[LinearTrial, ...]:
    """Empty where too little is known."""
    device = Device.of(target, problem.dtype) if target else None
    return _trials_on(problem, device) if device else ()


def predict(problem: LinearProblem, target: Target | None) -> Prediction | None:
    """M1 and M2 in CUDA graphs, likely ones; None where too little is known of the machine."""
    trials = _trials(problem, target)
    if target is None or not trials:
        return None
    sharp = [
        replace(t, gains=tuple(replace(g, low=g.median, high=g.median) for g in t.gains))
        for t in trials
    ]
    regions = choose(sharp, [trial.rows for trial in trials])
    return Prediction(target.name, regions, tuple(trials[rows - 1] for rows in MEASURED_ROWS))


def may_win(
    problem: LinearProblem, rows: int, device: str, target: Target | None
) -> tuple[str, ...]:
    """Which of ours a measurement may find to win at a row count, on a type of device."""
    if trials := _trials(problem, target):
        gains = trials[rows - 1].gains if rows <= len(trials) else ()
        return tuple(gain.implementation for gain in gains if gain.high >= LEAST_GAIN)
    return tuple(way for way, most in most_rows(problem.dtype, device).items() if rows <= most)


def spans(problem: LinearProblem, device: str, target: Target | None) -> dict[str, tuple[int, int]]:
    """From and up to which row count each of ours may win; without those that never may."""
    found: dict[str, tuple[int, int]] = {}
    for rows in range(1, FLAT_MOST + 1):
        for way in may_win(problem, rows, device, target):
            found[way] = (found.get(way, (rows, rows))[0], rows)
    return found
