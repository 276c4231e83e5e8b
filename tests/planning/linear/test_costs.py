"""The cost model of linear layers of few rows: by hand, its bounds, and what moves M1 and M2.

Nothing here is a measurement. Each test names the mutant of `costs` that it fails by.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlapc.planning.linear import costs as linear_costs
from overlapc.planning.linear.costs import (
    BEST,
    LIKELY,
    WORST,
    Device,
    library,
    ours,
)
from overlapc.planning.linear.prediction import may_win, predict, predicted_trial, spans
from overlapc.planning.linear.regions import LEAST_GAIN, LIBRARY, MEASURED_ROWS, OURS, LinearProblem
from overlapc.planning.linear.tiles import FLAT, GEMV
from overlapc.planning.target import Target

GPUS = ("a100-nvlink", "h100-nvlink", "h200-nvlink", "mi300x", "rtx4090-pcie")
H100 = Target.load("h100-nvlink")
BY_HAND = Device("sm_90", 132, 3.35e12, 9e12, 7e14, 5e13)
"""What H100 has to say."""

QKV = LinearProblem(4096, 4096, "bfloat16", more=(1024, 1024))
O = LinearProblem(4096, 4096, "bfloat16")  # noqa: E741
GATE_UP = LinearProblem(14336, 4096, "bfloat16", weights=2, epilogue="silu mul")
DOWN = LinearProblem(4096, 14336, "bfloat16")
HEAD = LinearProblem(128256, 4096, "bfloat16")
LLAMA = (QKV, O, GATE_UP, DOWN, HEAD)
"""Of Llama-3 8B."""

problems = st.builds(
    LinearProblem,
    n=st.integers(1, 1 << 17),
    k=st.integers(1, 1 << 15),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    layout=st.sampled_from(["col", "row"]),
    weights=st.integers(1, 2),
    held=st.sampled_from(["", "int8", "float8_e4m3fn"]),
    epilogue=st.sampled_from(["", "silu mul"]),
    before=st.sampled_from(["", "rms_norm"]),
)
rates = st.floats(1e9, 1e16)
devices = st.builds(
    Device,
    architecture=st.sampled_from(["sm_80", "sm_90", "sm_100", "gfx942", "sm_75"]),
    sms=st.integers(1, 400),
    memory=rates,
    cache=st.one_of(rates, st.just(inf)),
    matrix=rates,
    ordinary=rates,
)
rows_of_ours = st.integers(1, 64)


def test_a_device_is_what_its_target_says():
    assert Device.of(H100, "bfloat16") == BY_HAND
    assert Device.of(H100, "float16") == BY_HAND
    assert Device.of(Target.load("cpu"), "float32") is None
    assert Device.of(H100, "float64") is None


def test_a_calibrated_target_reads_memory_as_fast_as_its_pointwise_work():
    """Calibration fits no rate of memory; mutants: none is taken, and that of a processor is."""

    def without(pointwise: float | None, target: Target = H100) -> Target:
        rates = [
            replace(one, memory_bytes_per_second=None, pointwise_bytes_per_second=pointwise)
            for one in target.gemm
        ]
        return replace(target, gemm=tuple(rates))

    assert Device.of(without(2.5e12), "bfloat16") == replace(BY_HAND, memory=2.5e12)
    assert Device.of(without(None), "bfloat16") is None
    assert Device.of(without(2.5e12, Target.load("cpu")), "float32") is None


def test_llama_s_output_projection_on_an_h100_by_hand():
    """Mutants: another term than the longest, padded rows or splits left out, no gap."""
    read, cached = 0.91 * 3.35e12, 0.91 * 9e12
    weight = 4096 * 4096 * 2
    # One row. gemv: 512 CTAs of 8 columns, on one multiprocessor four, have three steps of 512 k
    # on their way each; all are there at once, and memory is what takes longest.
    gemv = 1.3e-6 + (weight + (4096 + 4096) * 2) / read
    assert weight / read > 65536 * 6.5e-7 / (3 * 8 * 512 * 2)
    assert ours(O, GEMV, 1, BY_HAND, LIKELY) == pytest.approx(gemv)
    # flat: 64 tiles of 64 columns share k by four, which 132 multiprocessors hold at once; parts of
    # eight rows are written and read, and waited for twice.
    parts = 2 * 6.5e-7 + 2 * 4 * 4 * 8 * 4096 / cached
    flat = 1.3e-6 + (weight + (4096 + 4096) * 2) / read + parts
    assert ours(O, FLAT, 1, BY_HAND, LIKELY) == pytest.approx(flat)
    # The library: 32 CTAs of 128 columns would wait for memory longer than it takes to be read,
    # so that it lets two share k, and adds their parts in another kernel.
    alone = weight / 32 * 6.5e-7 / 49152
    assert alone > 1.2 * weight / read
    added = 1.3e-6 + 2 * 4 * 2 * 4096 / cached
    by_library = 1.3e-6 + (weight + (4096 + 4096) * 2) / read + added
    assert library(O, 1, BY_HAND, LIKELY) == pytest.approx(by_library)
    # ... and at its worst does not, but pads the row to 64, which 32 multiprocessors multiply.
    slow = 4e-6 + 2 * 64 * 128 * 4096 / (0.4 * 7e14 / 132)
    assert library(O, 1, BY_HAND, WORST) == pytest.approx(slow)


def test_rows_are_padded_to_what_a_tile_has():
    """Where multiplying takes longest. Mutants: rows as they are, the library's padded to 8."""
    slow = replace(BY_HAND, matrix=1e12, cache=inf)

    def multiplying(rows, seconds):
        per_column = 2 * rows * 4096 * 4096
        assert seconds - LIKELY.gap == pytest.approx(per_column / (0.85 * 1e12), rel=0.1)

    wide = replace(O, n=64 * 132, k=2048)  # one CTA on each multiprocessor, and k is not shared
    for rows, padded in ((3, 8), (9, 16), (33, 64)):
        found = ours(wide, FLAT, rows, slow, LIKELY)
        assert found is not None
        multiplying(padded * wide.n * wide.k / 4096 / 4096, found)
    even = replace(O, n=128 * 132, k=2048)
    multiplying(64 * even.n * even.k / 4096 / 4096, library(even, 3, slow, LIKELY))


