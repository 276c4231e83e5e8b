"""Calibration of attention: which shapes, how many keys, what is stored."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from overlapc import cli
from overlapc.cli import callables
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.errors import ProblemError
from overlapc.planning.attention.table import (
    MEASURED_KEYS,
    AttentionEntry,
    AttentionShape,
    AttentionTable,
    AttentionTrial,
)
from overlapc.runtime.attention import trials as attention_trials
from overlapc.runtime.attention.trials import AttentionTrials
from overlapc.runtime.machine import this_machine
from overlapc.tuning.attention import calibrate_attentions, describe, shapes_of

pytestmark = pytest.mark.usefixtures("private")

SHAPE = AttentionShape(1, 4, 2, 1, 16, 16, "float32", "length")


def decode_and_inputs():
    """A token over a static cache, and another attention without a mask."""

    def function(q, k, v, offset):
        mask = torch.arange(64)[None, None, None] <= (torch.arange(1) + offset)[:, None]
        first = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return first + F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    q, k = torch.randn(1, 4, 1, 16), torch.randn(1, 2, 64, 16)
    return function, (q, k, torch.randn(1, 2, 64, 16), torch.tensor(5))


def test_each_shape_is_measured_once_at_every_number_of_keys():
    asked = []

    def measure(shape, keys, seconds):
        asked.append((shape.mask, keys))
        assert seconds == pytest.approx(18 / (2 * len(MEASURED_KEYS)))
        return None if keys > 4096 else AttentionTrial(keys, 1e-5, 1.5, 1.5, 1.5)

    table = calibrate_attentions(shapes_of(*decode_and_inputs()), seconds=18, measure=measure)
    assert asked == [(mask, keys) for mask in ("length", "nothing") for keys in MEASURED_KEYS]
    assert table.entries[0].problem == SHAPE
    assert [trial.keys for trial in table.entries[0].trials] == [512, 1024, 2048, 4096]
    machine = this_machine("cpu")
    assert AttentionTable.load(AttentionTable.path(machine), machine) == table


def test_a_latent_cache_is_measured_as_one():
    """Mutant: shapes of what torch's attention would be given."""

    def function(q, q_pe, c, k_pe, offset):
        mask = torch.arange(64)[None, None, None] <= (torch.arange(1) + offset)[:, None]
        scores = (q @ c.mT + q_pe @ k_pe.mT) * 0.1
        return scores.where(mask, float("-inf")).softmax(-1) @ c

    queries = [torch.randn(1, 4, 1, size) for size in (32, 16)]
    cache = [torch.randn(1, 1, 64, size) for size in (32, 16)]
    (shape,) = shapes_of(function, (*queries, *cache, torch.tensor(5)))
    assert shape == AttentionShape(1, 4, 4, 1, 48, 32, "float32", "length", is_latent=True)
    assert shape.text("~") == "1x4/1x1x~x48/32 float32, mask: length, keys begin with values"


def test_a_shape_that_is_measured_again_is_replaced():
    def at(low):
        return lambda shape, keys, seconds: AttentionTrial(keys, 1e-5, low, low, low)

    shapes = shapes_of(*decode_and_inputs())
    calibrate_attentions(shapes, keys=(512,), measure=at(1.5))
    table = calibrate_attentions(shapes[:1], keys=(512,), measure=at(0.5))
    won = {entry.problem.mask: entry.trials[0].is_won for entry in table.entries}
    assert won == {"nothing": True, "length": False}


