"""One layer at one row count: compiled in every way, checked and timed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._inductor import config as inductor_config

import overlapc
from benchmarks.linear.layers import Case, Layers
from benchmarks.linear.rows import (
    AGAIN,
    INDUCTOR,
    OVERLAPC,
    OVERLAPC_VARYING,
    TUNED,
    VARYING,
    LinearRow,
)
from benchmarks.measuring.paired import Alone, Samples, measure
from overlapc.planning.linear.table import LinearTable
from overlapc.tuning.linear import calibrate_linears, layers_of

VARYING_ROWS = (2, 8, 64, 128)
"""Where graphs of any row count are compiled as well."""
FEWEST_ROUNDS, MOST_ROUNDS = 15, 100
EVERYTHING = {"max_autotune": True, "freezing": True}
"""Inductor has C++ templates only for weights that are frozen."""

Call = Callable[[], Any]


def calibrated(case: Case, seconds: float) -> LinearTable:
    """Measure the case's layer, and remember it with those before."""
    return calibrate_linears(layers_of(Layers(case, 1), (case.x(8),)), seconds=seconds)


def compiled(model: nn.Module, x: torch.Tensor, **choices: Any) -> Call:
    """A call of the model as compiled with these choices of ``torch.compile``, warm.

    Dynamo keeps those of other choices beside, for it tells them apart. Options are set while it
    traces as well: only so does it take weights for constants, which may be frozen.
    """
    run = torch.compile(model, **choices)
    with inductor_config.patch(choices.get("options", {})):
        run(x)
    return lambda: run(x)


def candidates(model: nn.Module, x: torch.Tensor, *, tunes: bool) -> dict[str, Call]:
    """A warm call for each way to compile the model for these rows."""
    torch._dynamo.reset()
    rows = len(x)
    inductor = compiled(model, x, dynamic=False)
    found = {INDUCTOR: inductor, AGAIN: inductor}
    found[OVERLAPC] = compiled(model, x, backend="overlapc", dynamic=False)
    if rows in VARYING_ROWS:
        found[VARYING] = compiled(model, x, dynamic=True)
        found[OVERLAPC_VARYING] = compiled(model, x, backend="overlapc", dynamic=True)
    if tunes:
        found[TUNED] = compiled(model, x, dynamic=False, options=EVERYTHING)
    return found


def timed(found: dict[str, Call], seconds: float) -> Samples:
    """Rounds of about ``seconds`` in total."""
    for call in found.values():
        call()
    start = time.perf_counter()
    for call in found.values():
        call()
    once = time.perf_counter() - start
    rounds = max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / once)))
    return measure(found, Alone(), rounds=rounds, seed=0)


def decided(model: nn.Module, x: torch.Tensor, *, dynamic: bool) -> str:
    """What overlapc does with each of the layers: ``rewritten [measured]``."""
    sites = overlapc.explain(model, dynamic=dynamic)(x).sites
    return ", ".join(dict.fromkeys(f"{site.decision} [{site.code}]" for site in sites))


def error_of(model: Layers, x: torch.Tensor, call: Call) -> float:
    """Of the first layer's values in a call, relative to the largest, against float64."""
    layer = copy.deepcopy(model.layers[0]).double()
    (first, *_), right = call(), model.after(layer(x.double()))
    return float((first.double() - right).abs().max() / right.abs().max())


def measured(case: Case, model: Layers, rows: int, seconds: float, *, tunes: bool) -> LinearRow:
    """Compile and time one layer at one row count."""
    x = case.x(rows)
    one = Layers(case, 1)
    decision = decided(one, x, dynamic=False)
    varying = decided(one, x, dynamic=True) if rows in VARYING_ROWS else ""
    found = candidates(model, x, tunes=tunes)
    error = max(error_of(model, x, call) for name, call in found.items() if OVERLAPC in name)
    read = case.weights * case.bytes
    times = timed(found, seconds)
    return LinearRow(str(case), rows, case.weights, read, times, decision, varying, error)