def test_rows_are_read_again_by_each_cta():
    """From the last cache, where that takes longest. Mutants: weights alone, no such term."""
    slow = replace(BY_HAND, cache=1e12)
    for tile, seconds in (
        (64, lambda p: ours(p, FLAT, 64, slow, LIKELY)),
        (128, lambda p: library(p, 64, slow, LIKELY)),
    ):
        problem = replace(O, n=tile * 132, k=2048)
        read = problem.weight_bytes + 132 * 64 * 2048 * 2
        assert seconds(problem) == pytest.approx(LIKELY.gap + read / 0.91e12)


def test_ctas_wait_for_what_they_ask_ahead():
    """By hand, where that takes longest. Mutants: one CTA on a multiprocessor, all stages on their
    way, one weight of two for flat, both for gemv."""
    fast = replace(BY_HAND, memory=1e18, cache=inf, matrix=1e20, ordinary=1e20)
    # Four stages of a weight's 64 x 128 and of x's 8 x 128 are three times in 227 KiB: 396 CTAs.
    problem = replace(O, n=64 * 924, k=2048)
    waits = 3 * (64 * 2048 * 2) / (3 * 64 * 128 * 2) * LIKELY.latency
    assert ours(problem, FLAT, 1, fast, LIKELY) == pytest.approx(LIKELY.gap + waits, rel=1e-3)
    # 224 CTAs, in steps of 64 k of both weights.
    waits = (2 * 64 * 4096 * 2) / (3 * 2 * 64 * 64 * 2) * LIKELY.latency
    assert ours(GATE_UP, FLAT, 1, fast, LIKELY) == pytest.approx(LIKELY.gap + waits, rel=1e-3)
    # 1792 CTAs of four warps, four on a multiprocessor, read one weight after the other.
    waits = 4 * (2 * 8 * 4096 * 2) / (3 * 8 * 512 * 2) * LIKELY.latency
    assert ours(GATE_UP, GEMV, 1, fast, LIKELY) == pytest.approx(LIKELY.gap + waits, rel=1e-3)


