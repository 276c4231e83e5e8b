"""The end-to-end benchmark: its page, and that both shardings are the model."""

from __future__ import annotations

import argparse
from unittest import mock

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from benchmarks.end_to_end import model as e
from benchmarks.end_to_end.__main__ import _cases
from benchmarks.end_to_end.rows import EndRow, from_json, lines, markdown, to_json
from benchmarks.measuring.paired import Samples
from tests.benchmarks.llamas import small_llama
from tests.ranks import Ranks

SECONDS = {
    "inductor": (2.0, 2.2, 2.1, 2.0, 2.4, 2.0, 2.1),
    "overlapc": (1.6, 1.76, 1.68, 1.6, 1.92, 1.6, 1.68),
    "inductor again": (2.02, 2.18, 2.1, 2.0, 2.4, 2.1, 2.1),
}


def row(*, overlapc: bool = True, bound: float | None = 1.5) -> EndRow:
    seconds = {name: times for name, times in SECONDS.items() if overlapc or name != "overlapc"}
    errors = {"inductor": 1e-6, "overlapc": 2e-6}
    return EndRow(str(e.CASES[0]), "1gbit", Samples(seconds), errors, bound, {"a rewritten": 4})


def test_speedup_and_share_point_the_right_way() -> None:
    (cells,) = lines([row()])
    assert cells[:5] == ["prefill, tensor parallel", "1gbit", "2.100", "1.680", "1.500"]
    assert cells[5].startswith("1.000")
    assert cells[6].startswith("1.250")
    assert cells[7] == f"{1.5 / 1.68:.3f}"
    assert cells[8] == "2e-06"


def test_what_was_not_measured_is_not_told() -> None:
    (cells,) = lines([row(overlapc=False, bound=None)])
    assert [cells[3], cells[4], cells[6], cells[7]] == ["–"] * 4


def test_rows_survive_being_written() -> None:
    for written in (row(), row(overlapc=False, bound=None)):
        assert from_json(to_json(written)) == written


def test_the_page_has_a_line_for_each_row_and_the_sites() -> None:
    page = markdown([row(), row(overlapc=False)], {"link": "emulated"})
    assert page.count("| prefill, tensor parallel | 1gbit |") == 2
    assert "4 x a rewritten" in page


def test_cases_are_named_by_number() -> None:
    assert _cases("3,0") == (3, 0)
    assert [str(e.CASES[number]) for number in (1, 2)] == [
        "training step, tensor parallel",
        "prefill, sequence parallel",
    ]
    for text in ("4", "x", "1,,2", "-1"):
        with pytest.raises(argparse.ArgumentTypeError):
            _cases(text)


def weights(llama: torch.nn.Module) -> list[torch.Tensor]:
    full = [p.full_tensor() if isinstance(p, DTensor) else p for p in llama.parameters()]
    return [p.detach().clone() for p in full]


def trained_by_both(rank: int) -> None:
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    with mock.patch.object(e, "tokens", return_value=ids):
        whole = small_llama()
        logits = e.results(whole, e.compute(whole, trains=False), trains=False)[0]
        before = weights(whole)
        meant = whole(ids, labels=ids).loss.detach()
        loss = e.step(whole, e.compute(whole, trains=True), trains=True)()
        torch.testing.assert_close(loss, meant, check_dtype=False, atol=1e-5, rtol=0)
        after = weights(whole)
        for shard in e.SHARDINGS.values():
            llama = shard(small_llama(), init_device_mesh("cpu", (2,)))
            found = e.results(llama, e.compute(llama, trains=False), trains=False)[0]
            torch.testing.assert_close(found, logits)
            gradients = e.results(llama, e.compute(llama, trains=True), trains=True)
            assert len(gradients) == len(after)
            assert all(g.abs().max() > 0 for g in gradients)
            step = e.step(llama, e.compute(llama, trains=True), trains=True)
            torch.testing.assert_close(step(), loss)
            for old, one, other in zip(before, weights(llama), after, strict=True):
                # Adam's first step is as large for a small gradient as for a large one: a wrong
                # gradient shows in full, and so does rounding of one that is nearly zero.
                torch.testing.assert_close(one, other, atol=2e-6, rtol=0)
                assert not torch.allclose(old, other, atol=2e-6, rtol=0)


def test_both_shardings_compute_and_train_the_model(two_ranks: Ranks) -> None:
    assert set(e.SHARDINGS) == {case.sharding for case in e.CASES}
    two_ranks.run(trained_by_both)
