"""What was measured and predicted of linear layers, as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from overlapc.planning.linear.regions import (
    Gain,
    LinearEntry,
    LinearProblem,
    LinearTrial,
    Prediction,
)

PREDICTED = "predicted in CUDA graphs, not measured"
LEGEND = (
    "~ is any number of rows; gemv and flat are generated kernels, and behind each is how many "
    "times as fast as the library it is likely to be [at worst, at best]. Below M1 rows gemv is "
    "the likely choice, from M1 to below M2 flat, and from M2 on the library."
)
"""What the lines of a prediction mean."""
MEASURED_LEGEND = (
    "~ is any number of rows. gemv and flat are generated kernels, or on a processor other ways to "
    "call the library; behind each is how many times as fast as the library's own call it was "
    "[95 % interval]. By the op: the library, called as a layer that is rewritten calls it."
)
"""What the lines of a measured layer mean."""
PACKED = (
    "not a candidate: Inductor's C++ templates and the packed layers of oneDNN and MKL read a copy "
    "of the weight, which would not see it change in place. Where none changes, "
    "torch._inductor.config.freezing with max_autotune, set before the first call, has Inductor "
    "choose among them."
)
"""What calibration says of a processor."""


def describe_entry(entry: LinearEntry) -> str:
    """A problem, its regions, and what was measured, beside what was predicted."""
    lines = [f"{entry.problem.text('~')}: {_regions(entry)}"]
    predicted = entry.predicted
    if predicted:
        lines.append(f"  {PREDICTED}, for {predicted.target}: {predicted.regions}")
    for trial in entry.trials:
        said = f"library {1e6 * trial.library_seconds:.1f} us; "
        said += _listed(trial.gains) or "nothing else ran"
        said += f"; launched one by one {_listed(trial.launched)}" if trial.launched else ""
        said += f"; by the op {_listed((trial.by_op,))}" if trial.by_op else ""
        if before := predicted.trial(trial.rows) if predicted else None:
            said += f"; predicted {_likely(before)}"
        lines.append(f"  {trial.rows:3} rows: {said}")
    return "\n".join(lines)


def describe_prediction(problem: LinearProblem, prediction: Prediction) -> str:
    """A problem, M1 and M2, and what is likely at each row count, within its bounds."""
    its = prediction.regions
    lines = [
        f"problem  {problem.text('~')}",
        f"target   {prediction.target}",
        f"regions  {its} ({PREDICTED})",
    ]
    if not its.is_empty:
        lines.append(f"         M1 = {its.flat_from}, M2 = {its.library_from}")
    lines += [
        f"  {trial.rows:3} rows: library {1e6 * trial.library_seconds:.1f} us; "
        f"{_listed(trial.gains) or 'nothing else is there'}"
        for trial in prediction.trials
    ]
    lines.append(LEGEND)
    return "\n".join(lines)


def _regions(entry: LinearEntry) -> str:
    if entry.launched is None or entry.launched == entry.regions:
        return str(entry.regions)
    return f"in CUDA graphs {entry.regions}; launched one by one {entry.launched}"


def _likely(trial: LinearTrial) -> str:
    gains = [f"{gain.implementation} {gain.median:.2f}x" for gain in trial.gains]
    return ", ".join([f"library {1e6 * trial.library_seconds:.1f} us", *gains])


def _listed(gains: Sequence[Gain]) -> str:
    return ", ".join(
        f"{g.implementation} {g.median:.2f}x [{g.low:.2f}, {g.high:.2f}]" for g in gains
    )
