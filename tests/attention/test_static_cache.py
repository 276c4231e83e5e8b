"""Decoding over a cache of fixed size reads what it holds: real models, compiled once."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="needs the extra 'models'")

from overlapc.runtime import attention_library
from tests.attention import static_cache
from tests.codegen.conftest import interpreted  # noqa: F401

FAMILIES = ("llama", "mistral", "qwen3", "gpt2", "opt")
CASES = [
    pytest.param(family, implementation, rows, marks=[pytest.mark.long] * (index > 0))
    for index, (family, implementation, rows) in enumerate(
        [
            ("llama", "sdpa", 1),
            ("llama", "sdpa", 3),
            *((family, "sdpa", rows) for family in FAMILIES[1:] for rows in (1, 3)),
            *((family, "eager", rows) for family in ("llama", "qwen3") for rows in (1, 3)),
        ]
    )
]


def check(done: static_cache.Decoded) -> None:
    """As exact as eager, which has no other rounding than ours."""
    assert done.error("compiled") <= max(2 * done.error("eager"), 1e-6)


@pytest.mark.parametrize(("family", "implementation", "rows"), CASES)
def test_only_what_a_cache_holds_is_read(family, implementation, rows, golden):
    """What it does not hold is NaN, which a weight of zero would not hide."""
    done = static_cache.decode(family, implementation, "sdpa", rows=rows, poisoned=True)
    check(done)
    assert {site.code for site in done.sites} == {"valid_keys"}
    assert all(site.calls == {"torch": static_cache.STEPS} for site in done.sites)
    if (family, implementation, rows) == ("llama", "sdpa", 1):
        site = done.sites[0]
        golden(f"{site.decision} [{site.code}] {site.shape}\n{site.reason}\n{dict(site.calls)}")


def test_a_cache_that_is_read_whole_is_caught(monkeypatch):
    whole = lambda key, value, inputs, lengths: (key, value, inputs, lengths)  # noqa: E731
    monkeypatch.setattr(attention_library, "_cut", whole)
    done = static_cache.decode("llama", "sdpa", "sdpa", poisoned=True)
    with pytest.raises(AssertionError):
        check(done)


@pytest.mark.parametrize(
    ("implementation", "rows"),
    [("sdpa", 1), *(pytest.param(i, r, marks=pytest.mark.long) for i in ("sdpa", "eager")
                    for r in (1, 3))],
)  # fmt: skip
def test_a_generated_kernel_reads_it_up_to_a_length_on_the_device(
    interpreted,  # noqa: F811
    implementation,
    rows,
    golden,
):
    found = interpreted("attention_graphs.decode", implementation, rows)
    assert found.error("compiled") <= 2e-6
    (site,) = found.sites
    (way,) = site.calls
    assert site.code == "unified"
    assert "decode" in way
    if (implementation, rows) == ("sdpa", 1):
        golden(f"{site.decision} [{site.code}] {site.shape}\n{site.reason}\n{dict(site.calls)}")