SIZES = {"apart": (2, 4, 2, 3, 16, 16), "latent": (2, 4, 2, 3, 24, 16)}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mask", ["length", "given", "nothing"])
def test_a_trial_compares_both_on_other_keys_each(mask, sizes, monkeypatch):
    """What no kernel computes is not taken for ours: it would be torch against torch.

    Mutants: of a latent cache, products without the mask; with groups and rows exchanged; ours
    given the beginnings of keys for their rest.
    """
    monkeypatch.setattr(attention_trials, "COLD_BYTES", 1)
    seen = []

    def clock(run, operands):
        assert len({one[1].data_ptr() for one in operands}) == len(operands) > 1
        tile = getattr(run, "keywords", {}).get("tile", "library")
        seen.append(tile)
        results.append(run(operands[0]))
        return lambda: {"library": 3.0, "planned": 2.0}[tile]

    shape = AttentionShape(*SIZES[sizes], "float32", mask, sizes == "latent")
    results: list[torch.Tensor] = []
    trials = AttentionTrials(shape, torch.device("cpu"), clock)
    found = trials.trial(40, 1.0)
    assert set(seen) == {"library"}
    assert (found.low, found.median, found.high) == (0.0, 0.0, 0.0)
    monkeypatch.setattr(AttentionTrials, "_runs_own", lambda self, *given: True)
    results.clear()
    found = trials.trial(40, 1.0)
    assert (found.low, found.median, found.library_seconds) == (1.5, 1.5, 3.0)
    torch.testing.assert_close(results[0], results[1])  # the first two run both on one operand
    assert found.quarter_low == found.quarter_median == (1.5 if mask == "given" else 0.0)


@pytest.mark.parametrize("best", ["planned", "many_rows", "few_rows"])
def test_the_fastest_tile_is_kept(best, monkeypatch):
    """And a quarter of the keys is compared in it alone. Mutants: the first; the last; all."""
    monkeypatch.setattr(attention_trials, "COLD_BYTES", 1)
    beside = ["few_rows", "many_rows"]
    monkeypatch.setattr(attention_trials, "tiles_beside", lambda *given, **named: beside)
    monkeypatch.setattr(AttentionTrials, "_runs_own", lambda self, *given: True)
    specs: list[str] = []

    def attention(*given):
        specs.append(AttentionSpec.parse(given[-2]).tile)
        return given[0], None

    monkeypatch.setattr(torch.ops.overlapc, "attention", attention)

    def clock(run, operands):
        tile = getattr(run, "keywords", {}).get("tile", "library")
        if tile != "library":
            run(operands[0])
        return lambda: 1.0 if tile == best else 2.0

    shape = AttentionShape(*SIZES["apart"], "float32", "given")
    found = AttentionTrials(shape, torch.device("cpu"), clock).trial(40, 1.0)
    assert (found.tile, found.median, found.quarter_median) == (best, 2.0, 2.0)
    assert specs == ["planned", "few_rows", "many_rows", best, best]


def test_the_fastest_of_equal_tiles_is_not_taken_to_be_faster(monkeypatch):
    """Simulated: three tiles exactly as fast as torch's. By the bounds of a sign test one of 40 is
    surely faster. Mutant: the times by which a tile was chosen, which are 1.02 times as good."""
    monkeypatch.setattr(attention_trials, "COLD_BYTES", 1)
    beside = ["few_rows", "many_rows"]
    monkeypatch.setattr(attention_trials, "tiles_beside", lambda *given, **named: beside)
    monkeypatch.setattr(AttentionTrials, "_runs_own", lambda self, *given: True)
    chance = random.Random(0)

    def clock(run, operands):
        return lambda: chance.lognormvariate(0.0, 0.1)

    trials = AttentionTrials(AttentionShape(*SIZES["apart"], "float32", "nothing"),
                             torch.device("cpu"), clock)  # fmt: skip
    found = [trials.trial(8, 1e9) for _ in range(400)]
    surely = sum(one.low > 1.0 for one in found)
    assert surely <= 10, f"{surely} of {len(found)} are surely faster"
    assert sum(one.median for one in found) / len(found) == pytest.approx(1.0, abs=0.01)


def test_a_tile_of_which_no_kernel_runs_is_not_compared(monkeypatch):
    """Mutant: the first kernel speaks for all, and torch is measured as ours."""
    monkeypatch.setattr(attention_trials, "COLD_BYTES", 1)
    monkeypatch.setattr(attention_trials, "tiles_beside", lambda *given, **named: ["many_rows"])
    monkeypatch.setattr(
        AttentionTrials, "_runs_own", lambda self, operands, tile: tile == "planned"
    )
    shape = AttentionShape(*SIZES["apart"], "float32", "nothing")
    seconds = {"library": 1.0, "planned": 1.0, "many_rows": 0.5}

    def clock(run, operands):
        return lambda: seconds[getattr(run, "keywords", {}).get("tile", "library")]

    found = AttentionTrials(shape, torch.device("cpu"), clock).trial(40, 1.0)
    assert (found.tile, found.median) == ("planned", 1.0)


