"""Attention on processors by products of some rows at a time, over the keys that they see."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.planning.attention import by_rows as planned
from overlapc.planning.attention.by_rows import has_heads
from overlapc.runtime.attention import by_rows, library, products
from overlapc.runtime.attention.masks import Added, Filled, Input, program_of
from tests.attention.rewriting import rewrite

CAUSAL = AttentionSpec("float32", 16, 16, groups=2, scale=0.25, after=0)
ADDED = replace(CAUSAL, after=None, program=program_of((Added(Input("matrix", "float32")),)))
KEPT = replace(
    CAUSAL, after=None, program=program_of((Filled(Input("matrix", "bool"), -math.inf, True),))
)
LEAST = torch.finfo(torch.float32).min


def operands(rows: int, keys: int, *, dtype: torch.dtype = torch.float32, columns: int = 16):
    """Of heads behind rows in memory, as models have them; one row of queries is NaN."""
    torch.manual_seed(0)
    shapes = [(2, rows, 4, 16), (2, keys, 2, 16), (2, keys, 2, columns)]
    q, k, v = (torch.randn(shape, dtype=dtype).transpose(1, 2) for shape in shapes)
    q[0, 1, rows // 2] = math.nan
    return [q, k, v]


def masked(q, k, v, mask):
    """As a model spells it; a mask of booleans keeps."""
    k, v = (side.repeat_interleave(2, 1) for side in (k, v))
    scores = 0.25 * q @ k.transpose(-1, -2)
    is_kept = mask.dtype == torch.bool
    scores = scores.masked_fill(~mask, -math.inf) if is_kept else scores + mask
    return scores.softmax(-1) @ v


def attend(q, k, v):
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    k, v = (side.repeat_interleave(2, 1) for side in (k, v))
    scores = (0.25 * q @ k.transpose(-1, -2)).masked_fill(later, torch.finfo(q.dtype).min)
    return scores.softmax(-1) @ v


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Against float64; infinite where only one is NaN."""
    if not torch.equal(found.isnan(), wanted.isnan()):
        return math.inf
    return (found - wanted).nan_to_num(0.0).abs().max().item()


def error_of(spec: AttentionSpec, inputs: list[torch.Tensor], mask=None) -> float:
    wide = [side.double() for side in inputs]
    found = library.attention_by_fused(spec, *inputs, [] if mask is None else [mask], None)
    assert found.transpose(1, 2).is_contiguous()
    if mask is None:
        return error(found, attend(*wide))
    return error(found, masked(*wide, mask if mask.dtype == torch.bool else mask.double()))


@pytest.fixture(autouse=True)
def _of_few_rows(monkeypatch):
    """Products are faster of a few, and whatever they see."""
    monkeypatch.setattr(planned, "LEAST_ROWS", 64)
    monkeypatch.setattr(planned, "MOST_SEEN", 1.0)
    monkeypatch.setattr(planned, "has_heads", lambda *counts: True)  # of any machine
    monkeypatch.setattr(by_rows, "has_heads", lambda *counts: True)
    monkeypatch.setattr(planned, "LEAST_DIM", 16)
    monkeypatch.setattr(by_rows, "LOOKED_THROUGH", 4)


@pytest.fixture
def seen(monkeypatch):
    """Of which keys each call of products is."""
    calls, own = [], by_rows.attention_by_products

    def noting(*given):
        calls.append(given[-1])
        return own(*given)

    monkeypatch.setattr(by_rows, "attention_by_products", noting)
    return calls


SIZES = [(128, 128), (300, 300), (65, 200), (200, 100)]


@pytest.mark.parametrize("columns", [16, 6])
@pytest.mark.parametrize(("rows", "keys"), SIZES)
def test_any_number_of_rows_and_keys(rows, keys, columns, seen):
    """A row of queries that is NaN gives NaN, as in eager. Mutant: all are given all keys."""
    spec = replace(CAUSAL, value_dim=columns)
    assert error_of(spec, operands(rows, keys, columns=columns)) < 1e-5
    assert seen == [[(0, min(start + 64, keys)) for start in range(0, rows, 64)]]


@pytest.mark.parametrize("what", [math.nan, math.inf, -math.inf])
def test_a_key_that_is_no_number_reaches_no_row_before_it(what):
    """Mutant: minus infinity is added, which NaN stays beside."""
    inputs = operands(300, 300)
    inputs[1][0, 0, 290] = what
    assert error_of(CAUSAL, inputs) < 1e-5


