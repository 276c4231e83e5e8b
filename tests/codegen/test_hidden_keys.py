"""Keys that a given mask hides are not read, and what is read gives what float64 gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.checking import Sizes
from overlapc.codegen.attention.kernel import build_attention
from overlapc.codegen.attention.looking import KeptTiles, pays
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.codegen.attention.visibility import FINITE, INFINITE, hides
from overlapc.codegen.epilogue import Epilogue
from tests.codegen import score_programs as programs
from tests.codegen.catching import wrong_values

SPEC = AttentionSpec("float32", 32, 32, groups=2, scale=32**-0.5)
QUARTER = (((0, 25),), ((0, 9),))
"""Of a static cache, as many keys as it holds."""
LEFT = (((40, 66),), ((90, 100),))
HOLES = (((0, 5), (50, 52), (97, 100)), ((33, 47),))
NOTHING = (((0, 20),), ())

CASES = {
    "booleans": {"kept": QUARTER},
    "minus infinity": {"kept": LEFT, "fill": "infinite"},
    "the least number": {"kept": HOLES, "fill": "least"},
    "the least number of bfloat16": {"kept": LEFT, "fill": "least", "dtype": "bfloat16"},
    "low numbers": {"kept": QUARTER, "fill": "low"},
    "what may be a score": {"kept": HOLES, "fill": "weak", "dtype": "float16"},
    "of each head": {"kept": HOLES, "dims": "bhrk", "fill": "infinite"},
    "of heads that differ": {
        "kept": (((0, 9),), ((5, 30),)),
        "dims": "bhrk",
        "apart": 50,
        "fill": "least",
    },
    "of all sequences": {"kept": (((3, 7), (40, 60)),), "dims": "rk", "fill": "least"},
    "of keys": {"kept": (((30, 70),),), "dims": "k"},
    "a sequence of nothing": {"kept": NOTHING},
    "a sequence of the least number": {"kept": NOTHING, "fill": "least"},
    "a row of nothing": {"kept": HOLES, "dead_row": 1, "fill": "infinite"},
    "a row of the least number": {"kept": HOLES, "dead_row": 1, "fill": "least"},
}
DECODE = {"rows": 3, "keys": 100, "splits": 2}
SHORT = (
    "booleans", "the least number of bfloat16", "of each head", "a row of the least number",
)  # fmt: skip
"""In every run of the tests."""


def first(*values):
    """All values of a parameter: the first in every run of the tests, others in long ones."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.long) for value in values[1:])]


NAMES = [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in CASES]


def decode(interpreted, spec, name, call="run", mutate=(), **case):
    """One call of the decode kernel under a mask of ``CASES``."""
    named = {"mutate": mutate} if mutate else {}
    case = {**DECODE, "hiding": CASES[name], **case}
    return interpreted("decode_cases.call", call, str(spec), str(Cache()), case, **named)


@pytest.mark.parametrize("name", NAMES)
def test_few_rows_read_no_tile_that_is_hidden_from_all(interpreted, name):
    """Those hold NaN."""
    decode(interpreted, SPEC, name)


@pytest.mark.parametrize("softmax", ["online", "first_tile"])
@pytest.mark.parametrize("name", first("the least number", *CASES.keys() - {"the least number"}))
def test_few_rows_by_every_phi(interpreted, name, softmax):
    spec = replace(SPEC, dtype="float16" if softmax == "first_tile" else "bfloat16")
    decode(interpreted, replace(spec, softmax=softmax), name)


@pytest.mark.parametrize("name", first("the least number", "booleans", "minus infinity"))
def test_few_rows_that_are_computed_again_read_no_more(interpreted, name):
    decode(interpreted, SPEC, name, offset=300.0, redone=2 * 2 * 3)


@pytest.mark.parametrize("splits", first(7, 1, 2, 40))
def test_any_number_of_ctas_shares_what_is_kept(interpreted, splits):
    spec = replace(SPEC, lengths=True, after=0, align="bottom_right", sinks=True)
    decode(interpreted, spec, "booleans", splits=splits, lengths=(100, 61))


