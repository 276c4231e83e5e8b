"""Measure the linear layers of a model on this machine, and keep what beats the library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from overlapc.calibration import Progress, shipped_target
from overlapc.errors import ProblemError, TargetError
from overlapc.explaining import compilations_of
from overlapc.passes.base import Layer
from overlapc.planning.linear.prediction import may_win, predict
from overlapc.planning.linear.regions import (
    MEASURED_ROWS,
    LinearProblem,
    LinearTrial,
    entry_of,
)
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.target import Target
from overlapc.runtime.linear.tables import table_for
from overlapc.runtime.linear.trials import LinearTrials
from overlapc.runtime.machine import this_machine

Measure = Callable[[Layer, int, float, Sequence[str]], LinearTrial]
"""Compares ways with the library for a layer, a row count and about so many seconds."""


def layers_of(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    varying: bool = False,
) -> list[Layer]:
    """Return one layer for each linear problem of a model's graphs, forward and backward.

    With ``varying`` also for those of the graphs that torch compiles for any row count, once it
    has met a second or with ``dynamic=True``. Gradients are needed or not as where it is called.
    """
    compilations = compilations_of(model, {"linear": "flat"})(*args, **(kwargs or {}))
    layers = [layer for one in compilations for layer in one.layers.values()]
    if varying:
        layers += [layer for one in compilations for layer in one.varying]
    return list({layer.problem: layer for layer in layers}.values())


def calibrate_linears(
    layers: Iterable[Layer],
    *,
    rows: Sequence[int] | None = None,
    seconds: float = 60.0,
    target: Target | None = None,
    measure: Measure | None = None,
    save: bool = True,
    progress: Progress | None = None,
) -> LinearTable:
    """Measure every layer at ``rows``, by default `MEASURED_ROWS`; the table with what won.

    Nothing else should run. Weights are read from cold caches. What no other implementation surely
    beats stays the library's. What cannot win on ``target``, by default what is shipped for this
    device, is not measured, and what is predicted for it stands in the table. Takes about
    ``seconds``. With ``save`` the table is stored where compilations look for it; what it had of
    other problems stays. Raises ProblemError where there is no layer.
    """
    layers = list(layers)
    if not layers:
        raise ProblemError(
            "There is no linear layer to measure.",
            where="overlapc calibrate --linear",
            remedy="give a model whose compiled graphs multiply by weights that they are given",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measure, target = measure or _measure(device), target or _shipped(device)
    todo = [_todo(layer, sorted(rows or MEASURED_ROWS), device, target) for layer in layers]
    entries, share = [], seconds / max(1, sum(map(len, todo)))
    for index, (layer, counts) in enumerate(zip(layers, todo, strict=True)):
        if progress:
            progress(layer.problem.text("~"), index / len(layers))
        trials = [measure(layer, m, share, ways) for m, ways in counts.items()]
        entries.append(entry_of(layer.problem, trials, predict(layer.problem, target)))
    table = _known(device).with_entries(tuple(entries))
    if save:
        table.save(LinearTable.path(table.machine))
    return table


def _todo(
    layer: Layer, counts: Sequence[int], device: torch.device, target: Target | None
) -> dict[int, tuple[str, ...]]:
    """Which implementations are measured at which row counts."""
    ways = {rows: may_win(layer.problem, rows, device.type, target) for rows in counts}
    return {rows: those for rows, those in ways.items() if those}


def _shipped(device: torch.device) -> Target | None:
    try:
        return shipped_target(device.type)
    except TargetError:
        return None


def _measure(device: torch.device) -> Measure:
    trials: dict[LinearProblem, LinearTrials] = {}

    def measure(layer: Layer, rows: int, seconds: float, ways: Sequence[str]) -> LinearTrial:
        if layer.problem not in trials:
            trials.clear()  # the copies of one problem's weights are enough to hold
            trials[layer.problem] = LinearTrials(layer.spec, layer.operands, device)
        return trials[layer.problem].trial(rows, seconds, ways)

    return measure


def _known(device: torch.device) -> LinearTable:
    """What was measured before; nothing where that is of another version, and is replaced."""
    try:
        found = table_for(device.type)
    except TargetError:
        found = None
    return found or LinearTable(this_machine(device.type))
