"""Where a kernel of our own is taken on a GPU: by a table of this machine, else by bytes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from overlapc.errors import TargetError
from overlapc.planning.attention.choice import (
    LEAST_PREDICTED,
    decide_on_gpu,
    library_bytes,
    own_bytes,
)
from overlapc.planning.attention.problem import AttentionProblem
from overlapc.planning.attention.softmax import HeadScores, SiteScores
from overlapc.planning.attention.table import (
    AttentionEntry,
    AttentionTable,
    AttentionTrial,
    shape_of,
)
from overlapc.planning.tables import Machine

LLAMA = AttentionProblem(
    batch=1,
    heads=32,
    groups=4,
    rows=1,
    keys=8192,
    head_dim=128,
    value_dim=128,
    dtype="bfloat16",
    device="cuda",
    mask="given",
    is_fused=True,
    prefix=True,
    runs_kernels=True,
    multiprocessors=132,
    splits=16,
)
"""One token over a static cache, on an H100."""
LATENT = replace(
    LLAMA, batch=32, heads=128, groups=128, head_dim=576, value_dim=512, is_fused=False,
    is_latent=True,
)  # fmt: skip
DEEPSEEK = replace(LATENT, head_dim=512, is_latent=False, prefix=False, latent=LATENT, splits=0)
"""Its graph adds two products, of which one looks like a mask."""
HERE = Machine("cuda", "some GPU, 132 SMs", "torch 2")


def trial(keys, low, median=None):
    return AttentionTrial(keys, 1e-4, low, median or low, (median or low) + 0.5)


def table(*trials, problem=LLAMA):
    return AttentionTable(HERE, (AttentionEntry(shape_of(problem), trials),))


def test_a_static_cache_is_worth_a_trial_for_the_copies_that_a_mask_costs():
    verdict = decide_on_gpu(LLAMA, None)
    assert (verdict.decision, verdict.code) == ("kept", "predicted")
    assert "calibrate --attention tries it" in verdict.reason
    assert "copies each head of keys 4 times" in verdict.reason
    assert "leaves 100 of 132 multiprocessors idle" in verdict.reason


LEFT = {
    "no mask": {"mask": "nothing", "prefix": False},
    "many heads that share nothing": {"groups": 1, "batch": 8},
    "a small cache": {"keys": 64, "groups": 1},
}


@pytest.mark.parametrize("name", LEFT)
def test_where_bytes_speak_for_neither_torchs_stays(name):
    problem = replace(LLAMA, **LEFT[name])
    assert library_bytes(problem) / own_bytes(problem) < LEAST_PREDICTED
    verdict = decide_on_gpu(problem, None)
    assert (verdict.decision, verdict.code) == ("kept", "library")
    assert "worth while from 1.5 on" in verdict.reason


@pytest.mark.parametrize("change", [{"splits": 0, "rows": 512}, {"varying": ("keys",)}], ids=str)
def test_what_is_not_predicted_stays(change):
    assert decide_on_gpu(replace(LLAMA, **change), None).code == "not_measured"


@pytest.mark.parametrize(
    "change", [{"is_trained": True}, {"is_mask_trained": True}, {"runs_kernels": False}], ids=str
)
def test_what_no_kernel_of_ours_computes_or_is_trained_is_decided_as_ever(change):
    for known in (None, table(trial(8192, 2.0))):
        verdict = decide_on_gpu(replace(LLAMA, **change), known)
        assert (verdict.decision, verdict.code) == ("kept", "fused_already")


@pytest.mark.parametrize("problem", [LLAMA, DEEPSEEK], ids=["plain", "latent"])
def test_the_tile_that_was_measured_is_taken(problem):
    """And what is predicted of another is not said. Mutants: neither; of a latent cache neither."""
    known = replace(trial(8192, 1.5), tile="many_rows")
    problem = replace(problem, reads=8, latent=problem.latent and replace(problem.latent, reads=8))
    verdict = decide_on_gpu(problem, table(known, problem=problem.own))
    assert (verdict.code, verdict.tile) == ("measured", "many_rows")
    assert "in CTAs of the most rows" in verdict.reason
    assert "splits" not in verdict.reason
    assert "times," not in verdict.reason
    planned = decide_on_gpu(problem, table(trial(8192, 1.5), problem=problem.own))
    assert planned.tile == "planned"
    assert "decode, 16 splits, each key read 8 times" in planned.reason


@pytest.mark.parametrize(("redone", "phi", "tile"), [
    (0, 1.5, "values_behind"), (0, None, "planned"), (9, None, "planned"),
])  # fmt: skip
def test_values_stay_behind_keys_where_phi_is_known_before(redone, phi, tile):
    """A kernel has no such tile beside maxima of rows, or of first keys, so no reason says it.
    Mutants: either takes it; nobody does."""
    head = HeadScores(100, -3.0, 4.0, (-2.0, 0.5, 3.5), phi, 0.0, redone)
    scores = SiteScores("layers.0", "a head", (head,))
    plain = replace(
        LLAMA, mask="nothing", prefix=False, rows=8192, splits=0, is_fused=True, prompts=scores
    )
    won = table(replace(trial(8192, 1.5), tile="values_behind"), problem=plain)
    verdict = decide_on_gpu(plain, won)
    assert (verdict.decision, verdict.tile) == ("rewritten", tile)
    assert ("a tile behind" in verdict.reason) == (tile == "values_behind")


def test_a_measurement_counts_whatever_is_predicted():
    loses = table(trial(8192, 1.01, 1.3))
    assert decide_on_gpu(LLAMA, loses).code == "library"
    plain = replace(LLAMA, mask="nothing", prefix=False)
    wins = table(trial(8192, 1.02, 1.3), problem=plain)
    verdict = decide_on_gpu(plain, wins)
    assert (verdict.decision, verdict.code, verdict.policy) == ("rewritten", "measured", "zero")
    assert "Measured here: 1.30 times" in verdict.reason


@pytest.mark.parametrize("change", [{"batch": 2}, {"rows": 2}, {"prefix": False}, {"groups": 8}])
def test_a_measurement_is_of_one_shape(change):
    other = replace(LLAMA, **change)
    assert decide_on_gpu(other, table(trial(8192, 1.0))).code != "library"
    assert decide_on_gpu(LLAMA, table(trial(8192, 1.0))).code == "library"


@pytest.mark.parametrize(("low", "code"), [(1.5, "measured"), (0.9, "library")])
def test_a_latent_cache_is_chosen_by_a_measurement_of_such(low, code):
    """Mutants: the shape is that of values alone; it forgets that keys begin with values."""
    measured = table(trial(8192, low), problem=LATENT)
    verdict = decide_on_gpu(DEEPSEEK, measured)
    assert verdict.code == code
    assert verdict.reads_latent == (code == "measured")
    assert "products of the graph" in verdict.reason
    apart = table(trial(8192, low), problem=replace(LATENT, is_latent=False))
    assert decide_on_gpu(DEEPSEEK, apart).code == "predicted"


def test_a_latent_cache_is_worth_a_trial_where_it_is_large():
    """Mutant: the products are said to read values with keys."""
    assert decide_on_gpu(DEEPSEEK, None).code == "predicted"
    small = replace(LATENT, batch=1)
    verdict = decide_on_gpu(replace(DEEPSEEK, latent=small), None)
    assert (verdict.decision, verdict.code) == ("kept", "library")
    many = replace(DEEPSEEK, latent=None, rows=512)
    assert decide_on_gpu(many, None).code == "not_measured"


@pytest.mark.parametrize(
    "change",
    [{"untold": ("score_function", "It is capped.")}, {"varying": ("keys",)}],
    ids=str,
)
def test_a_latent_cache_that_no_trial_is_of_is_not_measured(change):
    """Mutant: it is measured whatever is done to its scores."""
    changed = replace(DEEPSEEK, latent=replace(LATENT, **change))
    assert decide_on_gpu(changed, table(trial(8192, 1.5), problem=LATENT)).code != "measured"


def test_torchs_attention_on_a_latent_cache_is_not_what_was_timed():
    """Mutant: the trial's rival, products of a graph, stands for it."""
    changed = replace(DEEPSEEK, is_fused=True, latent=replace(LATENT, is_fused=True))
    measured = table(trial(8192, 1.5), problem=LATENT)
    assert decide_on_gpu(changed, measured) == decide_on_gpu(changed, None)
    assert decide_on_gpu(changed, measured).code != "measured"


