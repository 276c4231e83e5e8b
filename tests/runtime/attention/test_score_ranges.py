"""What is recorded of an attention's scores, against float64; mutants that have to be seen."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from overlapc.codegen.attention.policies import SAFE_SUMS
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.errors import ProblemError
from overlapc.planning.attention.softmax import QUANTILES
from overlapc.runtime.attention import score_watching
from overlapc.runtime.attention.masks import Added, Filled, Input, program_of
from overlapc.runtime.attention.score_ranges import FIRST_KEYS
from overlapc.runtime.attention.score_watching import SiteRange, Watch
from tests.codegen import attention_oracle

SPEC = AttentionSpec("float32", 24, 24, groups=3, scale=0.7)
BIASED = program_of([Added(Input("vector", "float32"), 0.5)])
KEPT = program_of([Filled(Input("matrix", "bool"), -math.inf, True)])
FINITE = program_of([Filled(Input("matrix", "bool"), -3e38, True)])

CASES = {
    "all keys": SPEC,
    "causal": replace(SPEC, after=0),
    "window": replace(SPEC, before=5, after=0, align="bottom_right", dtype="bfloat16"),
    "biased, float16": replace(SPEC, program=BIASED, dtype="float16"),
    "keys left out": replace(SPEC, program=KEPT),
    "masked by a number": replace(SPEC, program=FINITE),
    "sinks": replace(SPEC, sinks=True),
}


SINKS = torch.linspace(-60, 130, 6)
"""Of each head: some are above all its scores."""


def operands(spec, keys=40, spread=1.0):
    """Two calls, of other sizes; heads whose scores differ in size."""
    torch.manual_seed(0)
    dtype, found = getattr(torch, spec.dtype), []
    for batch, rows in ((2, 33), (1, 20)):
        q = torch.randn(batch, 6, rows, spec.head_dim) * spread
        q *= torch.linspace(0.3, 2.0, 6)[:, None, None]
        k = torch.randn(batch, 2, keys, spec.head_dim)
        inputs = [an_input(item, batch, rows, keys) for item in spec.inputs]
        found.append((q.to(dtype), k.to(dtype), inputs))
    return found


def an_input(item, batch, rows, keys):
    if item.dtype == "bool":
        kept = torch.rand(batch, 1, rows, keys) < 0.6
        kept[:, :, 3] = False
        return kept
    return torch.randn(6, 1, keys) * 4


def recorded(spec, calls):
    site = SiteRange("here", "a text")
    for q, k, inputs in calls:
        sinks = SINKS if spec.sinks else None
        Watch(site, spec)(q, k, k, inputs, None, None, sinks)
    return site.summary().heads


def check(spec, calls, heads):
    """Raise AssertionError unless every head is what its rows of scores in float64 say."""
    wide = [scores_of(spec, *call) for call in calls]
    assert len(heads) == wide[0].shape[1]
    for h, head in enumerate(heads):
        rows = [row for scores in wide for row in scores[:, h].flatten(0, 1)]
        check_head(spec, head, rows, SINKS[h] if spec.sinks else -math.inf)


def scores_of(spec, q, k, inputs):
    """Shares no line with what is tested: minus infinity where a row sees no key."""
    q, k = q.double(), k.double().repeat_interleave(spec.groups, 1)
    rest = [t.double() if t.is_floating_point() else t for t in inputs]
    scores = attention_oracle.evaluate(spec, spec.scale * q @ k.mT, rest)
    seen = attention_oracle.visible(spec, q, k, None)
    return scores.masked_fill(~seen | (scores < -1e30), -math.inf)


def check_head(spec, head, rows, sink=-math.inf):
    rows = [row for row in rows if row.max() > -math.inf]
    every = torch.cat([row[row > -math.inf] for row in rows]).sort().values
    off = 1e-5 * every.abs().max()
    assert head.rows == len(rows)
    assert abs(head.least - every[0]) <= off
    assert abs(head.most - every[-1]) <= off
    for share, found in zip(QUANTILES, head.quantiles, strict=True):
        wanted = every[max(math.ceil(share * len(every)) - 1, 0)]
        assert -off <= wanted - found <= 0.125 + off
    if head.phi is not None:
        for phi in (head.phi, head.phi - head.slack, head.phi + head.slack):
            assert all(is_safe(spec, row, phi, sink) for row in rows)


def is_safe(spec, row, phi, sink=-math.inf):
    """Whether the kernel's check passes, of weights that are rounded as there."""
    dtype = getattr(torch, spec.dtype)
    weights = torch.exp(row - phi).to(dtype).double()
    safe = SAFE_SUMS[spec.dtype]
    seen = len(row) if spec.after is None else int((row > -math.inf).sum())
    return (
        max(safe.least, seen * safe.least_each) <= weights.sum() + math.exp(sink - phi) <= safe.most
    )