def test_more_tiles_than_one_number_tells(interpreted):
    hiding = {"kept": (((0, 3), (500, 510), (1010, 1040)),), "fill": "least"}
    case = {"batch": 1, "rows": 1, "keys": 1100, "splits": 2, "hiding": hiding}
    of_keys, of_values = decode(interpreted, SPEC, "booleans", "bytes_read", **case)
    assert of_keys == of_values == (1 + 1 + 2) * 16 * 32 * 4


@pytest.mark.parametrize(("name", "tiles"), [("booleans", 2 + 1), ("what may be a score", 14)])
def test_bytes_that_few_rows_read(interpreted, name, tiles):
    of_keys, of_values = decode(interpreted, SPEC, name, "bytes_read", keys=112)
    assert of_keys == of_values == tiles * 16 * 32 * 4


FAR = {"batch": 1, "rows": 1, "keys": 256, "splits": 4}
SHOWING = {
    "padded on the left": ((240, 256), 1, 1),
    "longer than what it holds": ((0, 10), 1, 2),
    "in the middle": ((100, 180), 6, 3),
}
"""Keys that are kept, their tiles, and in how many tiles each CTA looks for one."""


def mask_read(interpreted, kept, fill="least", **named):
    """How often few rows load a mask that keeps these keys."""
    case = {**FAR, "hiding": {"kept": (kept,), "fill": fill}, **named}
    return decode(interpreted, replace(SPEC, softmax="online"), "booleans", "mask_read", **case)


@pytest.mark.parametrize("name", SHOWING)
def test_few_rows_look_for_a_key_they_keep_where_it_is(interpreted, name):
    """Each CTA does, beside looking its own tiles through and reading what is kept."""
    kept, own, tiles = SHOWING[name]
    assert mask_read(interpreted, (kept,)) == 1 + own / 16 + tiles * FAR["splits"] / 16


def test_few_rows_that_keep_no_key_look_for_one_once(interpreted):
    """And a second time in the first tile; where minus infinity alone hides, they need not."""
    assert mask_read(interpreted, ()) == 1 + 1 + FAR["splits"] * (1 + 1 / 16)
    assert mask_read(interpreted, (), "") == 1


def test_a_mutant_that_looks_from_the_first_key_on_is_caught(interpreted):
    kept, own, tiles = SHOWING["padded on the left"]
    changes = [("tiles - 1, 0, first_tile", "0, 0, first_tile")]
    count = mask_read(interpreted, (kept,), mutate=changes)
    assert count > 1 + own / 16 + tiles * FAR["splits"] / 16


PREFILL = {"rows": 20, "keys": 100}
ALONE = replace(SPEC, groups=1, head_dim=16, value_dim=16)


def prefill(interpreted, spec, name, **named):
    """One call of the kernel of many rows."""
    case = {**PREFILL, "redone": "any", "hiding": CASES[name], **named}
    interpreted("attention_cases.run", str(spec), **case)


@pytest.mark.parametrize("name", NAMES)
def test_many_rows_read_no_tile_that_is_hidden_from_all_of_a_block(interpreted, name):
    prefill(interpreted, ALONE, name)


def test_many_rows_of_heads_that_mask_keys_otherwise(interpreted):
    prefill(interpreted, replace(ALONE, groups=2), "of heads that differ", heads=2, rows=4)


@pytest.mark.parametrize(
    ("dtype", "dim", "mask", "is_looked"),
    [
        ("bfloat16", 128, (2, 1, 64, 2048), True),
        ("bfloat16", 128, (2, 1, 64, 512), False),
        ("bfloat16", 128, (1, 8, 64, 2048), False),  # of 16 bits for each head and score
        ("bfloat16", 256, (1, 8, 64, 2048), True),
        ("float32", 128, (1, 8, 64, 2048), True),
        ("float32", 32, (1, 8, 64, 2048), False),
    ],
)
def test_masks_are_looked_through_where_it_takes_less_than_it_spares(dtype, dim, mask, is_looked):
    """Mutants: masks that differ by head cost nothing; they never pay."""
    program = programs.program(f"matrix:{dtype}", ("add.Tensor", "%0", "@0"))
    spec = replace(ALONE, dtype=dtype, head_dim=dim, value_dim=dim, program=program)
    given = torch.empty(mask, dtype=getattr(torch, dtype), device="meta")
    assert pays(spec, [given], Sizes(2, 8, mask[2], mask[3])) == is_looked