def test_rows_that_are_masked_otherwise_are_wrong(monkeypatch):
    """The mutant whose diagonal lies a key further."""
    own = products._hide
    monkeypatch.setattr(
        products,
        "_hide",
        lambda scores, mask, rows, keys: own(scores, mask, slice(rows.start + 1, 0), keys),
    )
    assert not any(error_of(CAUSAL, operands(rows, keys)) < 1e-5 for rows, keys in SIZES)


def padded(kind: str, rows: int, keys: int) -> torch.Tensor:
    """Which keys rows see: causal with padding before one sequence and behind the other."""
    kept = torch.ones(2, 1, rows, keys, dtype=torch.bool).tril(keys - rows)
    kept[0, ..., :20] = kept[1, ..., -30:] = False
    kept[..., :9] = False
    if kind == "bool":
        return kept
    return torch.zeros(kept.shape).masked_fill_(~kept, {"least": LEAST}.get(kind, -math.inf))


@pytest.mark.parametrize(("rows", "keys"), [(300, 300), (100, 333), (64, 64)])
@pytest.mark.parametrize("kind", ["bool", "least", "infinite"])
def test_a_mask_that_is_given_is_looked_through(kind, rows, keys, seen):
    """Rows that see no key (the first ones of sequence 0) are what eager makes of them: NaN, or
    the mean of all values, for which their block reads all. Mutants: ``has_part`` is true of none
    of those rows' keys; blocks are of the keys that their first row sees; none begins later."""
    spec = KEPT if kind == "bool" else ADDED
    mask = padded(kind, rows, keys)
    assert error_of(spec, operands(rows, keys), mask) < 1e-5
    (spans,) = seen
    wanted = [(9, min(start + 64, rows) + keys - rows) for start in range(0, rows, 64)]
    if kind == "least" and rows == keys:
        wanted[0] = (0, keys)
    assert spans == wanted


def test_rows_without_a_key_are_zeros_where_eager_has_zeros(seen):
    mask = padded("bool", 300, 300)
    inputs = operands(300, 300)
    spec = replace(KEPT, dead="zero")
    found = library.attention_by_fused(spec, *inputs, [mask], None)
    assert found.transpose(1, 2).is_contiguous()
    wanted = masked(*(side.double() for side in inputs), mask)
    dead = ~mask.any(-1, keepdim=True).expand_as(wanted)
    assert dead.any()
    assert (found[dead] == 0.0).all()
    assert seen
    assert error(found, wanted.masked_fill(dead, 0.0)) < 1e-5


@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.parametrize("kind", ["bool", "least"])
def test_hidden_keys_that_are_no_numbers_spoil_rows_as_in_eager(side, kind, seen):
    """Mutant: they are not looked for, and rows that do not read them are numbers."""
    inputs = operands(300, 300)
    inputs[side][1, 0, 299] = math.nan
    mask = padded(kind, 300, 300)
    assert error_of(KEPT if kind == "bool" else ADDED, inputs, mask) < 1e-5
    assert seen == [[(0, 300)] * 5]