def test_a_latent_cache_is_no_such_with_gradients_of_its_mask():
    """Mutant: only those of keys count."""
    trained = replace(DEEPSEEK, latent=replace(LATENT, is_mask_trained=True))
    assert trained.own is trained


def test_what_torch_cannot_be_told_was_not_measured_against_it():
    capped = replace(LLAMA, is_fused=False, untold=("score_function", "It is capped."))
    for known in (table(trial(8192, 2.0)), None):
        verdict = decide_on_gpu(capped, known)
        assert (verdict.decision, verdict.code) == ("refused", "score_function")


def test_between_two_numbers_of_keys_both_have_to_be_won():
    entry = AttentionEntry(shape_of(LLAMA), (trial(1024, 1.0), trial(4096, 2.0), trial(16384, 1.5)))
    at = {keys: entry.gain_at(keys) for keys in (512, 1024, 2048, 4096, 8192, 16384, 20000)}
    won = {keys: found and found.median for keys, found in at.items()}
    assert won == {512: None, 1024: None, 2048: None, 4096: 2.0, 8192: 1.5, 16384: 1.5, 20000: None}


def test_between_two_numbers_of_keys_one_tile_has_to_have_won_at_both():
    """Of CTAs of many rows that begin slowly, and of few rows that read keys again, each loses to
    torch's where the other wins. Mutant: whichever won by less."""
    once = {"library": 1.0, "many_rows": 2.0, "few_rows": 0.0}
    each = {"library": 1e-3, "many_rows": 0.5e-3, "few_rows": 1.25e-3}

    def measured(keys):
        took = {name: once[name] + keys * each[name] for name in once}
        best = min("many_rows", "few_rows", key=took.__getitem__)
        return replace(trial(keys, took["library"] / took[best]), tile=best), took

    entry = AttentionEntry(shape_of(LLAMA), (measured(512)[0], measured(16384)[0]))
    assert [one.tile for one in entry.trials] == ["few_rows", "many_rows"]
    assert all(one.is_won for one in entry.trials)
    for keys in (512, 1024, 4096, 8192, 16384):
        found, took = entry.gain_at(keys), measured(keys)[1]
        assert found is None or took[found.tile] < took["library"], f"slower at {keys}"
    assert entry.gain_at(512)
    assert entry.gain_at(16384)


