"""Measure the attentions of a model on this machine, and keep where a kernel of ours won."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from overlapc.calibration import Progress
from overlapc.errors import ProblemError, TargetError
from overlapc.explaining import compilations_of
from overlapc.planning.attention.table import (
    MEASURED_KEYS,
    AttentionEntry,
    AttentionShape,
    AttentionTable,
    AttentionTrial,
    shape_of,
)
from overlapc.planning.attention.tile_names import TRIED
from overlapc.runtime.attention.tables import attention_table
from overlapc.runtime.attention.trials import AttentionTrials
from overlapc.runtime.kernel_attempts import runs_kernels
from overlapc.runtime.machine import this_machine

Measure = Callable[[AttentionShape, int, float], AttentionTrial | None]
"""Compares ours with torch's for a shape, a number of keys and about so many seconds; None where
that is too large to try."""


def shapes_of(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> list[AttentionShape]:
    """Return each shape of attention in a model's graphs that a kernel of ours could compute."""
    compilations = compilations_of(model, None)(*args, **(kwargs or {}))
    problems = [problem.own for one in compilations for problem in one.attentions.values()]
    return list(dict.fromkeys(shape_of(problem) for problem in problems if problem.is_static))


def calibrate_attentions(
    shapes: Iterable[AttentionShape],
    *,
    keys: Sequence[int] | None = None,
    seconds: float = 60.0,
    measure: Measure | None = None,
    save: bool = True,
    progress: Progress | None = None,
) -> AttentionTable:
    """Measure every shape over ``keys``, by default `MEASURED_KEYS`; the table with what won.

    Nothing else should run. Takes about ``seconds``. With ``save`` the table is stored where
    compilations look for it; what it had of other shapes stays. Raises ProblemError where there is
    nothing to measure, or no kernel of ours runs.
    """
    shapes = list(shapes)
    if not shapes:
        raise ProblemError(
            "There is no attention to measure.",
            where="overlapc calibrate --attention",
            remedy="give a model whose compiled graphs hold softmax attention of fixed sizes",
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if measure is None and not runs_kernels(device.type):
        raise ProblemError(
            "No kernel of ours runs here, so that none can be compared with torch's.",
            where=f"overlapc calibrate --attention on {device.type}",
            remedy="run it on the machine with the GPU, where torch finds both it and Triton",
        )
    counts = sorted(set(keys or MEASURED_KEYS))
    entries, share = [], seconds / (len(shapes) * len(counts))
    for index, shape in enumerate(shapes):
        if progress:
            progress(shape.text("~"), index / len(shapes))
        one = measure or _measure(device)
        found = (one(shape, count, share) for count in counts if count >= shape.rows)
        entries.append(AttentionEntry(shape, tuple(trial for trial in found if trial)))
    table = _known(device).with_entries(tuple(entries))
    if save:
        table.save(AttentionTable.path(table.machine))
    return table


def _measure(device: torch.device) -> Measure:
    def measure(shape: AttentionShape, keys: int, seconds: float) -> AttentionTrial | None:
        trials = AttentionTrials(shape, device)
        return trials.trial(keys, seconds) if trials.fits(keys) else None

    return measure


def _known(device: torch.device) -> AttentionTable:
    """What was measured before; nothing where that is of another version, and is replaced."""
    try:
        found = attention_table(device.type)
    except TargetError:
        found = None
    return found or AttentionTable(this_machine(device.type))


def describe(entry: AttentionEntry) -> str:
    """Return a shape and what was measured of it, as lines of text."""
    lines = [entry.problem.text("~")]
    for trial in entry.trials:
        gain = f"ours {trial.median:.2f}x [{trial.low:.2f}, {trial.high:.2f}]"
        if trial.tile in TRIED:
            gain += f" {TRIED[trial.tile]}"
        if trial.quarter_median:
            least, part = trial.quarter_low, trial.quarter_median
            gain += f", with a quarter kept {part:.2f}x (at least {least:.2f})"
        said = gain if trial.median else "no kernel of ours ran"
        mark = ", taken" if trial.is_won else ""
        lines.append(
            f"  {trial.keys:6} keys: torch {1e6 * trial.library_seconds:.1f} us; {said}{mark}"
        )
    return "\n".join(lines)
