"""Attention of real models is found, and their results are eager's: against float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra 'models'")

import overlapc
from overlapc.graphs.attention import problems
from tests.attention.families import FAMILIES, LENGTH, TOKENS, VOCABULARY, build, in_float64, result
from tests.attention.rewriting import rewrite

CASES = [
    (name, attention)
    for name, family in FAMILIES.items()
    for attention in ("eager", "sdpa")
    if attention == "eager" or family.fused is not None
]
SHORT = [("llama", "eager"), ("mistral", "sdpa")]


def tokens():
    torch.manual_seed(1)
    return torch.randint(3, VOCABULARY, (TOKENS, LENGTH))


def padding():
    """The first sequence is three tokens shorter, and starts later."""
    mask = torch.ones(TOKENS, LENGTH, dtype=torch.long)
    mask[0, :3] = 0
    return mask


def check(name, attention, choice="sdpa", **inputs):
    """Sites as the table says, and errors no larger than twice those of eager."""
    family = FAMILIES[name]
    model = build(family, attention)
    wanted_codes = family.spelled if attention == "eager" else family.fused
    if choice == "unified":
        wanted_codes = ["unified"] * len(family.spelled)
    with torch.no_grad():
        wide = result(in_float64(model)(tokens(), **inputs))
        eager = result(model(tokens(), **inputs))
        done = rewrite(lambda t: result(model(t, **inputs)), tokens(), softmax=choice)
        found = done.function(tokens())
    assert done.codes == list(wanted_codes)
    # Rows that keep no key: a mask that is finite in float32 is not where float64 is narrowed.
    known = ~wide.isnan()
    scale = wide[known].norm()
    errors = [(value[known] - wide[known]).norm() / scale for value in (found, eager)]
    assert errors[0] <= max(2 * errors[1], 1e-6)
    assert torch.allclose(found, eager, atol=1e-4 * float(scale) / known.sum() ** 0.5, rtol=1e-3)
    return done


@pytest.mark.parametrize(("name", "attention"), SHORT)
def test_short(name, attention):
    check(name, attention)


@pytest.mark.long
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_every_family(name, attention):
    check(name, attention)


@pytest.mark.long
@pytest.mark.parametrize(("name", "attention"), CASES)
def test_every_family_padded_on_the_left(name, attention):
    check(name, attention, attention_mask=padding())


@pytest.fixture
def own(monkeypatch):
    """Sites are decided as where generated kernels run."""
    monkeypatch.setattr(problems, "runs_kernels", lambda device: True)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_taken_by_a_kernel_of_our_own(own, name):
    """Its program of scores runs here, by torch's ops."""
    done = check(name, "eager", "unified")
    assert done.calls("overlapc.attention.default") == len(done.sites)
    check(name, "eager", "unified", attention_mask=padding())


@pytest.mark.long
def test_scores_of_opt_are_as_large_as_its_own():
    """The table's weights have to reach what the original reaches, or its row shows little."""
    model = build(FAMILIES["opt"], "eager")
    seen = []
    original = torch.nn.functional.softmax

    def watched(scores, *args, **kwargs):
        seen.append(scores[scores > -1e30].abs().max())
        return original(scores, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "softmax", watched)
        model(tokens())
    assert max(seen) > 300


@pytest.mark.long
def test_sites_of_every_family(golden):
    """One line a site: what is found where, and what becomes of it."""
    lines = []
    for name, attention in CASES:
        model = build(FAMILIES[name], attention)
        with torch.no_grad():
            report = overlapc.explain(model, {"softmax": "sdpa"})(tokens())
        for site in report.sites:
            where = site.where.split(":")[0]
            lines.append(f"{name} {attention}: {site.decision} [{site.code}] {site.shape} {where})")
    golden("\n".join(lines))
