"""The part of attention: its rows interpreted, their order, and mistakes that checks see."""

from __future__ import annotations

import json

import pytest

from benchmarks.gpu.attention import part as gpu_attention
from overlapc.planning.target import Target
from tests.benchmarks.gpu.dry_runs import measured, without_rows

H200 = Target.load("h200-nvlink")


@pytest.mark.parametrize("first", [1, pytest.param(None, marks=pytest.mark.long)])
def test_rows_of_attention_are_measured_and_written(interpreted, tmp_path, first):
    started = interpreted.start("benchmarks.gpu.attention_cases.dry_run", str(tmp_path), first)
    data, page = started.result(600)
    result, text = json.loads((tmp_path / data).read_text()), (tmp_path / page).read_text()
    about = result.pop("about")
    assert [row["details"] for rows in result.values() for row in rows if "error" in row] == []
    assert about["rows"].endswith(" 0 of them failed, 0 left when time was up")
    assert all(result[name] for name in gpu_attention.TABLES)
    assert without_rows(result) <= {
        "decode over FlashInfer",
        "decode: share of the measured read bandwidth, from 32k tokens in total",
    }
    decode, *_ = measured(result[gpu_attention.DECODE])
    assert {"ours", "ours again", "online", "sdpa", "sdpa math", "flex"} <= set(decode["ms"])
    assert decode["share of the bound"] > 0
    assert "sdpa cudnn: " in decode["not there"]
    (latent,), (float8,) = (measured(result[its]) for its in (gpu_attention.LATENT,
                                                             gpu_attention.FLOAT8))  # fmt: skip
    assert {"ours", "online", "sdpa math"} <= set(latent["ms"])
    assert "flashmla: ModuleNotFoundError" in latent["not there"]
    assert "flashinfer: ModuleNotFoundError" in latent["not there"]
    assert latent["read bound us"] > 0
    assert {"ours", "bfloat16", "dequantised", "sdpa"} <= set(float8["ms"])
    assert float8["of bfloat16"][0] > 0
    assert float8["bound us"] > 0
    (cache,) = measured(result[gpu_attention.CACHE])
    assert cache["of inductor"][0] > 0
    assert cache["of inductor, given the mask"][0] > 0
    prefill, *_ = measured(result[gpu_attention.PREFILL])
    assert prefill["redone"] == 0
    (trained,) = measured(result[gpu_attention.TRAINED])
    assert {"ours", "online", "sdpa", "sdpa math"} <= set(trained["ms"])
    wide = measured(result[gpu_attention.REDONE])
    assert [row["redone"] > 0 for row in wide] == [True] * len(wide)
    assert all("first keys" in row["ms"] for row in wide)
    assert "kernels that are right" in text
    assert "bound us" in text
    if not first:
        assert prefill["bound us"] > 0
        pages = [row for row in measured(result[gpu_attention.DECODE]) if "pages" in row["row"]]
        assert all("flashinfer: ModuleNotFoundError" in row["not there"] for row in pages)
        assert len(result[gpu_attention.DECODE]) == 16


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        ("prefill", "bfloat16, causal, 4 queries a head", "one key too many"),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("decode", "pages", "scale"),
                ("gradients", "trained slopes", "scale"),
                ("gradients", "a mask that hides tiles", "scale"),
                ("gradients", "bfloat16, causal, 4 queries a head", "one key too many"),
                ("prefill", "slopes", "no mask"),
                ("prefill", "scores of hundreds", "nothing is redone"),
                ("decode", "scores of hundreds", "nothing is redone"),
                ("running", "few rows", "nothing is redone"),
                ("prefill", "a mask that hides tiles", "scale"),
                ("decode", "a mask that hides tiles", "scale"),
                ("decode", "float8 cache", "scale"),
                ("decode", "latent, 128 heads", "scale"),
                ("prefill", "float32", "scale"),
            )
        ),
    ],
)
def test_the_check_of_an_attention_sees_what_is_wrong(interpreted, kind, name, wrong):
    right, seen = interpreted(
        "benchmarks.gpu.attention_cases.a_wrong_attention_is_seen", kind, name, wrong
    )
    assert right["largest error"] <= 1
    assert seen["error"].startswith(("WrongResult", "KernelError"))


@pytest.mark.parametrize("nth", [1, *(pytest.param(nth, marks=pytest.mark.long) for nth in (0, 3))])
def test_the_check_of_many_decodes_at_once_sees_one_that_differs(interpreted, nth):
    """Of four launches, the first among them."""
    right, seen = interpreted("benchmarks.gpu.attention_cases.a_launch_that_differs_is_seen", nth)
    assert right["largest error"] <= 1
    assert seen["error"].startswith("WrongResult: inf")


