"""The benchmark of ``generate``: what it times, and that what is timed generates the same."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra 'models'")

from benchmarks import generate
from benchmarks.generate import CHOICES, INDUCTOR, OVERLAPC, Clock, Generation, Sizes, page
from benchmarks.measuring.paired import Samples

TINY = Sizes(32, 48, 1, 4, 2, 100, cache=64, prompt=16, tokens=6)


def test_a_run_begins_where_the_one_before_did():
    """As the whole prompt is continued in a cache that holds nothing. The mutant that leaves the
    cache as long as it was reads what was generated before as part of the prompt."""
    generation = Generation(TINY)
    one, other = generation.run(None, Clock()), generation.run(None, clock := Clock())
    fresh = generation.model.generate(
        generation.prompt, max_new_tokens=TINY.tokens, do_sample=False, eos_token_id=None
    )
    assert one == other == fresh[0, TINY.prompt :].tolist()
    assert len(clock.times) == TINY.tokens + 1


def test_a_step_is_what_lies_between_two_new_tokens():
    """Mutants: the prefill counts as a step; so does the first token."""
    assert Clock([0.0, 10.0, 11.0, 13.0]).seconds() == 1.5


def test_the_page_has_rates_and_ratios():
    seconds = {name: (0.25,) * 9 for name in CHOICES} | {OVERLAPC: (0.125,) * 9}
    text = page(TINY, Samples(seconds), dict.fromkeys(CHOICES, 6), {"date": "today"})
    assert f"| {INDUCTOR} | 4.00 | 1.000 [1.000, 1.000] | 6 | 9 |" in text
    assert f"| {OVERLAPC} | 8.00 | 2.000 [2.000, 2.000] | 6 | 9 |" in text


@pytest.mark.long
def test_each_backend_compiles_the_step_once(tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    generate.main(["--rounds", "9", "--out", str(tmp_path)], TINY)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    assert "attention: rewritten [fused_groups]" in (tmp_path / "generate.md").read_text()
    torch._dynamo.reset()
