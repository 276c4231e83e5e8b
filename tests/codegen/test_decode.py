"""Values of generated decode attention, in Triton's interpreter, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest

from overlapc.codegen.attention.cache import Cache
from overlapc.codegen.attention.decode import build_decode
from overlapc.codegen.attention.policies import POLICIES
from overlapc.codegen.attention.spec import AttentionSpec
from overlapc.codegen.attention.tiles import AttentionTile
from overlapc.errors import KernelError
from tests.codegen.catching import wrong_values
from tests.codegen.pairs import all_pairs

SPEC = AttentionSpec("float32", 32, 32, groups=3, scale=32**-0.5)
CAUSAL = replace(SPEC, after=0, align="bottom_right")
WINDOW = replace(CAUSAL, before=20)
LATENT = AttentionSpec("bfloat16", 576, 512, groups=16, scale=576**-0.5)
PLAIN = Cache()
SHARED = Cache(shares_values=True)
NARROW = Cache(dtype="float8_e4m3fn", scales=True)
WITH_LENGTHS = replace(CAUSAL, lengths=True)
PAGED, READ = WITH_LENGTHS, Cache(page=16)
ROWS_OF_ALL = 2 * 1 * 3
"""Rows of a case's usual sizes: batch, heads of keys, groups."""


def first(*values):
    """All values of a parameter: the first in every run of the tests, others in long ones."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.long) for value in values[1:])]


def check(interpreted, spec, cache=PLAIN, call="run", *, mutate=(), launches=None, **case):
    """Do what ``decode_cases.CALLS`` names on random data, in a process of the interpreter."""
    named = {"mutate": mutate} if mutate else {}
    if launches is not None:
        named["launches"] = launches
    return interpreted("decode_cases.call", call, str(spec), str(cache), case, **named)


@pytest.mark.parametrize("softmax", first("first_tile", *sorted(POLICIES.keys() - {"first_tile"})))
def test_every_source_of_phi(interpreted, softmax):
    spec = replace(WINDOW, softmax=softmax, sinks=softmax == "sink", lengths=True)
    spec = replace(spec, bound=2.5 if softmax == "bound" else 0.0)
    check(interpreted, spec, rows=3, lengths=(100, 37))


@pytest.mark.parametrize("splits", first(7, 1, 2, 40))
def test_any_number_of_ctas_shares_the_keys(interpreted, splits):
    check(interpreted, WITH_LENGTHS, rows=2, splits=splits, lengths=(100, 33))


@pytest.mark.parametrize("lengths", first((100, 0), (1, 2), (16, 17), (99, 80)), ids=str)
@pytest.mark.parametrize("softmax", first("zero", "first_tile", "online"))
def test_a_cache_is_read_up_to_its_length(interpreted, lengths, softmax):
    # Beyond it stand NaN, which one read of them would spread.
    spec = replace(CAUSAL, lengths=True, softmax=softmax)
    check(interpreted, spec, rows=2, lengths=lengths, redone=0)


def test_one_length_is_read_for_all_sequences(interpreted):
    """And need not be copied for each. Mutant: lengths are taken to follow one another."""
    check(interpreted, WITH_LENGTHS, rows=2, lengths=(61, 61))


@pytest.mark.parametrize("spec", first(WINDOW, CAUSAL), ids=["window", "causal"])
def test_a_sequence_may_end_beyond_its_cache(interpreted, spec):
    # Its rows stand where they stood; a row of a window that lies beyond sees no key.
    check(interpreted, replace(spec, lengths=True), rows=3, lengths=(102, 130))


@pytest.mark.parametrize("groups", first(7, 1, 2, 5, 16, 64))
def test_any_number_of_queries_shares_a_head(interpreted, groups):
    check(interpreted, replace(CAUSAL, groups=groups), batch=1, rows=2, keys=70)


@pytest.mark.parametrize("block_m", first(16, 64))
def test_one_row_of_more_heads_than_a_block_holds(interpreted, block_m):
    check(interpreted, replace(SPEC, groups=71), batch=1, rows=1, keys=70, block_m=block_m)


@pytest.mark.parametrize("softmax", first("zero", "first_tile", "online"))
@pytest.mark.parametrize("splits", first(2, 1))
def test_a_block_of_64_rows_is_added_in_parts_and_computed_again(interpreted, softmax, splits):
    """Totals of 512 columns in two parts; then bad rows are written over what was."""
    spec = replace(LATENT, groups=64, softmax=softmax)
    is_zero = softmax == "zero"
    case = {"batch": 1, "keys": 128, "block_n": 32, "block_m": 64, "splits": splits}
    case |= {"factor": 150.0, "redone": 64 if is_zero else None}
    check(interpreted, spec, SHARED, **case)
    again = "store_rows(result, 0, redone_total, redone_sums, is_bad"
    mutant = (again, f"{again} & (sums < 0)")
    if not is_zero and splits == 2:
        mutant = ("store_rows(result, corner, total", "store_rows(result, 0, total")
    if is_zero or splits == 2:
        with wrong_values():
            check(interpreted, spec, SHARED, mutate=[mutant], **case)


@pytest.mark.parametrize("rows", first(4, 1, 16))
def test_rows_see_keys_up_to_their_own(interpreted, rows):
    check(interpreted, CAUSAL, rows=rows)
    check(interpreted, WINDOW, rows=rows, splits=2)


def test_a_row_may_see_later_keys_and_the_first_be_its_own(interpreted):
    check(interpreted, replace(SPEC, before=3, after=40), rows=4)


@pytest.mark.parametrize("page", first(16, 64, 256))
@pytest.mark.parametrize("layout", first("bshd", "bhsd"))
def test_pages_are_read_as_the_table_says(interpreted, page, layout):
    case = {"rows": 2, "lengths": (90, 61), "layout": layout, "block_n": 32}
    check(interpreted, WITH_LENGTHS, Cache(page=page), **case)


@pytest.mark.parametrize("cache", first(READ, replace(SHARED, page=16), replace(READ, page=64)))
def test_pages_before_all_windows_are_not_read(interpreted, cache):
    """Nor looked up: those that the table names there are NaN."""
    spec = LATENT if cache.shares_values else CAUSAL
    spec = replace(spec, before=20, after=0, align="bottom_right", lengths=True)
    check(interpreted, spec, cache, rows=2, lengths=(76, 46), block_n=32)


@pytest.mark.parametrize("spec", first(replace(LATENT, lengths=True), LATENT), ids=["lengths", ""])
@pytest.mark.parametrize("page", first(32, 0))
def test_latent_attention_reads_keys_once_and_values_never(interpreted, spec, page):
    cache = replace(SHARED, page=page)
    case = {"batch": 2, "heads": 1, "keys": 64, "block_n": 32, "splits": 2, "lengths": (64, 40)}
    keys = 104 if spec.lengths else 128
    of_keys, of_values = check(interpreted, spec, cache, "bytes_read", **case)
    assert (of_keys, of_values) == (keys * 576 * 2, keys * 576 * 2)  # V is the same memory


@pytest.mark.parametrize("page", first(0, 32))
def test_a_latent_cache_of_two_tensors_is_read_once(interpreted, page):
    spec = AttentionSpec("float32", 48, 32, groups=3, scale=0.1, lengths=True)
    read = check(
        interpreted, spec, replace(SHARED, page=page), "bytes_read", is_apart=True, heads=2,
        lengths=(64, 40), keys=64, layout="strided",
    )  # fmt: skip
    assert read == (2 * 104 * 16 * 4, 2 * 104 * 32 * 4)


def test_keys_and_values_are_read_once(interpreted):
    spec = replace(SPEC, groups=5, softmax="first_tile")
    read = check(interpreted, spec, call="bytes_read", batch=1, rows=2)
    assert read == (100 * 32 * 4,) * 2


@pytest.mark.parametrize(
    "dims", first((80, 96), (64, 64), (96, 64), (128, 256), (192, 128)), ids=str
)
def test_dimensions_of_heads(interpreted, dims):
    check(interpreted, replace(SPEC, head_dim=dims[0], value_dim=dims[1], groups=2), keys=70)


@pytest.mark.parametrize("dtype", first("bfloat16", "float16", "float32"))
@pytest.mark.parametrize("cache", first(NARROW, PLAIN), ids=["fp8", ""])
def test_dtypes(interpreted, dtype, cache):
    spec = replace(CAUSAL, dtype=dtype, softmax="first_tile" if dtype == "float16" else "zero")
    check(interpreted, spec, cache, rows=2, scale_per_head=True)


@pytest.mark.parametrize("factor", first(1e-30, 1e30, 1e-38))
def test_queries_of_any_size_meet_keys_of_float8(interpreted, factor):
    """Which multiply them in float16, over a power of two. Mutants: they are taken as they are, or
    what they were divided by is lost."""
    spec = replace(CAUSAL, dtype="bfloat16", scale=0.2 / factor, head_dim=48, value_dim=32)
    case = {"factor": factor, "rows": 2}
    check(interpreted, spec, NARROW, **case)
    for mutant in (
        ("times = ((268 - exponent) << 23)", "times = ((127 + exponent * 0) << 23)"),
        ("scale = (over * scale)[:, None]", "scale = (over * 0.0 + scale)[:, None]"),
    ):
        with wrong_values():
            check(interpreted, spec, NARROW, mutate=[mutant], **case)


def test_every_byte_is_the_number_that_it_is_in_fp8(interpreted):
    assert interpreted("decode_cases.numbers_of_bytes_differ") == []


@pytest.mark.parametrize("dtype", first("bfloat16", "float16", "float32"))
def test_fp8_on_devices_that_do_not_convert_it(interpreted, dtype):
    spec = replace(CAUSAL, dtype=dtype, lengths=True)
    case = {"rows": 2, "lengths": (100, 37), "architecture": "sm_80"}
    check(interpreted, spec, replace(NARROW, page=16), **case)


@pytest.mark.parametrize("layout", first("strided", "bshd"))
def test_strides(interpreted, layout):
    check(interpreted, CAUSAL, rows=2, layout=layout)


@pytest.mark.parametrize("mask", first("bool", "bias", "slopes"))
@pytest.mark.parametrize("softmax", first("zero", "first_tile", "online"))
def test_masks_and_biases_that_are_tensors(interpreted, mask, softmax):
    # One row of "bool" keeps no key: it is NaN, and not counted as computed again.
    redone = 0 if mask == "bool" else None
    check(interpreted, replace(CAUSAL, softmax=softmax), rows=2, mask=mask, redone=redone)


@pytest.mark.parametrize("softmax", first("zero", "bound", "head", "first_tile"))
@pytest.mark.parametrize("offset", first(-300.0, 300.0))
def test_scores_far_from_phi_are_computed_again(interpreted, softmax, offset):
    spec = replace(CAUSAL, softmax=softmax, bound=1.0 if softmax == "bound" else 0.0)
    # phi of each head is measured where the scores are, and the first tile is there itself.
    redone = 0 if softmax in ("head", "first_tile") else ROWS_OF_ALL
    check(interpreted, spec, offset=offset, redone=redone)


@pytest.mark.parametrize("mask", first("padding", ""))
def test_parts_whose_first_keys_are_hidden_are_not_computed_again(interpreted, mask):
    # By a mask before the first keys, or because all keys of a part stand after a row's own.
    spec = replace(CAUSAL, dtype="float16", softmax="first_tile")
    case = {"rows": 4, "keys": 98, "splits": 7, "offset": -300.0, "mask": mask}
    check(interpreted, spec, redone=0, **case)


def test_many_keys_of_float16(interpreted):
    spec = replace(CAUSAL, dtype="float16", softmax="first_tile", groups=2)
    check(interpreted, spec, batch=1, keys=20000, block_n=32768, factor=8.0, redone=0)


@pytest.mark.parametrize("softmax", first("zero", "first_tile"))
def test_rows_that_masks_leave_no_key_cost_no_walk(interpreted, softmax):
    spec = replace(SPEC, softmax=softmax)
    case = {"rows": 2, "mask": "bool", "redone": 0}  # of the first batch, row 0 keeps no key
    of_keys, of_values = check(interpreted, spec, call="bytes_read", **case)
    once = 2 * 100 * 32 * 4
    assert of_values == once
    # A part looks for the first keys of a row of which it hides those of one tile.
    assert of_keys - once in range(1 if softmax == "zero" else 3 * 2 * 16 * 32 * 4 + 1)


@pytest.mark.parametrize("dtype", first("bfloat16", "float16", "float32"))
@pytest.mark.parametrize("softmax", first("zero", "first_tile", "online"))
def test_scores_of_hundreds(interpreted, dtype, softmax):
    spec = replace(CAUSAL, dtype=dtype, softmax=softmax)
    check(interpreted, spec, factor=150.0, redone=ROWS_OF_ALL if softmax == "zero" else None)


@pytest.mark.parametrize("softmax", first("first_tile", "zero", "sink", "online"))
@pytest.mark.parametrize("sink", first(0.0, -200.0, 200.0))
def test_a_sink_is_counted_once(interpreted, softmax, sink):
    spec = replace(CAUSAL, softmax=softmax, sinks=True)
    check(interpreted, spec, sinks=sink, rows=2, splits=4)


@pytest.mark.parametrize("softmax", first("zero", "first_tile", "sink", "online"))
def test_a_sink_that_is_no_number_is_seen(interpreted, softmax):
    """So is a score: logarithms of such sums are none. The mutant that takes them for too large."""
    spec = replace(SPEC, softmax=softmax, sinks=True)
    check(interpreted, spec, sinks=float("nan"), splits=4)
    check(interpreted, SPEC, factor=float("nan"), splits=4)
    if softmax == "zero":
        mutant = ('sums > MOST, float("inf"), sums', 'sums <= MOST, sums, float("inf")')
        with wrong_values():
            check(interpreted, SPEC, factor=float("nan"), splits=4, mutate=[mutant])


@pytest.mark.parametrize("splits", first(3, 1))
def test_a_sink_does_not_hide_that_keys_are_lost(interpreted, splits):
    spec = replace(CAUSAL, dtype="bfloat16", softmax="bound", bound=105.0, sinks=True)
    case = {"sinks": 60.0, "splits": splits}
    check(interpreted, spec, offset=10.0, redone=ROWS_OF_ALL, **case)
    check(interpreted, spec, offset=80.0, redone=0, **case)
    mutant = ("is_exact(of_keys, sums,", "is_exact(sums, sums,")
    with wrong_values():
        check(interpreted, spec, offset=10.0, redone=ROWS_OF_ALL, mutate=[mutant], **case)


@pytest.mark.parametrize("splits", first(3, 1))
def test_rows_that_masks_leave_a_sink_far_below_phi_are_no_rows_of_nothing(interpreted, splits):
    spec = replace(SPEC, softmax="bound", bound=200.0, sinks=True)
    case = {"mask": "padding", "keys": 40, "rows": 2, "splits": splits}
    check(interpreted, spec, redone=ROWS_OF_ALL * 2, **case)
    mutant = ("is_without_keys(of_keys, sums, sink, LEAST, MOST)", "(of_keys == 0.0)")
    with wrong_values():
        check(interpreted, spec, mutate=[mutant], **case)


@pytest.mark.parametrize("softmax", first("sink", "first_tile", "zero", "online"))
@pytest.mark.parametrize("dead", first("zero", "nan"))
def test_a_sink_of_nothing_is_none(interpreted, softmax, dead):
    spec = replace(CAUSAL, softmax=softmax, sinks=True, dead=dead, lengths=True)
    check(interpreted, spec, sinks=-float("inf"), rows=2, lengths=(100, 0), redone=0)


@pytest.mark.parametrize("dead", first("nan", "zero"))
def test_rows_that_see_no_key(interpreted, dead):
    check(interpreted, replace(WITH_LENGTHS, dead=dead), rows=4, lengths=(2, 0), redone=0)


@pytest.mark.parametrize("softmax", first("zero", "first_tile", "online"))
@pytest.mark.parametrize("groups", first(3, 12))
def test_no_order_of_ctas_changes_a_bit(interpreted, softmax, groups):
    spec = replace(CAUSAL, softmax=softmax, groups=groups)
    check(interpreted, spec, call="bits", splits=5, rows=2)


def test_a_workspace_serves_replays(interpreted):
    check(interpreted, WITH_LENGTHS, splits=5, lengths=(100, 60), launches=3)


FAR = {"offset": 300.0, "redone": ROWS_OF_ALL}
SINKS = replace(CAUSAL, sinks=True)
MUTANTS = {
    "arrival order": (CAUSAL, PLAIN, "bits", {"splits": 5}, [
        ("(\n    result: tl.tuple, peak", "(\n    own_split, result: tl.tuple, peak"),
        ("add_totals(\n                result,", "add_totals(\n                split, result,"),
        ("tl.cast(part, tl.int64) * STRIDE\n",
         "tl.cast((part + own_split) % parts, tl.int64) * STRIDE\n"),
    ]),
    "no reset": (CAUSAL, PLAIN, "run", {"launches": 2}, [
        ("            tl.store(arrived + unit, 0)\n", "")
    ]),
    "no redo": (CAUSAL, PLAIN, "run", FAR, [
        ("if count > 0:\n            redone_peak", "if count > 99:\n            redone_peak")
    ]),
    "read beyond the length": (WITH_LENGTHS, PLAIN, "run", {"lengths": (100, 37)}, [
        ("whole_stop = end_seen(lowest, length, AFTER) // BLOCK_N",
         "whole_stop = tl.cdiv(end_seen(lowest, length, AFTER), BLOCK_N)")
    ]),
    "the last program adds up": (CAUSAL, PLAIN, "run", {}, [
        ('scope="gpu") == parts - 1', 'scope="gpu") * 0 + split == parts - 1')
    ]),
    "a counter of all blocks": (CAUSAL, PLAIN, "run", {}, [
        ("tl.atomic_add(arrived + unit, 1", "tl.atomic_add(arrived, 1")
    ]),
    "all splits are waited for": (WITH_LENGTHS, PLAIN, "run", {"lengths": (100, 60)}, [
        ('scope="gpu") == parts - 1', 'scope="gpu") == splits - 1')
    ]),
    "a part is not shrunk": (replace(CAUSAL, softmax="first_tile"), PLAIN, "run", {"factor": 3.0}, [
        ("own_total *= exp_apart(peaks[index], or_zero(peak), UNIT)[:, None]", "pass")
    ]),
    "only what is too large is redone": (CAUSAL, PLAIN, "run", {**FAR, "offset": -300.0}, [
        ("is_good = is_exact(of_keys,", "is_good = is_exact(tl.maximum(of_keys, 1.0),")
    ]),
    "rows without keys are redone": (replace(WITH_LENGTHS, dead="zero"), PLAIN, "run",
                                     {"lengths": (100, 0), "redone": 0}, [
        ("is_bad = is_bad & (redone_peak > float(\"-inf\"))", "is_bad = is_bad"),
        ("is_alive = (seen > 0) | (sink > float(\"-inf\"))", "is_alive = seen >= 0"),
    ]),
    "good rows are redone too": (CAUSAL, PLAIN, "run", {"redone": 0}, [
        ("is_bad = row_inside & is_alive & (is_good == 0)", "is_bad = row_inside & is_alive")
    ]),
    "a sink for each part": (SINKS, PLAIN, "run", {"splits": 4}, [
        ("            of_keys = sums\n", "            of_keys = sums\n            "
         "sums += (parts - 1) * sink_relative_to(sink, peak, UNIT, True, WEIGHTS)\n"),
        ("    or_zero,\n    store_", "    or_zero,\n    relative_to,\n    store_"),
    ]),
    "the window cuts no tile": (WINDOW, PLAIN, "run", {}, [
        ("whole = tl.cdiv(first_seen(highest, BEFORE), BLOCK_N)",
         "whole = first_seen(highest, BEFORE) // BLOCK_N")
    ]),
    "a tile too few": (CAUSAL, PLAIN, "run", {}, [
        ("stop = begin + tiles // parts +", "stop = begin - 1 + tiles // parts +")
    ]),
    "what is over is dealt out twice": (CAUSAL, PLAIN, "run", {"keys": 112}, [
        ("tl.minimum(split, more)", "split * 0")
    ]),
    "parts behind the last": (CAUSAL, PLAIN, "run", {}, [
        ("(part < parts)\n                at =", "(part >= 0)\n                at =")
    ]),
    "pages before all windows": (
        replace(PAGED, before=20), READ, "run", {"rows": 2, "lengths": (76, 46), "block_n": 32},
        [("inside = inside & (column >= oldest)", "inside = inside & (column >= 0)")],
    ),
    "one page for all": (PAGED, READ, "run", {"block_n": 32}, [
        ("page = tl.load(at, mask=inside, other=0)", "page = tl.load(at, mask=n < 0, other=0)")
    ]),
    "the table of another sequence": (PAGED, READ, "run", {}, [
        ("table += batch.to(tl.int64) * table_stride", "table += 0 * table_stride")
    ]),
    "rows packed as heads are": (replace(CAUSAL, groups=3), PLAIN, "run", {"rows": 3}, [
        ("row = packed // GROUPS", "row = packed % rows")
    ]),
    "values that are not scaled": (CAUSAL, NARROW, "run", {}, [
        ("means = means * tl.load(scales + own)", "means = means")
    ]),
    "the scale of the first head": (CAUSAL, NARROW, "run", {"heads": 2, "scale_per_head": True}, [
        ("tl.load(k_scale + key_head * scale_stride)", "tl.load(k_scale)")
    ]),
    "a logarithm of half a per mille more": (CAUSAL, PLAIN, "run", {}, [
        ("store_logarithms(lse, peak, sums,", "store_logarithms(lse, peak, sums * 1.0005,")
    ]),
    "a key's rest is left out": (replace(CAUSAL, head_dim=48), PLAIN, "run", {}, [
        ("product = tl.dot(rest_of_queries, rest.T, product, input_precision=PRECISION)",
         "product = product")
    ]),
}  # fmt: skip
"""Each a case that is right, and what makes it wrong."""


@pytest.mark.parametrize("name", [*MUTANTS][:4] + first("", *[*MUTANTS][4:])[1:])
def test_a_mutant_of_the_template_is_caught(interpreted, name):
    spec, cache, call, case, changes = MUTANTS[name]
    check(interpreted, spec, cache, call, **case)
    with wrong_values():
        check(interpreted, spec, cache, call, mutate=changes, **case)


TILE = AttentionTile(16, 16, 4, 2)


@pytest.mark.parametrize(
    ("cache", "spec", "why"),
    [
        (Cache(page=24), SPEC, "a page is a power of two"),
        (Cache(page=8), SPEC, "a page is a power of two"),
        (Cache(dtype="float16"), SPEC, "its dtype is one of"),
        (SHARED, SPEC, None),
        (SHARED, replace(SPEC, head_dim=96, value_dim=32), "largest power of two"),
    ],
    ids=str,
)
def test_what_no_kernel_reads_is_an_error(cache, spec, why):
    if why is None:
        assert build_decode(spec, cache, TILE).cache == Cache.parse(str(cache))
        return
    with pytest.raises(KernelError, match=why):
        build_decode(spec, cache, TILE)


MISFITS = {
    "table is promised, and not given": {"table": None},
    "lengths is int64": {"lengths": "int64"},
    "1 counters of the workspace are not the 4 that are needed": {"arrived": 1},
    "1 partial sums of the workspace are not": {"partials": 1},
    "counters of the workspace are int64, not int32": {"arrived dtype": "int64"},
    "partial sums of the workspace are float16, not float32": {"partials dtype": "float16"},
    "counters of the workspace is on meta, not cpu": {"arrived device": "meta"},
    "counters of the workspace are not contiguous": {"arrived step": 2},
    "table is on meta, not cpu": {"device": "table"},
    "lengths is on meta, not cpu": {"device": "lengths"},
    "lse is on meta, not cpu": {"device": "lse"},
    "an input is on meta, not cpu": {"device": "inputs"},
    "0 CTAs cannot share": {"splits": 0},
    "k is": {"k": "other head"},
    "q is of float16": {"q": "float16"},
}


def test_calls_that_do_not_fit_are_errors(interpreted):
    messages = interpreted("decode_cases.misfits", list(MISFITS.values()))
    assert [why for why, text in zip(MISFITS, messages, strict=True) if why not in text] == []


FEATURES = {
    "dtype": ["float32", "float16", "bfloat16"],
    "cache": [PLAIN, NARROW],
    "page": [0, 16, 64],
    "structure": [
        {}, {"after": 0, "align": "bottom_right"},
        {"before": 20, "after": 0, "align": "bottom_right"}, {"before": 3, "after": 40},
    ],
    "lengths": [(), (100, 37), (99, 0), (1, 64)],
    "dims": [(64, 64), (80, 96), (128, 128), (192, 128), (32, 32)],
    "groups": [1, 3, 8],
    "mask": ["", "padding", "bias", "slopes"],
    "softmax": ["zero", "first_tile", "online", "head", "bound", "sink"],
    "sinks": [False, True],
    "dead": ["nan", "zero"],
    "rows": [1, 2, 4],
    "splits": [1, 3, 7],
    "layout": ["bhsd", "bshd", "strided"],
    "scale_per_head": [False, True],
}  # fmt: skip
MATRIX = all_pairs(FEATURES)
SHORT = 2
"""Rows of the matrix in every run."""
IN_CASE = ("lengths", "mask", "rows", "splits", "layout", "scale_per_head")


@pytest.mark.parametrize("row", MATRIX[:SHORT] + first("", *MATRIX[SHORT:])[1:], ids=str)
def test_every_pair_of_features(interpreted, row):
    """Of ``MUTANTS`` the short rows find those of the window, the table, sinks and packed rows."""
    check(interpreted, *combination(row), **case_of(row))


def case_of(row):
    """The rest: of pages, all of which hold keys."""
    return {name: row[name] for name in IN_CASE} | {"heads": 2, "keys": 128 if row["page"] else 100}


def combination(row):
    """A spec and its cache."""
    softmax = row["softmax"] if row["sinks"] or row["softmax"] != "sink" else "zero"
    spec = replace(
        SPEC, dtype=row["dtype"], head_dim=row["dims"][0], value_dim=row["dims"][1],
        scale=row["dims"][0] ** -0.5, groups=row["groups"], sinks=row["sinks"], dead=row["dead"],
        lengths=bool(row["lengths"]), softmax=softmax, bound=1.5 if softmax == "bound" else 0.0,
        **row["structure"],
    )  # fmt: skip
    return spec, replace(row["cache"], page=row["page"])