def test_the_most_telling_rows_of_attention_come_first():
    """Of a run that is cut off: what is timed is checked, and of each table something is there."""
    rows = list(gpu_attention.rows({}, H200))
    first = [row.table for row in rows[: len(rows) // 2]]
    assert set(first) == set(gpu_attention.TABLES)
    checks = {
        is_of_gradients: [
            at for at, row in enumerate(rows)
            if row.table == gpu_attention.CHECKED
            and (row.arguments["kind"] == gpu_attention.GRADIENTS) == is_of_gradients
        ]
        for is_of_gradients in (False, True)
    }  # fmt: skip
    first_trained = [row.table for row in rows].index(gpu_attention.TRAINED)
    assert checks[False] == list(range(2, 2 + len(checks[False])))
    assert checks[True] == list(range(first_trained - len(checks[True]), first_trained))
    assert len(checks[False]) + len(checks[True]) == sum(
        len(cases) for _, cases in gpu_attention.CHECKS.values()
    )
    given = [row.arguments for row in rows if row.table == gpu_attention.DECODE]
    assert {(one["shape"].groups, bool(one["shape"].page)) for one in given} == {
        (4, False), (4, True), (8, False), (8, True),
    }  # fmt: skip
    assert {one["shape"].keys for one in given} >= {1 << 10, 1 << 17}
    assert {one["shape"].batch for one in given} >= {1, 64}
    assert [one["with_flex"] for one in given[:12]] == [True, False] * 6
    assert not any(one["with_flex"] and one["shape"].page for one in given)


def test_rows_of_attention_are_bounded_by_what_was_measured_before():
    done = {gpu_attention.BOUNDS: [{"row": "r", "TB/s": 4.0}, {"row": "p", "TFLOP/s": 700.0}]}
    rates = {row.table: row.arguments["rate"] for row in gpu_attention.rows(done, H200)
             if "rate" in row.arguments}  # fmt: skip
    assert rates[gpu_attention.DECODE] == rates[gpu_attention.CACHE] == 4e12
    assert rates[gpu_attention.PREFILL] == 7e14
    assert rates[gpu_attention.LATENT] == rates[gpu_attention.FLOAT8] == 4e12
    products = {row.arguments["flops"] for row in gpu_attention.rows(done, H200)
                if row.table == gpu_attention.LATENT}  # fmt: skip
    assert products == {7e14}


def test_a_summary_of_attention_says_of_how_many_rows_it_is():
    decode = [
        {"row": name, "tokens": tokens, "share of the bound": share, "redone": 0,
         "of best sdpa": [ratio, ratio, ratio], "unified over online": [1.1, 1.0, 1.2]}
        for name, tokens, share, ratio in (
            ("a", 1 << 15, 0.95, 1.5), ("b", 1 << 16, 0.5, 0.9), ("c", 1 << 10, 0.2, 1.2),
        )
    ]  # fmt: skip
    done = {
        gpu_attention.CHECKED: [{"row": "a"}, {"row": "b", "error": "wrong"}],
        gpu_attention.DECODE: [*decode, {"row": "d", "skipped": "34 GB are too much"}],
        gpu_attention.CACHE: [{"row": "e", "of inductor": [3.5, 3.4, 3.6]}],
    }
    lines = {its["row"]: its for its in gpu_attention.summary(done)}
    assert lines["kernels that are right"]["rows"] == "1 of 2"
    best = lines["decode: of best sdpa"]
    assert (best["rows"], best["least"]) == ("3 of 3", 0.9)
    assert best["geomean"] == pytest.approx((1.5 * 0.9 * 1.2) ** (1 / 3))
    assert lines["static cache: of inductor"]["least"] == 3.5
    assert "prefill: of best sdpa" not in lines
    assert gpu_attention.summary({}) == []


def test_bytes_and_operations_of_attention():
    from benchmarks.gpu.attention.speed import DecodeShape, PrefillShape

    shape = DecodeShape(2, 4, 1024)
    assert shape.bytes == 2 * (2 * 8 * 1024 * 128) * 2 + 2 * (2 * 32 * 128) * 2
    whole = PrefillShape(1, 4, 512, 64, is_causal=False)
    assert whole.flops == 2 * (2 * 32 * 512 * 512 * 64)
    assert PrefillShape(1, 4, 512, 64).flops == whole.flops / 2