@pytest.mark.parametrize("name", CASES)
def test_ranges_are_those_of_float64(name):
    spec = CASES[name]
    heads = recorded(spec, operands(spec))
    check(spec, operands(spec), heads)
    assert heads[0].phi is not None


def test_scores_of_hundreds_have_no_phi_and_first_keys_say_little():
    calls = operands(SPEC, keys=60, spread=60.0)
    heads = recorded(SPEC, calls)
    check(SPEC, calls, heads)
    assert heads[-1].most > 400
    assert heads[-1].phi is None
    rows = [row for call in calls for row in scores_of(SPEC, *call)[:, -1].flatten(0, 1)]
    late = sum(not is_safe(SPEC, row, row[:FIRST_KEYS].max()) for row in rows)
    assert heads[-1].redone_by_first == late > 5


def mutated(name):
    """Scores with one thing wrong."""
    original = score_watching.masked_scores

    def scores(spec, query, key, inputs, lengths):
        match name:
            case "scale":
                spec = replace(spec, scale=1.0)
            case "bias":
                inputs = [torch.zeros_like(one) for one in inputs]
            case "later keys":
                spec = replace(spec, after=None)
            case "units of log 2":
                spec = replace(spec, scale=spec.scale * math.log2(math.e))
        return original(spec, query, key, inputs, lengths)

    return scores


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("scale", "all keys"),
        ("units of log 2", "all keys"),
        ("bias", "biased, float16"),
        ("later keys", "causal"),
        ("sinks", "sinks"),
    ],
)
def test_what_is_forgotten_is_seen(name, case, monkeypatch):
    monkeypatch.setattr(score_watching, "masked_scores", mutated(name))
    if name == "sinks":
        monkeypatch.setattr(torch, "logaddexp", lambda sums, sink: sums)
    with pytest.raises(AssertionError):
        check(CASES[case], operands(CASES[case]), recorded(CASES[case], operands(CASES[case])))


@pytest.mark.parametrize("order", [[1, 0, 2, 3, 4, 5], [0, 2, 4, 1, 3, 5]], ids=str)
def test_heads_in_another_order_are_seen(order):
    heads = recorded(SPEC, operands(SPEC))
    with pytest.raises(AssertionError):
        check(SPEC, operands(SPEC), [heads[h] for h in order])


def test_an_input_of_another_head_is_seen(monkeypatch):
    spec = CASES["biased, float16"]
    own = score_watching._of_head
    monkeypatch.setattr(score_watching, "_of_head", lambda tensor, b, h: own(tensor, b, 0))
    with pytest.raises(AssertionError):
        check(spec, operands(spec), recorded(spec, operands(spec)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_an_error(value):
    (q, k, inputs), *_ = operands(SPEC)
    q[0, 4, 7, 3] = value
    with pytest.raises(ProblemError, match="A score is NaN or infinite"):
        recorded(SPEC, [(q, k, inputs)])


def test_heads_that_are_sequences_are_an_error():
    (q, k, inputs), *_ = operands(SPEC)
    with pytest.raises(ProblemError, match="3 heads, and had 6 before"):
        recorded(SPEC, [(q, k, inputs), (q[:, :3], k[:, :1], inputs)])


def test_nothing_was_seen_without_keys():
    (q, k, inputs), *_ = operands(SPEC)
    assert recorded(SPEC, [(q, k[:, :, :0], inputs)]) == ()
