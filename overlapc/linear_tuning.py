"""Measure the linear layers of a model on this machine, and keep what beats the library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from overlapc.calibration import Progress
from overlapc.errors import ProblemError, TargetError
from overlapc.explaining import compilations_of
from overlapc.passes.base import Layer
from overlapc.planning.linear import (
    MEASURED_ROWS,
    Gain,
    LinearEntry,
    LinearProblem,
    LinearTrial,
    entry_of,
)
from overlapc.planning.linear_table import LinearTable, table_path
from overlapc.runtime.linear_tables import table_for
from overlapc.runtime.linear_trials import LinearTrials
from overlapc.runtime.machine import this_machine

Measure = Callable[[Layer, int, float], LinearTrial]
"""Compares all ways with the library for a layer, a row count and about so many seconds."""


def layers_of(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> list[Layer]:
    """Return one layer for each linear problem of a model's graphs, forward and backward."""
    compilations = compilations_of(model, {"linear": "flat"})(*args, **(kwargs or {}))
    layers = (layer for one in compilations for layer in one.layers.values())
    return list({layer.problem: layer for layer in layers}.values())


def calibrate_linears(
    layers: Iterable[Layer],
    *,
    rows: Sequence[int] | None = None,
    seconds: float = 60.0,
    measure: Measure | None = None,
    save: bool = True,
    progress: Progress | None = None,
) -> LinearTable:
    """Measure every layer at ``rows``, by default `MEASURED_ROWS`; the table with what won.

    Nothing else should run. Weights are read from cold caches. What no other implementation surely
    beats stays the library's. Takes about ``seconds``. With ``save`` the table is stored where
    compilations look for it; what it had of other problems stays. Raises ProblemError where there
    is no layer.
    """
    layers = list(layers)
    if not layers:
        raise ProblemError(
            "There is no linear layer to measure.",
            where="overlapc calibrate --linear",
            remedy="give a model whose compiled graphs multiply by weights that they are given",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measure = measure or _measure(device)
    counts = sorted(rows or MEASURED_ROWS)
    entries, share = [], seconds / (len(layers) * len(counts))
    for index, layer in enumerate(layers):
        if progress:
            progress(layer.problem.text("~"), index / len(layers))
        trials = tuple(measure(layer, m, share) for m in counts)
        entries.append(entry_of(layer.problem, trials))
    table = _known(device).with_entries(tuple(entries))
    if save:
        table.save(table_path(table.machine))
    return table


def _measure(device: torch.device) -> Measure:
    trials: dict[LinearProblem, LinearTrials] = {}

    def measure(layer: Layer, rows: int, seconds: float) -> LinearTrial:
        if layer.problem not in trials:
            trials.clear()  # the copies of one problem's weights are enough to hold
            trials[layer.problem] = LinearTrials(layer.spec, layer.operands, device)
        return trials[layer.problem].trial(rows, seconds)

    return measure


def _known(device: torch.device) -> LinearTable:
    """What was measured before; nothing where that is of another version, and is replaced."""
    try:
        found = table_for(device.type)
    except TargetError:
        found = None
    return found or LinearTable(this_machine(device.type))


def describe(entry: LinearEntry) -> str:
    """Return a problem, its regions, and what was measured, as lines of text."""
    lines = [f"{entry.problem.text('~')}: {_told(entry)}"]
    for trial in entry.trials:
        gains = _listed(trial.gains) or "nothing else ran"
        said = f"library {1e6 * trial.library_seconds:.1f} us; {gains}"
        said += f"; launched one by one {_listed(trial.launched)}" if trial.launched else ""
        lines.append(f"  {trial.rows:3} rows: {said}")
    return "\n".join(lines)


def _told(entry: LinearEntry) -> str:
    if entry.launched is None or entry.launched == entry.regions:
        return str(entry.regions)
    return f"in CUDA graphs {entry.regions}; launched one by one {entry.launched}"


def _listed(gains: Sequence[Gain]) -> str:
    return ", ".join(
        f"{g.implementation} {g.median:.2f}x [{g.low:.2f}, {g.high:.2f}]" for g in gains
    )