@pytest.mark.parametrize("softmax", ["online", "first_tile"])
@pytest.mark.parametrize("name", first("the least number", "booleans", "minus infinity"))
def test_many_rows_by_every_phi(interpreted, name, softmax):
    spec = replace(ALONE, dtype="float16" if softmax == "first_tile" else "bfloat16")
    prefill(interpreted, replace(spec, softmax=softmax), name, redone=0)


@pytest.mark.parametrize("name", first("the least number", "booleans", "minus infinity"))
def test_many_rows_that_are_computed_again_read_no_more(interpreted, name):
    spec = replace(ALONE, dtype="bfloat16")
    prefill(interpreted, spec, name, far=300.0, redone=2 * 20)


@pytest.mark.parametrize("name", first("booleans", "low numbers"))
def test_many_rows_beside_places_and_lengths(interpreted, name):
    before = 50 if name == "booleans" else None
    spec = replace(ALONE, lengths=True, before=before, after=0, align="bottom_right", sinks=True)
    prefill(interpreted, spec, name, lengths=(100, 61))


def test_more_tiles_of_many_rows_than_one_number_tells(interpreted):
    hiding = {"kept": (((0, 3), (490, 500), (550, 560)),), "fill": "least"}
    prefill(interpreted, ALONE, "booleans", hiding=hiding, batch=1, rows=4, keys=560)


class Launched:
    """Stands for a kernel."""

    def __init__(self):
        self.grids = []

    def __getitem__(self, grid):
        self.grids.append(grid)
        return lambda *args, **named: None


def test_any_number_of_tiles_is_one_dimension_of_a_grid(monkeypatch):
    """Of others a device takes 65535, and there are more tiles of 16 keys than that here."""
    tile = AttentionTile(64, 16, 8, 1)
    kernel = build_attention(replace(ALONE, program=programs.KEPT), tile)
    launched = Launched()
    monkeypatch.setattr(kernel.module, "FIND_KEPT", launched)
    mask = torch.empty(1, 1, 100, 1 << 21, dtype=torch.bool, device="meta")
    tiles = KeptTiles(kernel.spec, "meta", [mask], (), None, Sizes(2, 1, 100, 1 << 21))
    kept, heads = tiles.of(kernel.module, tile)
    assert launched.grids == [(kept.numel(),)] == [(2 * 2 * (1 << 17),)]
    again, _ = tiles.of(kernel.module, tile)
    assert (heads, again is kept, len(launched.grids)) == (1, True, 1)


def test_a_threshold_among_scores_is_caught(interpreted):
    changes = [("HIDDEN = tl.constexpr(-1e9)", "HIDDEN = tl.constexpr(-6e4)")]
    name = "what may be a score"
    of_keys, _ = decode(interpreted, SPEC, name, "bytes_read", mutate=changes, keys=112)
    assert of_keys < 14 * 16 * 32 * 4


OF_DECODE = {
    "a row of masks alone reads nothing": ("a row of the least number", {}, [
        ('tl.where(waits, float("-inf"), HIDDEN if', 'tl.where(waits, HIDDEN, HIDDEN if')
    ]),
    "rows beyond the last keep all": ("minus infinity", {}, [
        (" & place[3][:, None]\n        found", "\n        found")
    ]),
    "the first row speaks for all": ("a row of nothing", {}, [
        ("return tl.reduce_or(found, None)", "return tl.max(tl.where(tl.arange(0, BLOCK_M) == 2, "
         "tl.max(found, 1), 0), 0)")
    ]),
    "a tile further": ("minus infinity", {}, [
        ("tile = group + lowest_of(bits) * step", "tile = group + (lowest_of(bits) + 1) * step")
    ]),
    "its neighbour's tiles": ("booleans", {}, [
        ("        begin = first_tile + split\n", "        begin = first_tile\n")
    ]),
    "one is left out": ("the least number", {}, [
        ("tl.range(0, count_of(bits))", "tl.range(0, count_of(bits) - 1)")
    ]),
    "all are read again": ("the least number", {"offset": 300.0}, [
        ("first_tile, first_tile + tiles, 1, floor,",
         "first_tile, first_tile + tiles, 1, floor - float(\"inf\"),")
    ]),
    "φ is of hidden keys": ("the least number", {"softmax": "first_tile", "redone": 0}, [
        ("inputs,\n                            floor, SCORES",
         "inputs,\n                            None, SCORES")
    ]),
}  # fmt: skip


