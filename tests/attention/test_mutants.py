"""Checks of the matcher taken out one by one: what is then rewritten wrongly, the tests see."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from overlapc.graphs.attention import matching, problems, rewriting, weights
from overlapc.graphs.attention.masks import combined as masks
from overlapc.graphs.attention.products import repeats
from overlapc.graphs.attention.reading.spelling import Call
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores import upward as scores
from overlapc.passes import rewrite_attention
from tests.attention import test_autocast, test_catalogue

real_step = scores._step
real_constant = masks._constant
real_problem = problems.problem_of


def through(node_name):
    """A step that takes a function of scores for nothing."""

    def step(walk, call):
        return call.get("input") if call.name == node_name else real_step(walk, call)

    return step


def off_by_one(versions, parts, dtype):
    said = real_constant(versions, parts, dtype)
    if said is None or said.ndim < 2:
        return said
    n = said.shape[-1]
    return torch.zeros(n, n).masked_fill(torch.ones(n, n).triu(1).bool(), -math.inf)


def nothing(*arguments, **named):
    return None


def current(self, reader, source):
    return source


def never(*arguments, **named):
    return ()


def as_it_was(graph, result, mask):
    return result


def untrained(found, *rest):
    return replace(real_problem(found, *rest), is_trained=False)


def any_repeat(versions, call: Call, dim):
    return (repeats.as_it_stands(versions, call.node, call.get("input")), 2)


REWRITES = test_catalogue.test_rewritten
LEAVES = test_catalogue.test_left_as_it_is

MUTANTS: dict[str, tuple[ModuleType | type, str, Callable, Callable, Any]] = {
    "soft-cap passed over": (scores, "_step", through("tanh"), LEAVES, "soft_cap"),
    "every constant mask is causal": (
        masks,
        "_constant",
        off_by_one,
        REWRITES,
        "causal_off_by_one",
    ),
    "dead rows are zeros": (rewriting, "_poisoned", as_it_was, REWRITES, "filled"),
    "dead rows differ in a sum of masks": (
        rewriting,
        "_poisoned",
        as_it_was,
        REWRITES,
        "infinite",
    ),
    "weak fills are masks": (masks, "_why_untold", nothing, LEAVES, "filled_weakly"),
    "scores are read by nobody": (matching, "_why_not_alone", nothing, LEAVES, "scores_read"),
    "every dtype will do": (matching, "_why_not_range", nothing, LEAVES, "narrowed"),
    "every product will do": (
        matching,
        "_why_not_dtypes",
        nothing,
        test_autocast.test_an_autocast_that_is_not_read,
        test_autocast.eager,
    ),
    "operands never change": (Versions, "changes", never, LEAVES, "keys_change"),
    "nothing writes in place": (Versions, "read", current, REWRITES, "written_and_ignored"),
    "nobody reads strides": (matching, "layout_is_read", never, REWRITES, "viewed_result"),
    "gradients of dead rows": (
        rewrite_attention,
        "problem_of",
        untrained,
        test_catalogue.test_no_gradient_is_taken_where_a_row_may_keep_no_key,
        "additive",
    ),
    "repeat is repeat_interleave": (repeats, "_source", any_repeat, REWRITES, "repeated_otherwise"),
    "weights may change": (weights, "_why_changed", nothing, LEAVES, "weights_masked"),
    "dropout is idle": (weights, "_why_changed", nothing, LEAVES, "dropped"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_check_that_is_not_made_shows(name, monkeypatch):
    where, what, mutant, test, case = MUTANTS[name]
    monkeypatch.setattr(where, what, mutant)
    with pytest.raises((AssertionError, RuntimeError)):
        test(case)
