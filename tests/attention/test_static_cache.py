"""Decoding over a cache of fixed size reads what it holds: real models, compiled once."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs the extra 'models'")

from overlapc.runtime.attention import library as attention_library
from tests.attention import static_cache

FAMILIES = ("llama", "qwen3", "gpt2")
"""Those whose static caches transformers decodes over in one graph."""
CASES = [
    *((family, "sdpa", rows) for family in FAMILIES for rows in (1, 3)),
    *((family, "eager", rows) for family in ("llama", "qwen3") for rows in (1, 3)),
]


def check(done: static_cache.Decoded) -> None:
    """As exact as eager, which has no other rounding than ours."""
    assert done.error("compiled") <= max(2 * done.error("eager"), 1e-6)


def test_only_what_a_cache_holds_is_read(golden):
    done = static_cache.decode("llama", "sdpa", "sdpa", by_inductor=False)
    check(done)
    golden(done.text())


@pytest.mark.long
@pytest.mark.parametrize("rows", [1, 3])
def test_so_it_is_under_padding(rows):
    done = static_cache.decode("llama", "sdpa", "sdpa", rows=rows, by_inductor=False, padded=True)
    check(done)
    assert {site.code for site in done.sites} == {"valid_keys"}


def test_a_cache_that_is_read_whole_is_caught(monkeypatch):
    whole = lambda key, value, inputs, lengths: (key, value, inputs, lengths)  # noqa: E731
    monkeypatch.setattr(attention_library, "_cut", whole)
    done = static_cache.decode("llama", "sdpa", "sdpa", by_inductor=False)
    with pytest.raises(AssertionError):
        check(done)


@pytest.mark.long
@pytest.mark.parametrize(("family", "implementation", "rows"), CASES)
def test_every_family_by_inductor(family, implementation, rows):
    done = static_cache.decode(family, implementation, "sdpa", rows=rows)
    check(done)
    assert {site.code for site in done.sites} == {"valid_keys"}
    assert all(site.calls == {"torch": static_cache.STEPS} for site in done.sites)


@pytest.mark.long
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_kernel_reads_it_up_to_a_length_on_the_device(
    interpreted,
    implementation,
    rows,
    golden,
):
    done = interpreted("attention_graphs.decode", implementation, rows)
    assert done.error("compiled") <= 2e-6
    golden(done.text())