@pytest.mark.parametrize("mutant", [*OF_DECODE][:3] + first("", *[*OF_DECODE][3:])[1:])
def test_a_mutant_of_the_decode_kernel_is_caught(interpreted, mutant):
    name, case, changes = OF_DECODE[mutant]
    softmax = case.get("softmax", "zero")
    case = {key: value for key, value in case.items() if key != "softmax"}
    if case:
        decode(interpreted, replace(SPEC, softmax=softmax), name, **case)
    with wrong_values():
        decode(interpreted, replace(SPEC, softmax=softmax), name, mutate=changes, **case)


OF_PREFILL = {
    "a row of masks alone reads nothing": (
        "a row of the least number", {},
        ('tl.where(waits, float("-inf"), HIDDEN if', 'tl.where(waits, HIDDEN, HIDDEN if'),
    ),
    "rows that keep no key are kept": (
        "a sequence of nothing", {},
        ("(score <= floor[:, None]) == 0) & place[3][:, None]\n    tl.store",
         "score <= 9.0) & place[3][:, None]\n    tl.store"),
    ),
    "the flags of the first block": (
        "booleans", {"hiding": {"kept": (((0, 100),),) * 2, "documents": (16, 100)}},
        ("kept += corner // BLOCK_M * tl.cdiv(keys, BLOCK_N)", "kept += 0"),
    ),
    "the flags of the first head": (
        "of heads that differ", {"heads": 2}, ("tl.minimum(head, own_heads - 1)", "head * 0"),
    ),
    "a tile further": (
        "minus infinity", {}, ("start = (group + lowest_of", "start = (group + 1 + lowest_of"),
    ),
    "one is left out": (
        "the least number", {}, ("count = tl.sum(flags, 0)", "count = tl.sum(flags, 0) - 1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", [*OF_PREFILL][:2] + first("", *[*OF_PREFILL][2:])[1:])
def test_a_mutant_of_the_kernel_of_many_rows_is_caught(interpreted, mutant):
    name, case, change = OF_PREFILL[mutant]
    if case or name not in SHORT:
        prefill(interpreted, ALONE, name, **case)
    with wrong_values():
        prefill(interpreted, ALONE, name, mutate=change, **case)


TOLD = {
    "": [
        programs.SOFT_CAP, programs.KEPT_BY_SCORE,
        programs.program("one:float32", ("mul.Tensor", "%0", "@0")),
        programs.program("matrix:float32", ("add.Tensor", "%0", "@0"), ("exp.default", "%1")),
    ],
    INFINITE: [
        programs.EVERY_SHAPE,
        # The product decides how low a score is.
        programs.program("matrix:float32 one:float32", ("add.Tensor", "%0", "@0"),
                         ("mul.Tensor", "%1", "@1")),
        # There is no finite number.
        programs.KEPT,
        programs.program("matrix:float32", ("mul.Tensor", "%0", "@0")),
        programs.program("matrix:float32", ("add.Tensor", "%0", "@0"), ("add.Tensor", "%0", "%1")),
    ],
    FINITE: [
        programs.KEPT_FINITE, programs.ADDED, programs.ALIBI,
        programs.program("matrix:float32 vector:bool", ("tanh.default", "%0"),
                         ("add.Tensor", "%1", "@0"), ("where.ScalarSelf", "@1", -1e38, "%2")),
    ],
}  # fmt: skip


@pytest.mark.parametrize("told", TOLD)
def test_what_programs_tell_of_hidden_keys(told):
    assert [hides(Epilogue.parse(text)) for text in TOLD[told]] == [told] * len(TOLD[told])