def test_products_of_gemv_are_of_the_ordinary_cores_and_rise_with_rows():
    """Mutants: matrix units, widening left out."""
    slow = replace(BY_HAND, ordinary=1e11, cache=inf)
    one, two = (ours(GATE_UP, GEMV, rows, slow, LIKELY) for rows in (1, 2))
    assert one is not None
    assert two is not None
    # Of 1792 CTAs each multiprocessor has 13 or 14.
    operations = 2 * 14 * 132 * 8 * 4096 / (0.85 * 1e11)
    assert one - LIKELY.gap == pytest.approx(3 * operations)
    assert two - LIKELY.gap == pytest.approx(5 * operations)


def test_what_a_library_does_beside_a_gemm():
    """Each is a kernel, and a pass. Mutants: a gap or a pass left out, one GEMM for two weights."""
    read = LIKELY.reading * 3.35e12
    gap = LIKELY.gap

    def beyond(problem, than=O):
        return library(problem, 8, BY_HAND, LIKELY) - library(than, 8, BY_HAND, LIKELY)

    alone = library(O, 8, BY_HAND, LIKELY)
    assert beyond(replace(O, epilogue="relu")) == pytest.approx(gap + 2 * 8 * 4096 * 2 / read)
    assert beyond(replace(O, before="rms_norm")) == pytest.approx(gap + 2 * 8 * 4096 * 2 / read)
    assert beyond(replace(O, weights=2)) == pytest.approx(alone)
    assert beyond(replace(O, more=(4096,))) == pytest.approx(alone)
    assert beyond(replace(O, held="int8")) == pytest.approx(gap + 4096 * 4096 * 3 / read)
    both = replace(O, weights=2, epilogue="silu mul")
    assert beyond(both) == pytest.approx(alone + gap + 3 * 8 * 4096 * 2 / read)


@pytest.mark.parametrize("problem", LLAMA, ids=str)
def test_an_epilogue_is_the_library_s_loss(problem):
    """M2 with it is never earlier, of Llama's layers. Mutant: the pass is ours too."""
    plain = predict(replace(problem, epilogue=""), H100)
    more = predict(replace(problem, epilogue="add"), H100)
    assert plain is not None
    assert more is not None
    assert more.regions.library_from >= plain.regions.library_from


def test_regions_of_llama_on_an_h100():
    """What is predicted, and no more. Mutants: bounds for what is likely, M1 after M2."""
    found = [str(its.regions) for one in LLAMA if (its := predict(one, H100)) is not None]
    assert found == [
        "gemv 1..2, flat 3..64 rows, else the library",
        "gemv 1..2 rows, else the library",
        "flat 1..64 rows, else the library",
        "gemv 1..2 rows, else the library",
        "the library at every row count",
    ]


@given(problems, devices, rows_of_ours)
def test_bounds_hold_what_is_likely(problem, device, rows):
    """Mutants: a figure of BEST or WORST on the wrong side of LIKELY's, bounds exchanged."""
    for seconds in (
        *((lambda f, way=way: ours(problem, way, rows, device, f)) for way in OURS),
        lambda f: library(problem, rows, device, f),
    ):
        best, likely, worst = (seconds(f) for f in (BEST, LIKELY, WORST))
        if best is not None:
            assert likely is not None
            assert worst is not None
            assert best < likely < worst
    for gain in predicted_trial(problem, device, rows).gains:
        mine = [ours(problem, gain.implementation, rows, device, f) for f in (WORST, LIKELY, BEST)]
        its = [library(problem, rows, device, f) for f in (BEST, LIKELY, WORST)]
        ratios = [b / a for a, b in zip(mine, its, strict=True) if a is not None]
        assert [gain.low, gain.median, gain.high] == ratios


@given(problems, devices, rows_of_ours, st.floats(1, 100),
       st.sampled_from(["memory", "cache", "matrix", "ordinary"]))  # fmt: skip
def test_no_rate_that_is_higher_makes_anything_slower(problem, device, rows, times, name):
    """Mutant: a rate that is multiplied by."""
    faster = replace(device, **{name: times * getattr(device, name)})
    tiny = 1 + 1e-12
    assert library(problem, rows, faster, LIKELY) <= tiny * library(problem, rows, device, LIKELY)
    for way in OURS:
        before = ours(problem, way, rows, device, LIKELY)
        after = ours(problem, way, rows, faster, LIKELY)
        assert (before is None) == (after is None)
        assert before is None or after is None or after <= tiny * before


