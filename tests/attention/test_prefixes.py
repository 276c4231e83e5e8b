"""Masks of caches that are longer than what they hold, as lengths: in real models and spelled out.

What is read of a mask is turned into a mask again, by what ``AttentionSpec`` says of it, and has to
be the mask that the graph computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import fx

from overlapc.graphs.attention.finding import find_sites
from overlapc.graphs.attention.masks.prefixes import Part, Prefix, read_prefix
from overlapc.graphs.attention.reading.versions import Versions
from overlapc.graphs.attention.scores.steps import Bias
from overlapc.graphs.attention.site import Attention, Fused
from tests.attention.rewriting import rewrite

KEYS = 24
BATCH = 2


@dataclass
class Read:
    """What was read in the one graph of a function."""

    prefix: Prefix | None
    groups: int
    keys: tuple[int, ...]
    """Sizes of the keys that its attention reads."""
    why: str
    """Why there is no prefix."""


def read(function, *inputs):
    """Compile a function; return what it gives with mask and lengths behind it, and ``Read``."""
    found: list[Read] = []

    def backend(module: fx.GraphModule, _examples):
        graph = module.graph
        versions = Versions(graph)
        _, site = next(iter(find_sites(graph)))
        assert isinstance(site, Attention | Fused), site
        rows, keys = site.query.shape[-2], site.key.shape[-2]
        mask = mask_of(site)
        prefix = read_prefix(versions, Part(mask, rows, keys))
        why = prefix if isinstance(prefix, str) else ""
        prefix = None if isinstance(prefix, str) else prefix
        found.append(Read(prefix, site.groups, tuple(site.key.shape), why))
        output = next(iter(reversed(graph.nodes)))
        with graph.inserting_before(output):
            lengths = prefix.emit_lengths(graph, BATCH) if prefix else mask
        output.args = ((*output.args[0], mask, lengths),)
        module.recompile()
        # The wrapper of Dynamo takes as many results as the graph had.
        results: list = []

        def run(*args):
            *own, said, length = module(*args)
            results[:] = [said, length]
            return own

        found[-1].results = results
        return run

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    return compiled, found


def mask_of(site: Attention | Fused) -> fx.Node:
    if isinstance(site, Fused):
        mask = site.node.kwargs["attn_mask"]
        assert isinstance(mask, fx.Node)
        return mask
    (part,) = site.mask.parts
    return part.tensor.node if isinstance(part, Bias) else part.condition.node


def as_mask(prefix: Prefix, lengths: torch.Tensor, rows: int, keys: int) -> torch.Tensor:
    """The mask that a kernel makes of it: ``[batch, 1, rows, keys]``."""
    own = torch.arange(rows) + lengths[:, None] - rows
    key = torch.arange(keys)
    kept = key <= own[..., None]
    if prefix.before is not None:
        kept &= key >= own[..., None] - prefix.before
    return kept[:, None]


def check(found: Read, rows: int) -> torch.Tensor:
    """Raise AssertionError unless the lengths say what the mask does; return them."""
    assert found.prefix is not None
    assert found.prefix.says_all
    said, lengths = found.results
    kept = said if said.dtype == torch.bool else said == 0
    assert lengths.dtype == torch.int32
    assert lengths.shape == (BATCH,)
    assert lengths.is_contiguous()
    wanted = as_mask(found.prefix, lengths, rows, KEYS)
    assert torch.equal(kept.expand(BATCH, 1, rows, KEYS), wanted)
    return lengths


def positions(rows, offset):
    return torch.arange(rows) + offset


def columns():
    return torch.arange(KEYS)[None, None, None, :]


SPELLINGS = {
    "up to its own": lambda own: columns() <= own[None, None, :, None],
    "its own and after": lambda own: own[None, None, :, None] >= columns(),
    "before the next": lambda own: columns() < own[None, None, :, None] + 1,
    "counted from one": lambda own: columns() + 0 <= (own.unsqueeze(0)[None] + 0).unsqueeze(-1),
    "expanded": lambda own: (columns() <= own[:, None]).expand(BATCH, 1, -1, KEYS),
    "a window": lambda own: (columns() <= own[:, None]) & (columns() > own[:, None] - 5),
    "a window, spelled apart": lambda own: torch.logical_and(
        own[:, None] - 5 < columns(), own[:, None] >= columns()
    ),
    "what comes later is left out": lambda own: ~(columns() > own[:, None]),
    "a window, left out": lambda own: torch.logical_not(
        (own[:, None] < columns()) | (own[:, None] - 5 >= columns())
    ),
    "keys first": lambda own: (columns().view(-1, 1) <= own).mT,
    "a window, keys first": lambda own: (
        ((columns()[0, 0].mT <= own) & (own[:, None] - 5 < columns()[0, 0]).mT).mT
    ),
    "and nothing else": lambda own: (columns() <= own[:, None]) & torch.ones(1, KEYS).bool(),
}
OTHERS = {
    "half a key less": lambda own: columns() <= own[:, None] - 0.5,
    "one more": lambda own: columns() <= own[:, None] + 1,
    "not its own": lambda own: columns() < own[:, None],
    "later ones": lambda own: columns() >= own[:, None],
    "keys backwards": lambda own: columns().flip(-1) <= own[:, None],
    "every second key": lambda own: columns() * 2 <= own[:, None],
    "rows backwards": lambda own: columns() <= own.flip(0)[:, None],
    "rows shuffled": lambda own: columns() <= own[torch.tensor([1, 0, 2])][:, None],
    "rows two apart": lambda own: columns() <= (2 * own)[:, None],
    "or": lambda own: (columns() <= own[:, None]) | (columns() > own[:, None] - 5),
    "a condition of its own": lambda own: (columns() <= own[:, None]) & (own[:, None] > 3),
    "left out": lambda own: ~(columns() <= own[:, None]),
    "not both": lambda own: ~((columns() > own[:, None]) & (columns() <= own[:, None] - 5)),
    "a window without an end": lambda own: columns() > own[:, None] - 5,
}


MORE = ("a condition of its own",)
"""Those that say a length and something else."""
MOVED = {
    "half a key less", "one more", "not its own", "later ones", "rows backwards", "rows shuffled",
    "rows two apart", "left out", "a window without an end",
}  # fmt: skip
"""Those that compare the numbers of keys with anything."""
MOVED_WHY = "its mask compares them with other positions than those of the last rows"


def attention(spelling, rows, *, added):
    def function(q, k, v, offset):
        mask = spelling(positions(rows, offset))
        if added:
            mask = torch.where(mask, 0.0, -3e38)
        offset.add_(rows)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return function


def operands(rows):
    q = torch.randn(BATCH, 4, rows, 8)
    return q, torch.randn(BATCH, 4, KEYS, 8), torch.randn(BATCH, 4, KEYS, 8)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("added", [False, True], ids=["bool", "added"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_a_length(name, added, rows):
    compiled, found = read(attention(SPELLINGS[name], rows, added=added), *operands(rows))
    offset = torch.tensor(7)
    for step in range(3):
        compiled(*operands(rows), offset)
        lengths = check(found[0], rows)
        assert lengths.tolist() == [7 + rows * (step + 1)] * BATCH
    assert len(found) == 1, "another length compiled another graph"
    assert found[0].prefix.before == (4 if "window" in name else None)


@pytest.mark.parametrize("name", OTHERS)
def test_another_mask_is_none(name):
    compiled, found = read(attention(OTHERS[name], 3, added=False), *operands(3))
    compiled(*operands(3), torch.tensor(7))
    if name in MORE:
        assert found[0].prefix is not None
        assert not found[0].prefix.says_all
        return
    assert found[0].prefix is None
    assert found[0].why == MOVED_WHY * (name in MOVED)


def keys_first(q, k, v, offset):
    kept = torch.arange(KEYS)[:, None] <= positions(q.shape[-2], offset)
    return ((k @ q.mT).masked_fill(~kept, -torch.inf)).softmax(-2).mT @ v


def later_filled(q, k, v, offset):
    later = torch.arange(KEYS) > positions(q.shape[-2], offset)[:, None]
    return (q @ k.mT).masked_fill(later, -torch.inf).softmax(-1) @ v


def zeros_filled(q, k, v, offset):
    later = torch.arange(KEYS) > positions(q.shape[-2], offset)[:, None]
    mask = torch.zeros(q.shape[-2], KEYS).masked_fill(later, -torch.inf)
    return (q @ k.mT + mask).softmax(-1) @ v


def test_one_row_may_spell_its_position_in_any_shape():
    """Mutants: positions are vectors; a number is no position."""

    def added(q, k, v, own):
        kept = torch.arange(KEYS)[None] <= own + torch.arange(q.shape[-2])[:, None]
        return (q @ k.mT).masked_fill(~kept, -torch.inf).softmax(-1) @ v

    def alone(q, k, v, own):
        return torch.where(torch.arange(KEYS) <= own, q @ k.mT, -torch.inf).softmax(-1) @ v

    inputs, own = operands(1), torch.tensor(7)
    with torch.no_grad():
        for function in (added, alone):
            done = rewrite(function, *inputs, own)
            assert done.codes == ["valid_keys"]
            wanted = function(*(t.double() for t in inputs), own)
            torch.testing.assert_close(done.function(*inputs, own).double(), wanted,
                                       atol=1e-5, rtol=1e-5)  # fmt: skip


def test_of_a_mask_that_is_an_input_the_report_says_that_all_keys_are_read():
    """As ``generate`` of transformers makes it, outside of what is compiled."""

    def function(q, k, v, kept):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=kept)

    with torch.no_grad():
        done = rewrite(function, *operands(1), torch.ones(BATCH, 1, 1, KEYS).bool())
    assert "its mask is an input" in done.sites[0].reason


@pytest.mark.parametrize("function", [keys_first, later_filled, zeros_filled])
def test_scores_that_a_cache_of_fixed_size_has_are_told_its_length(function):
    """Mutants: a mask that is exchanged is read as it is spelled, or not at all; what is filled
    is what is kept; a comparison is not negated."""
    inputs = operands(3)
    with torch.no_grad():
        done = rewrite(function, *inputs, torch.tensor(7), softmax="sdpa")
        assert done.codes == ["valid_keys"]
        for offset in (7, 12):
            wanted = function(*(t.double() for t in inputs), torch.tensor(offset))
            poisoned = [side.clone() for side in inputs]
            for side in poisoned[1:]:
                side[:, :, offset + 3 :] = torch.nan
            found = done.function(*poisoned, torch.tensor(offset))
            torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def test_positions_that_are_overwritten_are_none():
    def function(q, k, v, offset):
        own = positions(3, offset)
        mask = columns() <= own[:, None]
        own.add_(1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    compiled, found = read(function, *operands(3))
    compiled(*operands(3), torch.tensor(7))
    assert found[0].prefix is None


def test_a_mask_that_is_overwritten_is_none():
    """What it says before is read from nowhere."""

    def function(q, k, v, offset):
        mask = columns() <= positions(3, offset)[:, None]
        mask[..., 0] = False
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    done = rewrite(function, *operands(3), torch.tensor(7))
    assert "lengths=1" not in done.after[-1]
    assert done.after == done.before


def test_positions_of_each_sequence_are_none():
    def function(q, k, v, offsets):
        own = torch.arange(3) + offsets[:, None]
        mask = columns() <= own[:, None, :, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    compiled, found = read(function, *operands(3))
    compiled(*operands(3), torch.tensor([7, 9]))
    assert found[0].prefix is None
    assert "other positions" in found[0].why


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.long)])
def test_a_static_cache_of_a_llama(implementation, rows):
    transformers = pytest.importorskip("transformers", reason="needs the extra 'models'")
    from tests.attention.families import FAMILIES, VOCABULARY, build

    model = build(FAMILIES["llama"], implementation)
    cache = transformers.StaticCache(config=model.config, max_cache_len=KEYS)

    def tokens(count):
        return torch.randint(3, VOCABULARY, (BATCH, count))

    def step(ids):
        return model(ids, past_key_values=cache, use_cache=True).logits

    with torch.no_grad():
        step(tokens(5))
        compiled, found = read(step)
        for done in range(3):
            compiled(tokens(rows))
            assert check(found[0], rows).tolist() == [5 + rows * (done + 1)] * BATCH
    assert len(found) == 1
    assert found[0].groups == 2
    assert found[0].keys == (BATCH, 2, KEYS, 16), "heads of keys are taken as the cache has them"


def test_a_batch_that_varies_has_one_length():
    def function(q, k, v, offset):
        mask = columns() <= positions(1, offset)[None, None, :, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def batch(size):
        torch.manual_seed(0)
        shapes = [(size, 4, rows, 8) for rows in (1, KEYS, KEYS)]
        made = [torch.randn(shape) for shape in shapes]
        for one in made:
            torch._dynamo.mark_dynamic(one, 0)
        return made

    offset = torch.tensor(7)
    with torch.no_grad():
        done = rewrite(function, *batch(2), offset)
        assert done.codes == ["valid_keys"]
        for size in (3, 5):
            inputs = batch(size)
            wanted = function(*(t.double() for t in inputs), offset)
            torch.testing.assert_close(done.function(*inputs, offset).double(), wanted,
                                       atol=1e-5, rtol=1e-5)  # fmt: skip
    assert len(done.after) == 1


@pytest.mark.parametrize("rows", [1, 3])
def test_padding_stays_a_mask_beside_the_length(rows):
    """What the cache does not hold is NaN, and a sequence of padding alone gives zeros."""

    def function(q, k, v, offset, kept):
        mask = (columns() <= positions(rows, offset)[None, None, :, None]) & kept[:, None, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    torch.manual_seed(0)
    kept = torch.ones(BATCH, KEYS, dtype=torch.bool)
    kept[0, :5] = False
    kept[1] = False
    inputs = operands(rows)
    with torch.no_grad():
        done = rewrite(function, *inputs, torch.tensor(7), kept)
        assert done.codes == ["valid_keys"]
        for offset in (7, 12):
            wanted = function(*(t.double() for t in inputs), torch.tensor(offset), kept)
            poisoned = [side.clone() for side in inputs]
            for side in poisoned[1:]:
                side[:, :, offset + rows :] = torch.nan
            found = done.function(*poisoned, torch.tensor(offset), kept)
            torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


def test_where_such_a_row_is_the_mean_of_all_values_they_are_all_read():
    def function(q, k, v, offset, kept):
        mask = (columns() <= positions(1, offset)[None, None, :, None]) & kept[:, None, None]
        added = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        return torch.softmax(q @ k.mT + added, -1) @ v

    with torch.no_grad():
        kept = torch.rand(BATCH, KEYS) < 0.5
        done = rewrite(function, *operands(1), torch.tensor(7), kept)
    assert done.codes == ["fused"]
    assert "padding may leave it none" in done.sites[0].reason