def test_a_mask_that_is_given_keeps_all_keys_and_then_a_quarter(monkeypatch):
    """Mutant: as many both times."""
    monkeypatch.setattr(attention_trials, "COLD_BYTES", 1)
    kept = []

    def clock(run, operands):
        kept.append(operands[0][3][..., -1, :].sum().item())
        return lambda: 1.0

    shape = AttentionShape(*SIZES["apart"], "float32", "given")
    monkeypatch.setattr(AttentionTrials, "_runs_own", lambda self, *given: True)
    AttentionTrials(shape, torch.device("cpu"), clock).trial(40, 1.0)
    assert set(kept) == {40, 10}
    assert kept[0] == 40


def test_too_many_keys_are_not_tried():
    trials = AttentionTrials(AttentionShape(64, 32, 1, 1, 128, 128, "float16", "length"),
                             torch.device("cpu"))  # fmt: skip
    assert trials.fits(1024)
    assert not trials.fits(131072)


def test_a_model_without_attention_is_said_to_have_none():
    with pytest.raises(ProblemError, match="no attention"):
        calibrate_attentions(shapes_of(torch.sin, (torch.randn(3),)))


def test_where_no_kernel_runs_nothing_is_measured(monkeypatch, capsys):
    """Mutants: no such check; one that a measure of one's own does not pass."""
    monkeypatch.setattr("overlapc.tuning.attention.runs_kernels", lambda device: False)
    monkeypatch.setattr(AttentionTrials, "trial", lambda *given: pytest.fail("measured"))
    monkeypatch.setattr(callables, "load", lambda given: decode_and_inputs)
    assert cli.main(["calibrate", "--attention", "a:model"]) != 0
    assert "the machine with the GPU" in capsys.readouterr().err
    assert not AttentionTable.path(this_machine("cpu")).exists()
    trial = AttentionTrial(512, 1e-5, 1.1, 1.2, 1.3)
    assert calibrate_attentions([SHAPE], keys=(512,), measure=lambda *_: trial, save=False).entries


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_cpu_without_the_interpreter_runs_no_kernel():
    with pytest.raises(ProblemError, match="No kernel of ours runs here"):
        calibrate_attentions([SHAPE], keys=(64,), save=False)


def test_the_command_measures_stores_and_prints(monkeypatch, capsys):
    """Where kernels should run, but this one does not."""
    monkeypatch.setattr("overlapc.tuning.attention.runs_kernels", lambda device: True)
    monkeypatch.setattr("overlapc.tuning.attention.MEASURED_KEYS", (64, 128))
    monkeypatch.setattr(attention_trials, "COLD_BYTES", 1)
    name = f"{__name__}:decode_and_inputs"
    monkeypatch.setattr(
        callables, "load", lambda given: decode_and_inputs if given == name else None
    )
    assert cli.main(["calibrate", "--attention", name, "--seconds", "0.1"]) == 0
    said = capsys.readouterr().out
    assert str(AttentionTable.path(this_machine("cpu"))) in said
    assert "1x4/2x1x~x16 float32, mask: length" in said
    assert "128 keys: torch" in said
    assert "no kernel of ours ran" in said


def test_a_description_tells_what_is_taken():
    trial = AttentionTrial(512, 1e-5, 1.1, 1.2, 1.3)
    table = calibrate_attentions([SHAPE], keys=(512,), measure=lambda *_: trial, save=False)
    assert describe(table.entries[0]).splitlines()[1].strip() == (
        "512 keys: torch 10.0 us; ours 1.20x [1.10, 1.30], taken"
    )
    part = replace(trial, low=0.5, quarter_low=2.0, quarter_median=3.0)
    table = calibrate_attentions([SHAPE], keys=(512,), measure=lambda *_: part, save=False)
    assert "with a quarter kept 3.00x (at least 2.00), taken" in describe(table.entries[0])
    tried = AttentionEntry(SHAPE, (replace(trial, tile="values_behind"),))
    assert "[1.10, 1.30] with values a tile behind keys, taken" in describe(tried)
