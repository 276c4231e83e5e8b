"""The table of linear layers: regions, their choice from measurements, files, and bounds."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlapc.codegen.linear.spec import LinearSpec
from overlapc.errors import TargetError
from overlapc.planning.linear.regions import (
    BYTES,
    FORCED,
    LEAST_GAIN,
    LIBRARY,
    MEASURED_ROWS,
    OURS,
    Gain,
    LinearEntry,
    LinearProblem,
    LinearTrial,
    Prediction,
    Regions,
    choose,
    entry_of,
    most_rows,
)
from overlapc.planning.linear.table import LinearTable
from overlapc.planning.linear.tiles import (
    CONFIGURATIONS,
    FLAT,
    GEMV,
    TILE_ROWS,
    LinearTile,
    most_counters,
    splits_for,
    tile_for,
)
from overlapc.planning.reasons import no_op_where_rows_vary
from overlapc.planning.tables import Machine

HERE = Machine("cuda", "NVIDIA H200, 132 SMs", "torch 2.13.0, triton 3.7.1")
PROBLEM = LinearProblem(4096, 14336, "bfloat16", epilogue="silu mul")


@st.composite
def gains(draw, implementation):
    low = draw(st.floats(0.5, 2.0))
    median = low * draw(st.floats(1.0, 1.2))
    return Gain(implementation, low, median, median * draw(st.floats(1.0, 1.2)))


@st.composite
def some_trials(draw):
    rows = draw(st.lists(st.sampled_from(MEASURED_ROWS), unique=True, max_size=len(MEASURED_ROWS)))

    def found():
        return tuple(draw(gains(way)) for way in OURS if draw(st.booleans()))

    is_launched = draw(st.booleans())
    return [LinearTrial(m, 1e-5, found(), found() if is_launched else None) for m in sorted(rows)]


regions = st.lists(st.integers(1, 80), min_size=3, max_size=3).map(lambda x: Regions(*sorted(x)))
problems = st.builds(
    LinearProblem,
    n=st.integers(1, 1 << 18),
    k=st.integers(1, 1 << 16),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    layout=st.sampled_from(["col", "row"]),
    weights=st.integers(1, 2),
    held=st.sampled_from(["", "int8"]),
    epilogue=st.sampled_from(["", "silu mul"]),
)
entries = st.builds(entry_of, problems, some_trials())


@given(regions)
def test_regions_come_in_one_order(its):
    order = [its.implementation(rows) for rows in range(1, 100)]
    changes = [b for a, b in zip([LIBRARY, *order], order, strict=False) if a != b]
    # Library, gemv, flat, library: each at most once, and none but the library twice.
    assert changes in ([], [GEMV, LIBRARY], [FLAT, LIBRARY], [GEMV, FLAT, LIBRARY])
    assert its.is_empty == (set(order) == {LIBRARY})


@pytest.mark.parametrize("wrong", [(0, 1, 1), (2, 1, 3), (1, 5, 4)], ids=str)
def test_regions_that_overlap_are_refused(wrong):
    with pytest.raises(ValueError, match="follow one another"):
        Regions(*wrong)


@settings(deadline=None)
@given(some_trials())
def test_what_is_chosen_has_won_wherever_it_was_measured(trials):
    found = choose(trials)
    for trial in trials:
        name = found.implementation(trial.rows)
        if name != LIBRARY:
            gain = trial.gain(name)
            assert gain is not None
            assert gain.low >= LEAST_GAIN
    measured = [trial.rows for trial in trials]
    assert found.is_empty or (found.gemv_from in measured and found.library_from - 1 in measured)


@settings(deadline=None)
@given(some_trials())
def test_without_a_repeatable_win_the_library_keeps_all(trials):
    wins = [gain for trial in trials for gain in trial.gains if gain.low >= LEAST_GAIN]
    assert choose(trials).is_empty == (not wins)


def trial(rows, gemv=None, flat=None):
    found = [(GEMV, gemv), (FLAT, flat)]
    return LinearTrial(
        rows, 1e-5, tuple(Gain(way, low, low, low) for way, low in found if low is not None)
    )


@pytest.mark.parametrize(
    ("trials", "wanted"),
    [
        ([], Regions()),
        ([trial(1, 1.0, 1.01), trial(2, 0.9, 0.9)], Regions()),
        ([trial(1, 1.5, 1.2), trial(2, 1.3, 1.3), trial(3, None, 1.1), trial(4, None, 0.9)],
         Regions(1, 2, 4)),
        ([trial(1, 1.0, 0.9), trial(2, 1.0, 1.2), trial(3, None, 1.2)], Regions(2, 2, 4)),
        # Nothing is said of rows that were not measured between two that were.
        ([trial(1, 1.5), trial(64, None, 1.5)], Regions(1, 2, 2)),
        ([trial(1, 1.5), trial(4, None, 1.5), trial(6, None, 1.5)], Regions(4, 4, 7)),
        # gemv after flat: flat goes on, as it has won too.
        ([trial(1, 1.1, 1.3), trial(2, 1.5, 1.2), trial(4, None, 1.0)], Regions(1, 1, 3)),
        # ... and ends where it has not: what gains more is taken.
        ([trial(1, 1.1, 1.3), trial(2, 1.5, 1.0)], Regions(2, 3, 3)),
        ([trial(1, 1.1, 1.6), trial(2, 1.5, 1.0)], Regions(1, 1, 2)),
        # Few rows that gain much, over more of them that gain little.
        ([trial(2, None, 2.0), trial(3, None, 1.9), trial(4, None, 1.0),
          trial(6, None, 1.2), trial(8, None, 1.2), trial(12, None, 1.2)], Regions(2, 2, 4)),
        ([trial(1, 1.1), trial(2, 1.1)], Regions(1, 3, 3)),
    ],
)  # fmt: skip
def test_chosen_regions(trials, wanted):
    assert choose(trials) == wanted


def test_a_low_end_below_the_gain_does_not_win():
    """The mutant that goes by medians takes it."""
    noisy = LinearTrial(1, 1e-5, (Gain(FLAT, 0.9, 1.5, 2.0),))
    assert choose([noisy]).is_empty


def test_a_host_that_launches_each_call_has_regions_of_its_own():
    """The mutant that takes those of CUDA graphs runs what a host launches too slowly."""
    gains = (Gain(FLAT, 1.5, 1.5, 1.5),)
    slow = (Gain(FLAT, 0.5, 0.5, 0.5),)
    trials = [LinearTrial(m, 1e-5, gains, gains if m > 1 else slow) for m in (1, 2, 3)]
    entry = entry_of(PROBLEM, trials)
    assert entry.regions_of(in_graphs=True) == Regions(1, 1, 4)
    assert entry.regions_of(in_graphs=False) == Regions(2, 2, 4)
    same = entry_of(PROBLEM, [replace(one, launched=None) for one in trials])
    assert same.regions_of(in_graphs=False) == Regions(1, 1, 4)
    none = entry_of(PROBLEM, [replace(one, gains=slow, launched=slow) for one in trials])
    assert (entry.is_empty, none.is_empty) == (False, True)


@settings(deadline=None)
@given(some_trials(), st.data())
def test_rows_may_vary_only_where_the_op_costs_nothing_for_sure(trials, data):
    """The most rows stand for all above. Mutants: rows that ours compute count, or the most do not;
    what was not measured costs nothing; the median decides."""
    asked = [replace(t, by_op=data.draw(st.none() | gains(LIBRARY))) for t in trials]
    entry = entry_of(PROBLEM, asked)
    most = max((t.rows for t in asked), default=0)
    left = [
        t.by_op for t in asked if entry.regions.implementation(t.rows) == LIBRARY or t.rows == most
    ]
    why = no_op_where_rows_vary(entry)
    if any(gain is not None and gain.high < 1 for gain in left):
        assert why is not None
        assert why.code == "op_slower"
        assert str(entry.regions) in why.text
    elif None in left:
        assert why is not None
        assert why.code == "op_not_measured"
        assert "calibrate --linear" in why.text
    else:
        assert why is None


def test_a_table_of_an_older_format_is_read_without_what_it_lacks(tmp_path):
    path = tmp_path / "table.json"
    entry = LinearEntry(PROBLEM, Regions(1, 1, 2), (LinearTrial(8, 1e-5, ()),))
    LinearTable(HERE, (entry,)).save(path)
    content = json.loads(path.read_text())
    content["overlapc_linear"] = 4
    del content["entries"][0]["trials"][0]["by_op"]
    path.write_text(json.dumps(content))
    (read,) = LinearTable.load(path, HERE).entries
    assert read == entry
    why = no_op_where_rows_vary(read)
    assert why is not None
    assert why.code == "op_not_measured"


@settings(deadline=None, max_examples=30)
@given(st.lists(entries, unique_by=lambda entry: entry.problem, max_size=3))
def test_a_table_is_read_back(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("tables") / "table.json"
    table = LinearTable(HERE, tuple(found))
    table.save(path)
    read = LinearTable.load(path, HERE)
    assert read == table
    assert read.fingerprint == table.fingerprint
    assert all(read.entry(entry.problem) == entry for entry in found)


def test_the_fields_of_a_version_stay(tmp_path, golden):
    """A change of this text is another version of the file."""
    path = tmp_path / "table.json"
    trials = (LinearTrial(1, 1e-5, (Gain(FLAT, 1.1, 1.2, 1.3),)),)
    predicted = Prediction("h200-nvlink", Regions(1, 1, 9), trials)
    entry = LinearEntry(PROBLEM, Regions(1, 1, 2), trials, predicted=predicted)
    LinearTable(HERE, (entry,)).save(path)
    golden(path.read_text())


H100 = "NVIDIA H100, 132 SMs"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(HERE, name=H100), f"{H100} with"),
        (replace(HERE, versions="torch 2.14.0, triton 3.7.1"), "the same with torch 2.14.0"),
        (replace(HERE, device="cpu"), f"{HERE.name} with"),
    ],
    ids=["device", "version", "type"],
)
def test_a_foreign_table_is_refused_with_a_remedy(tmp_path, other, named):
    """The mutant that names the same device twice."""
    path = tmp_path / "table.json"
    LinearTable(HERE).save(path)
    with pytest.raises(TargetError) as caught:
        LinearTable.load(path, other)
    said = str(caught.value)
    assert f"is of {HERE}, and this is {named}" in said
    assert other.versions in said
    assert str(path) in said
    assert "calibrate --linear" in said


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"overlapc_linear": 99}', '{"overlapc_linear": 1, "entries": []}'],
    ids=str,
)
def test_what_is_no_table_is_refused(tmp_path, text):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(TargetError, match="cannot be read"):
        LinearTable.load(path, HERE)


def test_a_field_too_many_is_refused(tmp_path):
    path = tmp_path / "table.json"
    LinearTable(HERE, (LinearEntry(PROBLEM, FORCED, ()),)).save(path)
    content = json.loads(path.read_text())
    content["entries"][0]["problem"]["colour"] = "red"
    path.write_text(json.dumps(content))
    with pytest.raises(TargetError, match="colour"):
        LinearTable.load(path, HERE)


def test_new_measurements_take_the_place_of_old_ones():
    table = LinearTable(HERE, (LinearEntry(PROBLEM, FORCED, ()),))
    other = replace(PROBLEM, n=8)
    both = table.with_entries((LinearEntry(PROBLEM, Regions(), ()), LinearEntry(other, FORCED, ())))
    assert [entry.regions for entry in both.entries] == [Regions(), FORCED]


def test_two_devices_have_two_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert LinearTable.path(HERE) != LinearTable.path(replace(HERE, name="NVIDIA H100, 132 SMs"))
    # Of another version it is found, and refused: the user learns what to do.
    assert LinearTable.path(HERE) == LinearTable.path(replace(HERE, versions="other"))


def test_ours_may_win_where_it_is_there():
    assert most_rows("bfloat16", "cuda") == {GEMV: 2, FLAT: 64}
    assert most_rows("float32", "cuda") == {GEMV: 2}
    assert most_rows("float32", "cpu") == {GEMV: 2, FLAT: 64}


def test_problems_of_another_layout_or_epilogue_read_otherwise():
    """Mutants: the layout is left out; of the ops only the first, the last, or how many; casts are
    named."""
    ops = ("", "add", "add mul", "sub mul", "add neg", "add exp mul")
    those = [replace(PROBLEM, layout=lies, epilogue=one) for lies in ("col", "row") for one in ops]
    assert len({one.text("~") for one in those}) == len(those)
    said = replace(PROBLEM, layout="row", epilogue="add exp mul", before="rms_norm").text(8)
    assert said == "8x4096x14336 bfloat16 [k, n], normed, then 3 ops, add to mul"
    assert PROBLEM.text("~") == "~x4096x14336 bfloat16, then 2 ops, silu to mul"
    assert replace(PROBLEM, epilogue="add").text(1).endswith("bfloat16, then add")
    cast = "convert_element_type"
    assert replace(PROBLEM, epilogue=f"{cast} exp mul {cast}").text(1).endswith("exp to mul")
    assert replace(PROBLEM, epilogue=f"{cast} {cast}").text(1).endswith(f"{cast} to {cast}")


def test_bytes_are_of_all_weights_as_they_lie():
    problem = LinearProblem(8, 4, "bfloat16", more=(2, 2))
    assert problem.weight_bytes == 2 * 12 * 4
    assert replace(problem, held="int8", more=(), weights=2).weight_bytes == 2 * 8 * 4


@given(st.integers(1, 1 << 17), st.integers(1, 1 << 15), st.integers(1, 200))
def test_splits_fill_the_device_and_keep_the_pipeline(n, k, sms):
    tile = LinearTile(64, 128, 4, 4)
    splits = splits_for(tile, n, k, sms)
    tiles, steps = -(-n // 64), -(-k // 128)
    assert splits & (splits - 1) == 0
    assert splits == 1 or steps // splits >= tile.stages
    assert splits == 1 or tiles * splits // 2 < sms
    is_full = tiles * splits >= sms or splits == 16 or steps // (2 * splits) < tile.stages
    assert is_full


ALONE = [
    *((6144, 4096), (4096, 4096), (1024, 4096), (4096, 14336)),  # Llama-3 8B
    *((8192, 8192), (1024, 8192), (8192, 28672)),  # Llama-3 70B
    *((4096, 12288), (8192, 5120), (5120, 8192), (1024, 5120), (5120, 25600)),  # Qwen3-8B, 32B
]
PAIRS = [(14336, 4096), (28672, 8192), (12288, 4096), (25600, 5120)]
"""Columns and k of their gate and up."""


@pytest.mark.parametrize(("weights", "layers"), [(1, ALONE), (2, PAIRS)], ids=["alone", "pairs"])
def test_enough_of_a_model_s_weights_is_on_its_way(weights, layers):
    """24 KiB for each multiprocessor of an H200 (4.8 TB/s times 0.65 us), also of few columns.
    Mutants: k is split less often, or the pipeline has a stage less."""
    sms = 132
    ways = [(way, rows) for way in (GEMV, FLAT) for rows in TILE_ROWS[way]]
    for (n, k), (way, rows), layout in product(layers, ways, ("col", "row")):
        tile = tile_for(way, "sm_90", "bfloat16", layout, rows=rows, pair=weights > 1)
        assert tile is not None
        ctas = -(-n // tile.block_n) * splits_for(tile, n, k, sms)
        ahead = min(ctas, sms) * tile.bytes_ahead(way, weights, BYTES["bfloat16"])
        assert ahead >= sms * (24 << 10), f"{way} of {rows} rows by {layout} {n}x{k}"


TILES = [tile for tiles in CONFIGURATIONS.values() for tile in tiles.values()]


@given(
    st.lists(st.integers(1, 1 << 17), min_size=1, max_size=3), st.integers(1, 1 << 15),
    st.integers(1, 400), st.sampled_from(TILES),
)  # fmt: skip
def test_there_is_a_counter_for_every_tile_that_shares_its_k(columns, k, sms, tile):
    """Those of the next layer begin behind, in whole vectors of 16 bytes."""
    count = most_counters(columns)
    assert count % 4 == 0
    if splits_for(tile, sum(columns), k, sms) > 1:
        assert sum(-(-n // tile.block_n) for n in columns) <= count


def test_the_kernel_asks_ahead_for_what_its_tile_says():
    """Of sm_90's tile of bfloat16, 48 KiB. Mutants: all stages, gate and up one at a time."""
    tile = LinearTile(64, 128, 4, 4)
    assert tile.bytes_ahead(FLAT, 1, 2) == 48 << 10
    assert tile.bytes_ahead(FLAT, 2, 2) == 96 << 10
    assert tile.bytes_ahead(GEMV, 2, 2) == 48 << 10
    assert replace(tile, stages=1).bytes_ahead(GEMV, 2, 1) == tile.step_bytes(GEMV, 2, 1) == 8 << 10
    spec = LinearSpec(FLAT, "bfloat16", "bfloat16", 8, 64, 128, held="int8")
    assert spec.bytes_in_flight == tile.bytes_ahead(FLAT, 1, 1)


@pytest.mark.parametrize("architecture", ["", "sm_75", "gfx90a", "gfx1100", "sm_x"])
def test_of_a_device_that_is_not_known_there_is_no_tile(architecture):
    found = tile_for(FLAT, architecture, "bfloat16", "col", rows=8, pair=False)
    assert found is None


def test_no_products_of_float32_on_matrix_units():
    assert tile_for(FLAT, "sm_90", "float32", "col", rows=8, pair=False) is None
    assert tile_for(GEMV, "sm_90", "float32", "col", rows=1, pair=False) is not None