@given(problems, devices, st.integers(1, 63))
def test_one_more_row_never_takes_less(problem, device, rows):
    """Mutants: a single row is padded too and two are not, passes that shrink."""
    less, more = (library(problem, m, device, LIKELY) for m in (rows, rows + 1))
    assert less <= more * (1 + 1e-12)
    for way in OURS:
        before = ours(problem, way, rows, device, LIKELY)
        after = ours(problem, way, rows + 1, device, LIKELY)
        assert before is None or after is None or before <= after * (1 + 1e-12)


@settings(max_examples=40)
@given(problems, st.sampled_from(GPUS))
def test_what_is_predicted_to_win_is_measured(problem, name):
    """Mutant: bounds that are narrower than what is likely."""
    target = Target.load(name)
    its = predict(problem, target)
    assert its is not None
    for rows in range(1, 70):
        way = its.regions.implementation(rows)
        assert way == LIBRARY or way in may_win(problem, rows, "cuda", target)


@settings(max_examples=40)
@given(problems, st.sampled_from(GPUS), st.integers(1, 100))
def test_what_is_not_measured_loses_within_all_bounds(problem, name, rows):
    """Mutant: the library's best in place of its worst."""
    device = Device.of(Target.load(name), problem.dtype)
    assert device is not None
    for way in set(OURS) - set(may_win(problem, rows, "cuda", Target.load(name))):
        mine = ours(problem, way, rows, device, BEST)
        assert mine is None or LEAST_GAIN * mine > library(problem, rows, device, WORST)


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("problem", LLAMA, ids=str)
def test_no_rate_of_a_shipped_target_rules_out_a_kernel_that_is_there(name, problem):
    """What these bounds are worth today: that a library may reach 40 % of memory's rate outweighs
    all."""
    assert spans(problem, "cuda", Target.load(name)) == {GEMV: (1, 2), FLAT: (1, 64)}


def test_what_is_not_there_or_cannot_win_is_not_measured():
    """Mutants: kernels by the type of the device alone, a bound that is not asked."""
    fp8, a100 = replace(O, held="float8_e4m3fn"), Target.load("a100-nvlink")
    assert spans(fp8, "cuda", a100) == {}
    assert spans(fp8, "cuda", H100) == {GEMV: (1, 2), FLAT: (1, 64)}
    assert spans(replace(O, dtype="float32"), "cuda", H100) == {GEMV: (1, 2)}
    assert may_win(O, 65, "cuda", H100) == ()
    # Ordinary cores so slow that two rows take ten times as long as a library that is at its worst.
    (half, full, *more) = H100.gemm
    slow = replace(H100, gemm=(half, replace(full, flops_per_second=1e12), *more))
    assert spans(O, "cuda", slow) == {FLAT: (1, 64)}


def test_of_a_processor_and_of_a_device_that_is_not_known_nothing_is_predicted():
    cpu = Target.load("cpu")
    float32 = replace(O, dtype="float32")
    assert predict(float32, cpu) is None
    assert predict(O, None) is None
    assert spans(float32, "cpu", cpu) == {GEMV: (1, 2), FLAT: (1, 64)}
    assert spans(float32, "cuda", None) == {GEMV: (1, 2)}


def test_a_prediction_tells_all_that_is_measured():
    its = predict(GATE_UP, H100)
    assert its is not None
    assert its.target == "h100-nvlink"
    assert [trial.rows for trial in its.trials] == list(MEASURED_ROWS)
    assert its.trial(8) == predicted_trial(GATE_UP, BY_HAND, 8)
    assert its.trial(7) is None


def test_the_published_figure_of_cublas_is_near():
    """16 x 2752 x 4096 on an H100: 40 % of the bandwidth, without splits."""
    unsplit = replace(LIKELY, adapts=False)
    problem = LinearProblem(2752, 4096, "float16")
    seconds = library(problem, 16, BY_HAND, unsplit) - LIKELY.gap
    assert 0.4 < problem.weight_bytes / seconds / 3.35e12 < 0.5
    assert linear_costs.WORST.reading == 0.4