def in_float32(q, k, v):
    """Scores of 16 bits' operands that are computed in float32, as some models do."""
    later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    k, v = (side.repeat_interleave(2, 1) for side in (k, v))
    scores = (0.25 * (q.float() @ k.float().mT)).masked_fill(later, -math.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def steep(rows: int, keys: int) -> list[torch.Tensor]:
    """Operands in bfloat16 whose scores are of tens: rounded to 8 bits they say little."""
    q, *others = operands(rows, keys, dtype=torch.bfloat16)
    return [q * 20, *others]


def test_in_bfloat16_rounding_is_that_of_what_is_spelled(seen):
    """Against float64."""
    inputs = steep(300, 300)
    spec = replace(CAUSAL, dtype="bfloat16", rounds=True)
    wide = [side.double() for side in inputs]
    assert error_of(spec, inputs) <= 1.1 * error(attend(*inputs), attend(*wide))
    kept = padded("bool", 300, 300)
    own = replace(KEPT, dtype="bfloat16", rounds=True)
    assert error_of(own, inputs, kept) <= 1.1 * error(masked(*inputs, kept), masked(*wide, kept))
    assert len(seen) == 2


@pytest.mark.parametrize("kind", ["causal", "bool", "least"])
def test_in_bfloat16_no_score_is_rounded_that_was_not(kind, seen):
    """Against float64. Mutants: ``spec.rounds`` is not asked; a mask that is added is taken."""
    inputs = steep(300, 300)
    mask = None if kind == "causal" else padded(kind, 300, 300)
    spec = {"causal": CAUSAL, "bool": KEPT}.get(kind, ADDED)
    spec = replace(spec, dtype="bfloat16", rounds=kind == "least")
    assert error_of(spec, inputs, mask) < 0.03
    assert not seen


@pytest.mark.parametrize(("seen_share", "wanted"), [(0.6, 1), (0.4, 0)])
def test_where_few_keys_are_hidden_torchs_own_is_called(seen_share, wanted, seen, monkeypatch):
    """Of 192 rows in three blocks a mask shows two thirds of all, and 4 % less before them."""
    monkeypatch.setattr(planned, "MOST_SEEN", seen_share + 0.05)
    mask = padded("bool", 192, 192)
    assert error_of(KEPT, operands(192, 192), mask) < 1e-5
    assert len(seen) == wanted


def test_of_few_heads_torchs_own_is_called(seen, monkeypatch):
    """Whatever was planned: a call may have more threads. Mutant: only the planner asks."""
    monkeypatch.setattr(by_rows, "has_heads", has_heads)
    assert error_of(CAUSAL, operands(192, 192)) < 1e-5
    assert not seen


def test_what_a_model_spells_out_is_computed_so(seen, monkeypatch):
    inputs = operands(192, 192)
    wide = [side.double() for side in inputs]
    with torch.no_grad():
        done = rewrite(attend, *inputs)
        assert done.codes == ["by_rows"]
        assert error(done.function(*inputs), attend(*wide)) < 1e-5
        assert len(seen) == 2
        mask = padded("least", 192, 192)
        assert rewrite(masked, *inputs, mask).codes == ["fused"], "what it hides is not known"
        monkeypatch.setattr(planned, "LEAST_ROWS", 193)
        assert rewrite(attend, *inputs).codes == ["fused"]
    monkeypatch.setattr(planned, "LEAST_ROWS", 192)
    inputs[0].requires_grad_()
    assert rewrite(attend, *inputs).codes == ["fused"], "gradients are those of torch's kernel"


def test_torchs_own_attention_in_float32_is_computed_so(seen):
    """In bfloat16 it rounds no score, which products do, so it stays."""
    inputs = operands(512, 512)

    def function(*sides):
        return F.scaled_dot_product_attention(*sides, is_causal=True, enable_gqa=True)

    with torch.no_grad():
        done = rewrite(function, *inputs, softmax="auto")
        assert done.codes == ["by_rows"]
        assert error(done.function(*inputs), attend(*(side.double() for side in inputs))) < 1e-5
        assert seen
        narrow = [side.bfloat16() for side in inputs]
        assert rewrite(function, *narrow, softmax="auto").codes == ["=fused_already"]
        assert rewrite(attend, *narrow, softmax="auto").codes == ["by_rows"]


def test_where_rows_vary_a_call_of_torchs_attention_stays(seen):
    """Of few rows our op took nearly twice as long. Mutant: ``varying`` is not asked."""

    def function(*sides):
        return F.scaled_dot_product_attention(*sides, is_causal=True)

    inputs = [torch.randn(2, 4, 512, 64) for _ in range(3)]
    with torch.no_grad():
        assert rewrite(function, *inputs, softmax="auto").codes == ["by_rows"]
        for side in inputs:
            torch._dynamo.mark_dynamic(side, 2)
        done = rewrite(function, *inputs, dynamic=None, softmax="auto")
        assert done.codes == ["=fused_already"]
        done.function(*inputs)
        assert len(seen) == 1, "of the first graph alone"


@pytest.mark.parametrize("softmax", ["auto", "sdpa"])
def test_what_computes_scores_in_float32_is_not_rounded_to_bfloat16(softmax, seen):
    """Against float64. Mutant: ``rounds`` is true of every product."""
    inputs = steep(512, 512)
    wanted = in_float32(*(side.double() for side in inputs))  # float32 is near enough
    with torch.no_grad():
        done = rewrite(in_float32, *inputs, softmax=softmax)
        assert done.codes == [{"auto": "=not_measured", "sdpa": "fused"}[softmax]]
        assert error(done.function(*inputs), wanted) < 0.03
        done = rewrite(attend, *inputs, softmax=softmax)
        assert done.codes == ["by_rows"]
        done.function(*inputs)
        assert seen, "what rounds them is computed so"


def test_no_default_device_of_a_user_is_where_it_computes():
    """Mutant: what is later is made there."""
    inputs = operands(130, 130)
    wanted = attend(*(side.double() for side in inputs))
    with torch.device("meta"):
        found = by_rows.by_products(CAUSAL, *inputs, None, is_causal=True)
    assert found is not None
    assert error(found, wanted) < 1e-5