MASKED = replace(LLAMA, prefix=False, is_kept_by_mask=True)
QUARTERS = {
    "faster over a quarter, and as fast over all": (0.98, 2.0, True),
    "surely slower over all": (0.4, 3.0, False),
    "over neither": (0.98, 1.01, False),
    "over all": (1.5, 0.0, True),
}


@pytest.mark.parametrize("name", QUARTERS)
def test_a_mask_may_keep_a_quarter_of_the_keys(name):
    """Mutants: only all keys count; only a quarter does."""
    low, quarter, is_won = QUARTERS[name]
    one = replace(trial(8192, low), quarter_low=quarter, quarter_median=quarter)
    verdict = decide_on_gpu(MASKED, table(one, problem=MASKED))
    assert (verdict.code == "measured") == is_won
    assert ("where its mask keeps a quarter" in verdict.reason) == (is_won and quarter > 0)


def test_a_cache_that_a_mask_leaves_keys_out_of_is_worth_a_trial_sooner():
    """Mutant: all keys are taken to be read."""
    alone = replace(MASKED, groups=1, batch=8)
    assert decide_on_gpu(replace(alone, is_kept_by_mask=False), None).code == "library"
    assert decide_on_gpu(alone, None).code == "predicted"


def test_a_table_is_read_back_and_by_its_own_machine_only(tmp_path):
    kept = table(trial(512, 1.5), trial(1024, 0.0))
    kept.save(tmp_path / "of.json")
    assert AttentionTable.load(tmp_path / "of.json", HERE) == kept
    with pytest.raises(TargetError, match=r"attentions is of some GPU.*--attention"):
        AttentionTable.load(tmp_path / "of.json", replace(HERE, name="another GPU, 132 SMs"))


def test_a_table_from_before_latent_caches_still_speaks(tmp_path):
    """One of a later version is refused. Mutants: the field has no default; nothing is newer."""
    path = tmp_path / "of.json"
    table(trial(8192, 1.5)).save(path)
    stored = json.loads(path.read_text())
    for entry in stored["entries"]:
        del entry["problem"]["is_latent"]
        for one in entry["trials"]:
            del one["quarter_low"], one["quarter_median"], one["tile"]
    path.write_text(json.dumps(stored | {"overlapc_attention": 1}))
    before = AttentionTable.load(path, HERE)
    assert decide_on_gpu(LLAMA, before).code == "measured"
    assert decide_on_gpu(DEEPSEEK, before).code == "predicted"
    path.write_text(json.dumps(stored | {"overlapc_attention": 5}))
    with pytest.raises(TargetError, match="a newer overlapc wrote it"):
        AttentionTable.load(path, HERE)


def test_a_trial_is_of_a_tile_that_a_spec_may_name():
    with pytest.raises(ValueError, match="a tile is one of planned, values_behind, few_rows"):
        replace(trial(512, 1.0), tile="large")


@pytest.mark.parametrize("trials", [(trial(512, 1.0), trial(512, 1.0)), (trial(2, 1), trial(1, 1))])
def test_trials_rise(trials):
    with pytest.raises(ValueError, match="rise"):
        AttentionEntry(shape_of(LLAMA), trials)


@pytest.mark.parametrize("change", [{"keys": 0}, {"low": 2.0}, {"library_seconds": 0.0}], ids=str)
def test_what_no_trial_says(change):
    with pytest.raises(ValueError, match="trial"):
        replace(trial(512, 1.0), **change)
